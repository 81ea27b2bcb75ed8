/* A router in C, without any SDK: `team-a/gpt-x` becomes the model `gpt-x` at the provider configured for `team-a`. The
 * longest prefix wins; a model without a known one is none of its business. */
#include "jackfield.h"

#include <string.h>

static json_t *route(jf_call *call, json_t *params)
{
    const char *model = jf_text(params, "requested_model", ""), *prefix, *found = NULL, *provider = NULL;
    json_t *config = jf_config(call), *target, *answer = NULL;

    json_object_foreach (json_object_get(config, "teams"), prefix, target) {
        size_t length = strlen(prefix);
        if (strncmp(model, prefix, length) == 0 && model[length] == '/' && (found == NULL || length > strlen(found))) {
            found = prefix;
            provider = json_string_value(target);
        }
    }
    if (found != NULL && provider == NULL)
        jf_fail(call, 500, "bad_configuration", "teams maps prefixes to provider keys");
    else if (found != NULL)
        answer = json_pack("{s:s, s:s, s:s, s:s+}", "target_kind", "provider", "target", provider, "target_model",
                           model + strlen(found) + 1, "reason", "prefix ", found);
    json_decref(config);
    return answer;
}

int main(int argc, char **argv)
{
    static const jf_method methods[] = {
        {"model.route", route, NULL, NULL},
        {NULL, NULL, NULL, NULL},
    };
    return jf_serve(argc, argv, "c-router", "1.0.0", methods);
}
