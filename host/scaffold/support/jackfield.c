/* See jackfield.h. The reader routes frames and never waits for a handler; every call has a thread. */
#define _GNU_SOURCE
#include "jackfield.h"

#include <errno.h>
#include <pthread.h>
#include <signal.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <sys/socket.h>
#include <sys/stat.h>
#include <sys/un.h>
#include <unistd.h>

enum {
    MAX_FRAME = 16 << 20, /* bytes of a line, until a hello says otherwise */
    HEAD_BYTES = 4096,    /* the id of a line that is too long stands within its first bytes */
    WINDOW_ITEMS = 32,    /* credit of a new stream */
    WINDOW_BYTES = 1 << 20,
    READ_BYTES = 64 << 10,
    EXIT_DESCRIBED = 0,
    EXIT_USAGE = 64
};

struct jf_call {
    long long id;
    char *method;
    json_t *params;
    bool takes_stream, opened, cancelled; /* `cancelled` and the credit are guarded by `mutex` */
    long long items, bytes;
    json_t *error, *usage;
    long long asked; /* our call of the host that is waited for, 0 for none; its frame in `told` */
    json_t *told;
    jf_call *next;
};

static const char REGISTER[] = "plugin.register";
static const char *plugin_id, *plugin_version;
static const jf_method *plugin_methods;
static FILE *wire_out;
static size_t out_max = MAX_FRAME;
static bool has_credit;

static pthread_mutex_t writing = PTHREAD_MUTEX_INITIALIZER; /* also guards last_id: ids have to grow on the wire */
static long long last_id;

static pthread_mutex_t mutex = PTHREAD_MUTEX_INITIALIZER; /* guards what follows */
static pthread_cond_t changed = PTHREAD_COND_INITIALIZER;
static jf_call *calls;
static json_t *config;

/* ---- sending */

/* A line, kind and id first, so that they can be read from the start of one that is too long. */
static char *encode(const char *kind, long long id, json_t *fields, size_t *length)
{
    char *rest = json_dumps(fields, JSON_COMPACT | JSON_ENCODE_ANY), *line = NULL;
    bool is_empty = rest == NULL || strcmp(rest, "{}") == 0;
    const char *members = is_empty ? "}" : rest + 1;
    int written = id > 0 ? asprintf(&line, "{\"kind\":\"%s\",\"id\":%lld%s%s\n", kind, id, is_empty ? "" : ",", members)
                         : asprintf(&line, "{\"kind\":\"%s\"%s%s\n", kind, is_empty ? "" : ",", members);
    free(rest);
    json_decref(fields);
    *length = written < 0 ? 0 : (size_t)written;
    return written < 0 ? NULL : line;
}

static bool write_line(char *line, size_t length)
{
    bool fits = line != NULL && length <= out_max + 1;
    if (fits) {
        pthread_mutex_lock(&writing);
        fwrite(line, 1, length, wire_out);
        fits = fflush(wire_out) == 0;
        pthread_mutex_unlock(&writing);
    }
    free(line);
    return fits;
}

static bool send_frame(const char *kind, long long id, json_t *fields)
{
    size_t length;
    char *line = encode(kind, id, fields, &length);
    return write_line(line, length);
}

/* ---- for handlers */

json_t *jf_fail(jf_call *call, int status, const char *code, const char *message)
{
    json_decref(call->error);
    call->error = json_pack("{s:s, s:s, s:i}", "message", message, "code", code, "http_status", status);
    return NULL;
}

json_t *jf_error(jf_call *call)
{
    return call->error;
}

void jf_forgive(jf_call *call)
{
    json_decref(call->error);
    call->error = NULL;
}

json_t *jf_config(jf_call *call)
{
    (void)call;
    pthread_mutex_lock(&mutex);
    json_t *copy = config != NULL ? json_deep_copy(config) : json_object();
    pthread_mutex_unlock(&mutex);
    return copy;
}

const char *jf_text(const json_t *object, const char *name, const char *otherwise)
{
    const char *text = json_string_value(json_object_get(object, name));
    return text != NULL ? text : otherwise;
}

json_t *jf_body_of(const json_t *params)
{
    json_t *body = json_object_get(params, "body");
    const char *text = json_string_value(json_object_get(body, "text"));
    return text != NULL ? json_loads(text, JSON_DECODE_ANY, NULL) : json_incref(json_object_get(body, "json"));
}

json_t *jf_json_body(json_t *value)
{
    return json_pack("{s:o}", "json", value);
}

bool jf_cancelled(jf_call *call)
{
    pthread_mutex_lock(&mutex);
    bool cancelled = call->cancelled;
    pthread_mutex_unlock(&mutex);
    return cancelled;
}

void jf_log(jf_call *call, const char *level, const char *event, json_t *fields)
{
    if (fields == NULL)
        fields = json_object();
    send_frame("log", 0, json_pack("{s:s, s:s, s:o, s:I}", "level", level, "event", event, "fields", fields, "parent",
                                   (json_int_t)call->id));
}

void jf_usage(jf_call *call, json_t *usage)
{
    json_decref(call->usage);
    call->usage = usage;
}

bool jf_open(jf_call *call, json_t *result)
{
    if (!call->takes_stream) {
        json_decref(result);
        jf_fail(call, 500, "plugin_error", "the caller takes no stream");
        return false;
    }
    if (jf_cancelled(call)) {
        json_decref(result);
        return false;
    }
    call->opened = true;
    json_t *fields = json_pack("{s:b, s:b}", "ok", true, "stream", true);
    if (result != NULL)
        json_object_set_new(fields, "result", result);
    return send_frame("result", call->id, fields);
}

bool jf_item(jf_call *call, json_t *item)
{
    size_t length;
    char *line = encode("item", call->id, item, &length);
    pthread_mutex_lock(&mutex);
    while (has_credit && !call->cancelled && (call->items <= 0 || call->bytes <= 0))
        pthread_cond_wait(&changed, &mutex);
    call->items -= 1;
    call->bytes -= (long long)length - 1;
    bool wanted = !call->cancelled;
    pthread_mutex_unlock(&mutex);
    if (!wanted) {
        free(line);
        return false;
    }
    if (!write_line(line, length)) {
        jf_fail(call, 413, "plugin_body_too_large", "an item above what the host accepts");
        return false;
    }
    return true;
}

json_t *jf_host(jf_call *call, const char *method, json_t *params)
{
    size_t length;
    json_t *fields = json_pack("{s:s, s:o, s:I}", "method", method, "params", params, "parent", (json_int_t)call->id);
    pthread_mutex_lock(&writing);
    long long id = ++last_id;
    char *line = encode("call", id, fields, &length);
    pthread_mutex_lock(&mutex);
    call->asked = id;
    pthread_mutex_unlock(&mutex);
    if (line != NULL)
        fwrite(line, 1, length, wire_out);
    fflush(wire_out);
    pthread_mutex_unlock(&writing);
    free(line);

    pthread_mutex_lock(&mutex);
    while (call->told == NULL && !call->cancelled)
        pthread_cond_wait(&changed, &mutex);
    json_t *frame = call->told, *answer = NULL;
    call->told = NULL;
    call->asked = 0;
    pthread_mutex_unlock(&mutex);
    if (frame == NULL) {
        jf_fail(call, 499, "cancelled", "the call was cancelled");
    } else if (json_is_true(json_object_get(frame, "ok"))) {
        json_t *result = json_object_get(frame, "result");
        answer = json_is_object(result) ? json_incref(result) : json_object();
    } else if (json_is_object(json_object_get(frame, "error"))) {
        json_decref(call->error);
        call->error = json_incref(json_object_get(frame, "error"));
    } else {
        jf_fail(call, 500, "plugin_error", "plugin call failed");
    }
    json_decref(frame);
    return answer;
}

/* ---- calls */

static bool is_registration(const char *method)
{
    return strcmp(method, REGISTER) == 0 || strcmp(method, "plugin.reconfigure") == 0;
}

static json_t *answer_of(jf_call *call)
{
    for (const jf_method *row = plugin_methods; row->method != NULL; row++)
        if (strcmp(row->method, call->method) == 0)
            return row->handler(call, call->params);
    return is_registration(call->method) ? NULL : jf_fail(call, 500, "method_not_found", "this plugin has no such method");
}

static void forget(jf_call *call)
{
    pthread_mutex_lock(&mutex);
    for (jf_call **link = &calls; *link != NULL; link = &(*link)->next)
        if (*link == call) {
            *link = call->next;
            break;
        }
    pthread_cond_broadcast(&changed);
    pthread_mutex_unlock(&mutex);
    json_decref(call->params);
    json_decref(call->told);
    json_decref(call->error);
    json_decref(call->usage);
    free(call->method);
    free(call);
}

/* Gives the call its one closing frame. */
static void *run(void *given)
{
    jf_call *call = given;
    json_t *result = answer_of(call);
    const char *kind = call->opened ? "end" : "result";
    if (call->error == NULL && call->opened && jf_cancelled(call))
        jf_fail(call, 499, "cancelled", "the call was cancelled");
    bool sent = false;
    if (call->error == NULL) {
        json_t *fields = json_pack("{s:b}", "ok", true);
        if (result != NULL && !call->opened)
            json_object_set(fields, "result", result);
        if (call->usage != NULL)
            json_object_set(fields, "usage", call->usage);
        if (!(sent = send_frame(kind, call->id, fields)))
            jf_fail(call, 413, "plugin_body_too_large", "an answer above what the host accepts");
    }
    if (!sent) {
        json_t *fields = json_pack("{s:b, s:O}", "ok", false, "error", call->error);
        if (call->usage != NULL)
            json_object_set(fields, "usage", call->usage);
        send_frame(kind, call->id, fields);
    }
    json_decref(result);
    forget(call);
    return NULL;
}

static void begin(json_t *frame, long long id)
{
    jf_call *call = calloc(1, sizeof *call);
    json_t *params = json_object_get(frame, "params");
    call->id = id;
    call->method = strdup(jf_text(frame, "method", ""));
    call->params = json_is_object(params) ? json_incref(params) : json_object();
    call->takes_stream = json_is_true(json_object_get(frame, "stream"));
    call->items = WINDOW_ITEMS;
    call->bytes = WINDOW_BYTES;
    pthread_mutex_lock(&mutex);
    if (is_registration(call->method)) {
        json_decref(config);
        config = json_deep_copy(json_object_get(call->params, "config"));
    }
    call->next = calls;
    calls = call;
    pthread_mutex_unlock(&mutex);
    pthread_t thread;
    pthread_attr_t attributes;
    pthread_attr_init(&attributes);
    pthread_attr_setdetachstate(&attributes, PTHREAD_CREATE_DETACHED);
    if (pthread_create(&thread, &attributes, run, call) != 0) {
        jf_fail(call, 503, "plugin_overloaded", "no thread for this call");
        send_frame("result", id, json_pack("{s:b, s:O}", "ok", false, "error", call->error));
        forget(call);
    }
    pthread_attr_destroy(&attributes);
}

/* ---- the reader */

static json_t *hello(void)
{
    json_t *methods = json_array(), *inputs = json_object(), *on_error = json_object();
    json_array_append_new(methods, json_string(REGISTER)); /* answered here if not by a handler */
    for (const jf_method *row = plugin_methods; row->method != NULL; row++) {
        if (strcmp(row->method, REGISTER) != 0)
            json_array_append_new(methods, json_string(row->method));
        if (row->inputs != NULL)
            json_object_set_new(inputs, row->method, json_loads(row->inputs, 0, NULL));
        if (row->on_error != NULL)
            json_object_set_new(on_error, row->method, json_string(row->on_error));
    }
    return json_pack("{s:[i], s:i, s:s, s:s, s:[s,s,s,s], s:o, s:o, s:o}", "abi", 1, "schema", 1, "plugin", plugin_id,
                     "version", plugin_version, "features", "cancel", "credit", "ping", "goaway", "capabilities",
                     methods, "inputs", inputs, "on_error", on_error);
}

static void greet(json_t *host)
{
    size_t index;
    json_t *feature, *limit = json_object_get(json_object_get(host, "limits"), "max_frame_bytes");
    has_credit = false;
    json_array_foreach (json_object_get(host, "features"), index, feature) {
        const char *name = json_string_value(feature);
        has_credit = has_credit || (name != NULL && strcmp(name, "credit") == 0);
    }
    if (json_integer_value(limit) > 0)
        out_max = (size_t)json_integer_value(limit);
    send_frame("hello", 0, hello());
}

/* A frame about a call in progress: of the host's by `id`, or of our own by `asked`. */
static void tell(const char *kind, long long id, json_t *frame)
{
    pthread_mutex_lock(&mutex);
    for (jf_call *call = calls; call != NULL; call = call->next) {
        if (strcmp(kind, "result") == 0) {
            if (call->asked == id && call->told == NULL)
                call->told = json_incref(frame);
        } else if (call->id != id) {
            continue;
        } else if (strcmp(kind, "cancel") == 0) {
            call->cancelled = true;
        } else {
            call->items += json_integer_value(json_object_get(frame, "items"));
            call->bytes += json_integer_value(json_object_get(frame, "bytes"));
        }
    }
    pthread_cond_broadcast(&changed);
    pthread_mutex_unlock(&mutex);
}

static void route(json_t *frame)
{
    const char *kind = jf_text(frame, "kind", "");
    long long id = json_integer_value(json_object_get(frame, "id"));
    if (strcmp(kind, "hello") == 0)
        greet(frame);
    else if (strcmp(kind, "call") == 0)
        begin(frame, id);
    else if (strcmp(kind, "ping") == 0)
        send_frame("pong", id, json_object());
    else if (strcmp(kind, "cancel") == 0 || strcmp(kind, "credit") == 0 || strcmp(kind, "result") == 0)
        tell(kind, id, frame);
    /* goaway asks nothing of us, and unknown kinds are for later versions */
}

/* Answers a call that cannot be read; other frames of that sort are dropped. */
static void refuse(char *head, const char *code, int status)
{
    fprintf(stderr, "unusable frame: %s\n", code);
    const char *found = strstr(head, "\"id\":");
    long long id = found != NULL ? strtoll(found + 5, NULL, 10) : 0;
    if (id > 0 && strstr(head, "\"call\"") != NULL)
        send_frame("result", id, json_pack("{s:b, s:{s:s, s:s, s:i}}", "ok", false, "error", "message",
                                           "the frame cannot be read", "code", code, "http_status", status));
}

static void take_line(char *line, size_t length, bool whole)
{
    json_error_t problem;
    if (length == 0)
        return;
    json_t *frame = whole ? json_loadb(line, length, JSON_ALLOW_NUL, &problem) : NULL;
    if (frame != NULL) {
        route(frame);
        json_decref(frame);
        return;
    }
    line[length < HEAD_BYTES ? length : HEAD_BYTES] = '\0';
    refuse(line, whole ? "plugin_protocol_error" : "plugin_body_too_large", whole ? 500 : 413);
}

/* Reads lines until the host closes its side; of a line above the limit only the head is kept. */
static void read_frames(int fd)
{
    char *line = malloc(MAX_FRAME + 2), *part = malloc(READ_BYTES);
    size_t length = 0;
    bool whole = true;
    ssize_t got;
    while ((got = read(fd, part, READ_BYTES)) > 0 || (got < 0 && errno == EINTR)) {
        for (char *at = part, *end = part + (got > 0 ? got : 0); at < end;) {
            char *newline = memchr(at, '\n', (size_t)(end - at));
            size_t taken = (size_t)((newline != NULL ? newline : end) - at);
            if (length + taken > MAX_FRAME)
                whole = false;
            if (whole) {
                memcpy(line + length, at, taken);
                length += taken;
            }
            if (newline != NULL) {
                take_line(line, length, whole);
                length = 0;
                whole = true;
            }
            at += taken + (newline != NULL);
        }
    }
    free(part);
    free(line);
    pthread_mutex_lock(&mutex);
    for (jf_call *call = calls; call != NULL; call = call->next)
        call->cancelled = true;
    pthread_cond_broadcast(&changed);
    pthread_mutex_unlock(&mutex);
}

/* Serves one gateway after the other at a socket of this user, for a debugger. */
static int serve_at(const char *path)
{
    struct sockaddr_un address = {.sun_family = AF_UNIX};
    int listener = socket(AF_UNIX, SOCK_STREAM, 0), connection;
    snprintf(address.sun_path, sizeof address.sun_path, "%s", path);
    unlink(path);
    umask(0077);
    if (listener < 0 || bind(listener, (struct sockaddr *)&address, sizeof address) != 0 || listen(listener, 1) != 0) {
        perror(path);
        return 1;
    }
    for (;;) {
        fprintf(stderr, "%s: listening on unix:%s\n", plugin_id, path);
        if ((connection = accept(listener, NULL, NULL)) < 0 || (wire_out = fdopen(dup(connection), "w")) == NULL) {
            perror(path);
            return 1;
        }
        read_frames(connection);
        pthread_mutex_lock(&mutex);
        while (calls != NULL) /* what they still say must not reach the next gateway */
            pthread_cond_wait(&changed, &mutex);
        pthread_mutex_unlock(&mutex);
        fclose(wire_out);
        close(connection);
    }
}

int jf_serve(int argc, char **argv, const char *id, const char *version, const jf_method *methods)
{
    plugin_id = id;
    plugin_version = version;
    plugin_methods = methods;
    wire_out = stdout;
    signal(SIGPIPE, SIG_IGN); /* the end of the host is seen by the reader */
    if (argc > 1 && strcmp(argv[1], "--describe") == 0) {
        send_frame("hello", 0, hello());
        return EXIT_DESCRIBED;
    }
    if (argc > 2 && strcmp(argv[1], "--listen") == 0)
        return serve_at(strncmp(argv[2], "unix:", 5) == 0 ? argv[2] + 5 : argv[2]);
    if (isatty(STDIN_FILENO)) {
        fprintf(stderr,
                "%s is a plugin of the Jackfield gateway, which starts it itself; --describe says what it does, "
                "--listen unix:PATH waits for a gateway with JACKFIELD_ATTACH.\n",
                id);
        return EXIT_USAGE;
    }
    wire_out = fdopen(dup(STDOUT_FILENO), "w"); /* what anybody prints must not get between the frames */
    dup2(STDERR_FILENO, STDOUT_FILENO);
    read_frames(STDIN_FILENO);
    fflush(NULL);
    _exit(0); /* threads of unfinished calls need not be waited for */
}
