/* loadgen.c - closed-loop HTTP/1.1 load on 127.0.0.1 that checks every answer.
 *
 *   loadgen --port N --connections N --seconds S --body FILE [--path P] [--events N] [--max-requests N] [--header "K: v"]...
 *           [--grace S] [--expect TEXT] [--delays]
 *
 * Keeps one request in flight on each of the connections (keep-alive, reopened when the server closes) for S seconds or until
 * --max-requests were started, then lets what is in flight finish for at most --grace seconds (10). Each answer must have
 * status 200; without --events its body must contain TEXT (if given) and be complete; with --events N it must be an event
 * stream of N data events (any number if N is -1) and a closing [DONE]. --delays reads the upstream's "t=<nanoseconds>" from each event.
 *
 * One JSON object on stdout. `responses` are good answers, `in_window` those that ended within the S seconds (the rate `rps`
 * counts these only); `bad_status`, `bad_body`, `no_done`, `wrong_events`, `connection_errors`, `unfinished` are failures, each
 * answer counted once. `first_bad_status` is the first status that was not 200. Times are microseconds from a histogram
 * with buckets 1.6 % wide: `latency_*` request to last byte, `first_byte_*` request to the first byte of the answer's body,
 * `event_delay_*` upstream's send to arrival here.
 */
#define _GNU_SOURCE
#include <arpa/inet.h>
#include <errno.h>
#include <getopt.h>
#include <netinet/tcp.h>
#include <signal.h>
#include <stdbool.h>
#include <stdint.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <strings.h>
#include <sys/epoll.h>
#include <sys/socket.h>
#include <time.h>
#include <unistd.h>

enum { MAX_CONNECTIONS = 1024, HEAD_SIZE = 16 << 10, LINE_SIZE = 4 << 10, READ_SIZE = 256 << 10, REQUEST_SIZE = 4 << 20 };
enum { SUB_BUCKETS = 64, BUCKETS = 58 * SUB_BUCKETS };
static const int64_t RETRY_NS = 10 * 1000 * 1000;

/* ---- histogram: exact below 64 ns, then 64 buckets per power of two ---- */

struct histogram {
    uint64_t count, bucket[BUCKETS];
    int64_t largest;
};

static int bucket_of(int64_t value)
{
    if (value < SUB_BUCKETS)
        return value < 0 ? 0 : (int)value;
    int shift = 63 - __builtin_clzll((uint64_t)value) - 6;
    return (shift + 1) * SUB_BUCKETS + (int)((value >> shift) - SUB_BUCKETS);
}

static double middle_of(int bucket)
{
    if (bucket < SUB_BUCKETS)
        return bucket;
    int shift = bucket / SUB_BUCKETS - 1;
    return ((double)(bucket % SUB_BUCKETS + SUB_BUCKETS) + 0.5) * (double)(1LL << shift);
}

static void record(struct histogram *histogram, int64_t value_ns)
{
    histogram->bucket[bucket_of(value_ns)]++;
    histogram->count++;
    if (value_ns > histogram->largest)
        histogram->largest = value_ns;
}

static double percentile_us(const struct histogram *histogram, double percent)
{
    uint64_t wanted = (uint64_t)(percent / 100.0 * (double)histogram->count + 0.5), seen = 0;
    for (int i = 0; i < BUCKETS; i++) {
        seen += histogram->bucket[i];
        if (histogram->bucket[i] && seen >= wanted)
            return middle_of(i) / 1000.0;
    }
    return 0.0;
}

/* ---- settings and totals ---- */

static struct {
    int port, connections, events;
    double seconds, grace;
    long max_requests;
    const char *path, *body_file, *expect;
    bool delays;
} settings = {.path = "/v1/chat/completions", .grace = 10.0, .connections = 1, .seconds = 1.0};

static struct {
    long started, responses, in_window, events, bad_status, bad_body, no_done, wrong_events, connection_errors, unfinished;
    int first_bad_status;
} totals;

static struct histogram latency, first_byte, event_delay;
static char extra_headers[8192], *request;
static size_t request_size;
static int64_t window_start, window_end;
static int poller;

/* ---- one connection ---- */

enum state { CLOSED, CONNECTING, HEAD, SIZED_BODY, UNSIZED_BODY, CHUNK_SIZE, CHUNK_DATA, CHUNK_GAP, TRAILER };

struct connection {
    int fd;
    enum state state;
    bool server_closes, found_expected, done, body_started;
    int status, events;
    int64_t begun_ns, retry_ns;
    uint64_t left, trailer_line;
    size_t head_length, line_length;
    char head[HEAD_SIZE], line[LINE_SIZE + 1];
};

static struct connection *connections;

static int64_t now_ns(void)
{
    struct timespec now;
    clock_gettime(CLOCK_MONOTONIC, &now);
    return (int64_t)now.tv_sec * 1000000000 + now.tv_nsec;
}

static void watch(struct connection *connection, int operation, uint32_t events)
{
    struct epoll_event event = {.events = events, .data.ptr = connection};
    epoll_ctl(poller, operation, connection->fd, &event);
}

static void close_connection(struct connection *connection)
{
    if (connection->fd >= 0)
        close(connection->fd);
    connection->fd = -1;
    connection->state = CLOSED;
}

static void lose_connection(struct connection *connection)
{
    totals.connection_errors++;
    close_connection(connection);
    connection->retry_ns = now_ns() + RETRY_NS;
}

static bool may_start(void)
{
    return now_ns() < window_end && (settings.max_requests == 0 || totals.started < settings.max_requests);
}

static void send_request(struct connection *connection)
{
    connection->state = HEAD;
    connection->head_length = connection->line_length = 0;
    connection->status = connection->events = 0;
    connection->server_closes = connection->done = connection->body_started = false;
    connection->found_expected = settings.expect == NULL;
    connection->begun_ns = now_ns();
    totals.started++;
    size_t sent = 0;
    while (sent < request_size) { /* a large body may fill the socket: this waits, nothing else can be measured then anyway */
        ssize_t taken = send(connection->fd, request + sent, request_size - sent, MSG_NOSIGNAL);
        if (taken < 0 && errno != EAGAIN) {
            lose_connection(connection);
            return;
        }
        sent += taken > 0 ? (size_t)taken : 0;
        if (taken < 0 && now_ns() > window_end + (int64_t)(settings.grace * 1e9)) {
            lose_connection(connection);
            return;
        }
    }
}

static void open_connection(struct connection *connection)
{
    int on = 1;
    struct sockaddr_in address = {.sin_family = AF_INET, .sin_port = htons((uint16_t)settings.port)};
    address.sin_addr.s_addr = htonl(INADDR_LOOPBACK);
    connection->retry_ns = 0;
    connection->fd = socket(AF_INET, SOCK_STREAM | SOCK_NONBLOCK | SOCK_CLOEXEC, 0);
    setsockopt(connection->fd, IPPROTO_TCP, TCP_NODELAY, &on, sizeof on);
    if (connect(connection->fd, (struct sockaddr *)&address, sizeof address) != 0 && errno != EINPROGRESS) {
        lose_connection(connection);
        return;
    }
    connection->state = CONNECTING;
    watch(connection, EPOLL_CTL_ADD, EPOLLIN | EPOLLOUT);
}

static void finish_connecting(struct connection *connection)
{
    int error = 0;
    socklen_t length = sizeof error;
    getsockopt(connection->fd, SOL_SOCKET, SO_ERROR, &error, &length);
    if (error != 0) {
        lose_connection(connection);
        return;
    }
    watch(connection, EPOLL_CTL_MOD, EPOLLIN);
    if (may_start())
        send_request(connection);
    else
        close_connection(connection);
}

/* ---- reading an answer ---- */

static void end_answer(struct connection *connection)
{
    int64_t now = now_ns();
    if (connection->status != 200) {
        totals.bad_status++;
        if (totals.first_bad_status == 0)
            totals.first_bad_status = connection->status;
    } else if (settings.events && !connection->done) {
        totals.no_done++;
    } else if (settings.events > 0 && connection->events != settings.events) {
        totals.wrong_events++;
    } else if (!connection->found_expected) {
        totals.bad_body++;
    } else {
        totals.responses++;
        totals.in_window += now <= window_end;
        record(&latency, now - connection->begun_ns);
    }
    if (connection->server_closes || !may_start())
        close_connection(connection);
    else
        send_request(connection);
    if (connection->state == CLOSED)
        connection->retry_ns = now;
}

static void read_line_of_stream(struct connection *connection, const char *line, size_t length)
{
    if (length < 6 || memcmp(line, "data:", 5) != 0)
        return;
    const char *value = line + 5 + (line[5] == ' ');
    if (length >= 6 + (size_t)(value - line) && memcmp(value, "[DONE]", 6) == 0) {
        connection->done = true;
        return;
    }
    connection->events++;
    totals.events++;
    const char *stamp;
    if (settings.delays && (stamp = memmem(line, length, "\"t=", 3)) != NULL)
        record(&event_delay, now_ns() - strtoll(stamp + 3, NULL, 10));
}

static void keep_part_of_line(struct connection *connection, const char *data, size_t length)
{
    size_t room = LINE_SIZE - connection->line_length, kept = length < room ? length : room;
    memcpy(connection->line + connection->line_length, data, kept);
    connection->line_length += kept;
    connection->line[connection->line_length] = 0;
}

static void read_stream(struct connection *connection, const char *data, size_t length)
{
    const char *newline;
    while ((newline = memchr(data, '\n', length)) != NULL) {
        size_t line_length = (size_t)(newline - data);
        if (connection->line_length > 0) {
            keep_part_of_line(connection, data, line_length);
            read_line_of_stream(connection, connection->line, connection->line_length);
            connection->line_length = 0;
        } else {
            read_line_of_stream(connection, data, line_length);
        }
        data += line_length + 1;
        length -= line_length + 1;
    }
    keep_part_of_line(connection, data, length);
}

static void read_body(struct connection *connection, const char *data, size_t length)
{
    if (!connection->body_started)
        record(&first_byte, now_ns() - connection->begun_ns);
    connection->body_started = true;
    if (connection->status != 200)
        return;
    if (settings.events) {
        read_stream(connection, data, length);
    } else if (!connection->found_expected) {
        /* An answer may arrive in pieces: the unfinished piece is kept together with what follows it. */
        keep_part_of_line(connection, data, length);
        connection->found_expected = memmem(connection->line, connection->line_length, settings.expect, strlen(settings.expect));
    }
}

static enum state read_head(struct connection *connection)
{
    char *head = connection->head, *value;
    connection->status = strncmp(head, "HTTP/1.", 7) == 0 ? atoi(head + 9) : -1;
    connection->server_closes = strcasestr(head, "\r\nconnection: close") != NULL;
    if (strcasestr(head, "\r\ntransfer-encoding: chunked") != NULL) {
        connection->left = 0;
        return CHUNK_SIZE;
    }
    if ((value = strcasestr(head, "\r\ncontent-length:")) != NULL) {
        connection->left = strtoull(value + 17, NULL, 10);
        return SIZED_BODY;
    }
    connection->server_closes = true;
    return UNSIZED_BODY;
}

/* Takes bytes until the head is whole; returns how many it used. */
static size_t take_head(struct connection *connection, const char *data, size_t length)
{
    size_t before = connection->head_length, room = HEAD_SIZE - 1 - before, taken = length < room ? length : room;
    memcpy(connection->head + before, data, taken);
    connection->head_length += taken;
    connection->head[connection->head_length] = 0;
    char *gap = memmem(connection->head, connection->head_length, "\r\n\r\n", 4);
    if (gap == NULL) {
        if (taken < length)
            lose_connection(connection);
        return length;
    }
    gap[2] = 0;
    connection->state = read_head(connection);
    return (size_t)(gap - connection->head) + 4 - before;
}

static size_t take_chunk_size(struct connection *connection, const char *data, size_t length)
{
    size_t used = 0;
    while (used < length && connection->state == CHUNK_SIZE) {
        char c = data[used++];
        if (c == '\n') {
            connection->state = connection->left ? CHUNK_DATA : TRAILER;
            connection->trailer_line = 0;
        } else if (c >= '0' && c <= '9') {
            connection->left = connection->left * 16 + (uint64_t)(c - '0');
        } else if ((c | 32) >= 'a' && (c | 32) <= 'f') {
            connection->left = connection->left * 16 + (uint64_t)((c | 32) - 'a' + 10);
        }
    }
    return used;
}

/* Skips the line end after a chunk, or the trailer lines up to the empty one; true when the answer has ended. */
static bool skip_line_ends(struct connection *connection, const char *data, size_t length, size_t *used)
{
    while (*used < length) {
        char c = data[(*used)++];
        if (c == '\n' && connection->state == CHUNK_GAP) {
            connection->state = CHUNK_SIZE;
            return false;
        }
        if (c == '\n' && connection->trailer_line == 0)
            return true;
        if (c == '\n')
            connection->trailer_line = 0;
        else if (c != '\r')
            connection->trailer_line++;
    }
    return false;
}

static void take_bytes(struct connection *connection, const char *data, size_t length)
{
    bool ended = false;
    while ((length > 0 || ended) && connection->state != CLOSED) {
        size_t used = 0;
        switch (connection->state) {
        case HEAD:
            used = take_head(connection, data, length);
            ended = connection->state == SIZED_BODY && connection->left == 0;
            break;
        case SIZED_BODY:
        case CHUNK_DATA:
            used = length < connection->left ? length : connection->left;
            read_body(connection, data, used);
            connection->left -= used;
            ended = connection->left == 0 && connection->state == SIZED_BODY;
            if (connection->left == 0 && connection->state == CHUNK_DATA)
                connection->state = CHUNK_GAP;
            break;
        case UNSIZED_BODY:
            used = length;
            read_body(connection, data, used);
            break;
        case CHUNK_SIZE:
            used = take_chunk_size(connection, data, length);
            break;
        case CHUNK_GAP:
        case TRAILER:
            ended = skip_line_ends(connection, data, length, &used);
            break;
        default: /* bytes nobody asked for */
            lose_connection(connection);
            return;
        }
        data += used;
        length -= used;
        if (ended) {
            ended = false;
            end_answer(connection);
        }
    }
}

static void read_from(struct connection *connection)
{
    static char buffer[READ_SIZE];
    ssize_t got = recv(connection->fd, buffer, sizeof buffer, 0);
    if (got > 0)
        take_bytes(connection, buffer, (size_t)got);
    else if (got < 0 && errno == EAGAIN)
        return;
    else if (connection->state == UNSIZED_BODY && got == 0)
        end_answer(connection);
    else
        lose_connection(connection);
}

/* ---- the run ---- */

/* (Re)opens what is closed while requests may be started; false when nothing is open or to be opened any more. */
static bool keep_open(bool *someone_waits)
{
    bool alive = false;
    int64_t now = now_ns();
    *someone_waits = false;
    for (int i = 0; i < settings.connections; i++) {
        struct connection *connection = &connections[i];
        if (connection->state == CLOSED && may_start()) {
            if (connection->retry_ns <= now)
                open_connection(connection);
            if (connection->state == CLOSED)
                *someone_waits = alive = true;
        }
        alive |= connection->state != CLOSED;
    }
    return alive;
}

static void run(void)
{
    struct epoll_event ready[MAX_CONNECTIONS];
    bool someone_waits;
    window_start = now_ns();
    window_end = window_start + (int64_t)(settings.seconds * 1e9);
    int64_t give_up = window_end + (int64_t)(settings.grace * 1e9);
    while (keep_open(&someone_waits)) {
        if (now_ns() > give_up) {
            for (int i = 0; i < settings.connections; i++)
                totals.unfinished += connections[i].state > CONNECTING;
            return;
        }
        int count = epoll_wait(poller, ready, MAX_CONNECTIONS, someone_waits ? 2 : 100);
        for (int i = 0; i < count; i++) {
            struct connection *connection = ready[i].data.ptr;
            if (connection->state == CONNECTING)
                finish_connecting(connection);
            else if (connection->state != CLOSED)
                read_from(connection);
        }
    }
}

static void print_percentiles(const char *name, const struct histogram *histogram)
{
    if (histogram->count == 0)
        return;
    printf(",\"%s_p50_us\":%.1f,\"%s_p90_us\":%.1f,\"%s_p99_us\":%.1f,\"%s_max_us\":%.1f", name, percentile_us(histogram, 50), name,
           percentile_us(histogram, 90), name, percentile_us(histogram, 99), name, (double)histogram->largest / 1000.0);
}

static void print_totals(double elapsed)
{
    double window = settings.max_requests && totals.started >= settings.max_requests ? elapsed : settings.seconds;
    long counted = window < settings.seconds || settings.max_requests ? totals.responses : totals.in_window;
    printf("{\"seconds\":%.4f,\"rps\":%.3f,\"responses\":%ld,\"in_window\":%ld,\"events\":%ld,\"bad_status\":%ld,"
           "\"first_bad_status\":%d,\"bad_body\":%ld,\"no_done\":%ld,\"wrong_events\":%ld,\"connection_errors\":%ld,"
           "\"unfinished\":%ld",
           elapsed, (double)counted / window, totals.responses, totals.in_window, totals.events, totals.bad_status,
           totals.first_bad_status, totals.bad_body, totals.no_done, totals.wrong_events, totals.connection_errors,
           totals.unfinished);
    print_percentiles("latency", &latency);
    print_percentiles("first_byte", &first_byte);
    print_percentiles("event_delay", &event_delay);
    printf("}\n");
}

static int build_request(void)
{
    FILE *file = fopen(settings.body_file, "rb");
    if (file == NULL) {
        fprintf(stderr, "loadgen: %s: %s\n", settings.body_file, strerror(errno));
        return 66;
    }
    static char body[REQUEST_SIZE];
    size_t body_length = fread(body, 1, sizeof body, file);
    fclose(file);
    request = malloc(body_length + sizeof extra_headers + 1024);
    int head = sprintf(request,
                       "POST %.512s HTTP/1.1\r\nHost: 127.0.0.1:%d\r\nContent-Type: application/json\r\nAccept: */*\r\n%s"
                       "Content-Length: %zu\r\n\r\n",
                       settings.path, settings.port, extra_headers, body_length);
    memcpy(request + head, body, body_length);
    request_size = (size_t)head + body_length;
    return 0;
}

static int add_header(const char *header)
{
    size_t used = strlen(extra_headers);
    return snprintf(extra_headers + used, sizeof extra_headers - used, "%s\r\n", header) < (int)(sizeof extra_headers - used);
}

static int read_options(int argc, char **argv)
{
    static const struct option names[] = {{"port", 1, 0, 'p'},    {"path", 1, 0, 'u'},   {"connections", 1, 0, 'c'},
                                          {"seconds", 1, 0, 's'}, {"grace", 1, 0, 'g'},  {"max-requests", 1, 0, 'n'},
                                          {"body", 1, 0, 'b'},    {"events", 1, 0, 'e'}, {"header", 1, 0, 'h'},
                                          {"expect", 1, 0, 'x'},  {"delays", 0, 0, 'd'}, {0, 0, 0, 0}};
    int option;
    while ((option = getopt_long(argc, argv, "", names, NULL)) != -1)
        switch (option) {
        case 'p': settings.port = atoi(optarg); break;
        case 'u': settings.path = optarg; break;
        case 'c': settings.connections = atoi(optarg); break;
        case 's': settings.seconds = atof(optarg); break;
        case 'g': settings.grace = atof(optarg); break;
        case 'n': settings.max_requests = atol(optarg); break;
        case 'b': settings.body_file = optarg; break;
        case 'e': settings.events = atoi(optarg); break;
        case 'x': settings.expect = optarg; break;
        case 'd': settings.delays = true; break;
        case 'h':
            if (!add_header(optarg))
                return 0;
            break;
        default: return 0;
        }
    return settings.port > 0 && settings.body_file != NULL && settings.connections > 0 && settings.connections <= MAX_CONNECTIONS &&
           settings.seconds > 0 && settings.seconds <= 300 && settings.grace <= 120 && optind == argc;
}

int main(int argc, char **argv)
{
    if (!read_options(argc, argv)) {
        fprintf(stderr, "usage: loadgen --port N --connections N --seconds S --body FILE [--path P] [--events N]\n"
                        "               [--max-requests N] [--header 'K: v'] [--grace S] [--expect TEXT] [--delays]\n");
        return 64;
    }
    int status = build_request();
    if (status != 0)
        return status;
    signal(SIGPIPE, SIG_IGN);
    poller = epoll_create1(EPOLL_CLOEXEC);
    connections = calloc((size_t)settings.connections, sizeof *connections);
    for (int i = 0; i < settings.connections; i++)
        connections[i].fd = -1;
    run();
    print_totals((double)(now_ns() - window_start) / 1e9);
    return 0;
}
