/* Speaks the Jackfield plugin protocol, ABI 1: one JSON object per line, over stdin and stdout.
 *
 * Needs jansson and POSIX threads, and is part of your plugin: read it, change it. The names of methods and fields are
 * those of the protocol's page, proto/README.md of Jackfield. References are jansson's: what a handler returns, and
 * what is passed as `json_t *fields`, `result`, `item` or `params`, is taken over; what it is given is borrowed. */
#ifndef JACKFIELD_H
#define JACKFIELD_H

#include <jansson.h>
#include <stdbool.h>

/* One call of the host. */
typedef struct jf_call jf_call;

/* Answers one call, in a thread of its own. NULL means no opinion, or no change; after jf_fail it is ignored. */
typedef json_t *jf_handler(jf_call *call, json_t *params);

typedef struct {
    const char *method;   /* "model.route"; a row without a method ends the table */
    jf_handler *handler;
    const char *inputs;   /* JSON: "[\"body:/tools\"]"; NULL for the method's default */
    const char *on_error; /* "fail", "skip" or NULL */
} jf_method;

/* Talks to the host until it has had enough; returns the exit code. Id and version are those of plugin.toml. */
int jf_serve(int argc, char **argv, const char *id, const char *version, const jf_method *methods);

/* The call fails with this status (400 to 599). Always NULL, for `return jf_fail(...)`. The error object may get more
 * members, such as retryable. */
json_t *jf_fail(jf_call *call, int status, const char *code, const char *message);
json_t *jf_error(jf_call *call);

/* The plugin's section of the configuration; a new reference. */
json_t *jf_config(jf_call *call);

/* The JSON of a body in a request, in whichever form it came, and a body for an answer; new references. */
json_t *jf_body_of(const json_t *params);
json_t *jf_json_body(json_t *value);

/* A member of an object as text; `otherwise` when it is no text. */
const char *jf_text(const json_t *object, const char *name, const char *otherwise);

/* Whether the answer is no longer wanted: the client is gone, or the deadline has passed. */
bool jf_cancelled(jf_call *call);

/* Writes a structured line into the host's log, as part of this call. */
void jf_log(jf_call *call, const char *level, const char *event, json_t *fields);

/* Token counts for the closing frame. */
void jf_usage(jf_call *call, json_t *usage);

/* Begins a stream, with the answer without a body; then one item after the other. jf_item waits while the reader is
 * slower. Both return false when there is nobody to send to: return NULL then. */
bool jf_open(jf_call *call, json_t *result);
bool jf_item(jf_call *call, json_t *item);

/* Calls the host, "host.kv.get" say, and waits. The answer is a new reference; NULL after an error, which is then the
 * call's own unless you clear it with jf_forgive. */
json_t *jf_host(jf_call *call, const char *method, json_t *params);
void jf_forgive(jf_call *call);

#endif
