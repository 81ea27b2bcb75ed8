/* upstream.c - an OpenAI-compatible upstream that is much faster than any proxy in front of it.
 *
 *   upstream PORT        (127.0.0.1 only; ends on SIGTERM)
 *
 *   GET  anything               a model list
 *   POST without "stream":true  one chat completion of about 1 KB, with Content-Length
 *   POST with "stream":true     a chunked event stream: N chat.completion.chunk events, then [DONE] in the write of the last
 *
 * N is the first number in the model name after "bench-" (bench-64, bench-200; 64 without one). A model name that ends in
 * "-paced" gets one event every 10 ms, otherwise they come as fast as they can be sent. Every event is one HTTP chunk and one
 * send(), and the running streams take turns, one event each, so that a proxy sees many small reads as from a real model and
 * not one big one. Each event carries "t=" and 18 digits of CLOCK_MONOTONIC nanoseconds, from which the load generator
 * computes how long the event was on its way.
 */
#define _GNU_SOURCE
#include <arpa/inet.h>
#include <errno.h>
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

enum { MAX_PEERS = 4096, EVENTS_PER_WAIT = 256, OUT_SIZE = 4096, IN_START = 16 << 10, IN_LIMIT = 16 << 20 };
static const int64_t PACE_NS = 10 * 1000 * 1000;

#define RESPONSE_HEADERS                                                                                               \
    "Date: Thu, 01 Jan 2026 00:00:00 GMT\r\nServer: bench-upstream\r\nx-request-id: req_0011223344556677\r\n"          \
    "openai-processing-ms: 5\r\nx-ratelimit-limit-requests: 100000\r\nx-ratelimit-remaining-requests: 99999\r\n"       \
    "Connection: keep-alive\r\n"

static const char STREAM_HEAD[] = "HTTP/1.1 200 OK\r\nContent-Type: text/event-stream; charset=utf-8\r\n"
                                  "Cache-Control: no-cache\r\n" RESPONSE_HEADERS "Transfer-Encoding: chunked\r\n\r\n";
static const char CHUNK_START[] =
    "data: {\"id\":\"chatcmpl-0011223344556677889900aa\",\"object\":\"chat.completion.chunk\",\"created\":1767225600,"
    "\"model\":\"bench\",\"service_tier\":\"default\",\"system_fingerprint\":\"fp_00112233\",\"choices\":[{\"index\":0,"
    "\"delta\":";
static const char MODELS[] = "{\"object\":\"list\",\"data\":[{\"id\":\"bench-64\",\"object\":\"model\",\"created\":1767225600,"
                             "\"owned_by\":\"bench\"}]}";

/* One client connection. `out` holds what the kernel has not taken yet; it never holds more than one response head and one
 * event, because the next event is made only when the last one has gone. */
struct peer {
    char *in;
    size_t in_length, in_size;
    char out[OUT_SIZE];
    size_t out_length, out_sent;
    int events_total, events_made;
    int64_t due_ns;
    bool open, streaming, paced, waiting_for_room, listed;
};

#define NO_STAMP "000000000000000000"
enum { STAMP_DIGITS = sizeof NO_STAMP - 1 };

/* A ready-made event; `stamp` is where the digits of its time go, 0 for none. */
struct chunk {
    char bytes[1200];
    size_t length, stamp;
};

static struct chunk first_chunk, middle_chunk, last_chunk;
static struct peer *peers[MAX_PEERS];
static int streams[MAX_PEERS], stream_count;
static int poller;
static char plain_response[OUT_SIZE], models_response[1024];
static size_t plain_length, models_length;

static int64_t now_ns(void)
{
    struct timespec now;
    clock_gettime(CLOCK_MONOTONIC, &now);
    return (int64_t)now.tv_sec * 1000000000 + now.tv_nsec;
}

static size_t with_head(char *into, size_t size, const char *body)
{
    return (size_t)snprintf(into, size,
                            "HTTP/1.1 200 OK\r\nContent-Type: application/json\r\n" RESPONSE_HEADERS
                            "Content-Length: %zu\r\n\r\n%s",
                            strlen(body), body);
}

static void build_responses(void)
{
    char text[704] = "", body[2048];
    while (strlen(text) < 580)
        strcat(text, "Every line ends in a socket and a plug decides where it goes. ");
    snprintf(body, sizeof body,
             "{\"id\":\"chatcmpl-0011223344556677889900aa\",\"object\":\"chat.completion\",\"created\":1767225600,"
             "\"model\":\"bench\",\"choices\":[{\"index\":0,\"message\":{\"role\":\"assistant\",\"content\":\"%s\","
             "\"refusal\":null},\"logprobs\":null,\"finish_reason\":\"stop\"}],\"usage\":{\"prompt_tokens\":170,"
             "\"completion_tokens\":140,\"total_tokens\":310},\"service_tier\":\"default\","
             "\"system_fingerprint\":\"fp_00112233\"}",
             text);
    plain_length = with_head(plain_response, sizeof plain_response, body);
    models_length = with_head(models_response, sizeof models_response, MODELS);
}

static void watch(int fd, int operation, uint32_t events)
{
    struct epoll_event event = {.events = events, .data.fd = fd};
    epoll_ctl(poller, operation, fd, &event);
}

static void hang_up(int fd)
{
    struct peer *peer = peers[fd];
    close(fd);
    peer->open = peer->streaming = false;
    peer->in_length = peer->out_length = peer->out_sent = 0;
}

/* Writes what is pending. True when nothing is left; false when the socket is full or lost (then the peer is closed). */
static bool drain(int fd)
{
    struct peer *peer = peers[fd];
    while (peer->out_sent < peer->out_length) {
        ssize_t taken = send(fd, peer->out + peer->out_sent, peer->out_length - peer->out_sent, MSG_NOSIGNAL);
        if (taken < 0 && errno == EAGAIN) {
            if (!peer->waiting_for_room)
                watch(fd, EPOLL_CTL_MOD, EPOLLIN | EPOLLOUT);
            peer->waiting_for_room = true;
            return false;
        }
        if (taken < 0) {
            hang_up(fd);
            return false;
        }
        peer->out_sent += (size_t)taken;
    }
    peer->out_length = peer->out_sent = 0;
    if (peer->waiting_for_room)
        watch(fd, EPOLL_CTL_MOD, EPOLLIN);
    peer->waiting_for_room = false;
    return true;
}

/* Makes one event as an HTTP chunk with zeros in the place of its time stamp. */
static void make_chunk(struct chunk *chunk, const char *delta, const char *rest, const char *after)
{
    char event[1024];
    int length = snprintf(event, sizeof event, "%s%s,\"logprobs\":null,%s", CHUNK_START, delta, rest);
    chunk->length = (size_t)snprintf(chunk->bytes, sizeof chunk->bytes, "%x\r\n%s\r\n%s", (unsigned)length, event, after);
    const char *stamp = strstr(chunk->bytes, "t=" NO_STAMP);
    chunk->stamp = stamp != NULL ? (size_t)(stamp - chunk->bytes) + 2 : 0;
}

static void build_chunks(void)
{
    static const char more[] = "\"finish_reason\":null}]}\n\n";
    make_chunk(&first_chunk, "{\"role\":\"assistant\",\"content\":\"t=" NO_STAMP "\"}", more, "");
    make_chunk(&middle_chunk, "{\"content\":\"t=" NO_STAMP "\"}", more, "");
    make_chunk(&last_chunk, "{}", "\"finish_reason\":\"stop\"}]}\n\ndata: [DONE]\n\n", "0\r\n\r\n");
}

static void append_event(struct peer *peer, int64_t now)
{
    const struct chunk *chunk = &middle_chunk;
    if (peer->events_made == 0)
        chunk = &first_chunk;
    else if (peer->events_made == peer->events_total - 1)
        chunk = &last_chunk;
    char *place = peer->out + peer->out_length;
    memcpy(place, chunk->bytes, chunk->length);
    if (chunk->stamp)
        for (int digit = STAMP_DIGITS - 1; digit >= 0; digit--, now /= 10)
            place[chunk->stamp + (size_t)digit] = (char)('0' + now % 10);
    peer->out_length += chunk->length;
    peer->events_made++;
}

/* Gives one stream its turn; false when it has ended. */
static bool take_turn(int fd, int64_t now)
{
    struct peer *peer = peers[fd];
    if (!peer->streaming)
        return false;
    if (peer->waiting_for_room || (peer->paced && now < peer->due_ns))
        return true;
    if (peer->events_made < peer->events_total) {
        append_event(peer, now);
        peer->due_ns += PACE_NS;
    }
    bool gone = drain(fd);
    if (gone && peer->events_made == peer->events_total)
        peer->streaming = false;
    return peer->streaming;
}

static const char *header_value(const char *head, size_t length, const char *name)
{
    size_t name_length = strlen(name);
    const char *end = head + length, *line = head;
    while ((line = memchr(line, '\n', (size_t)(end - line))) != NULL) {
        line++;
        if (line + name_length < end && line[name_length] == ':' && strncasecmp(line, name, name_length) == 0)
            return line + name_length + 1;
    }
    return NULL;
}

/* Length of the first request in the buffer with its body, 0 while it is incomplete. */
static size_t request_length(const struct peer *peer, size_t *head_length)
{
    const char *gap = memmem(peer->in, peer->in_length, "\r\n\r\n", 4);
    if (gap == NULL)
        return 0;
    *head_length = (size_t)(gap - peer->in) + 4;
    size_t total = *head_length;
    const char *value = header_value(peer->in, *head_length, "content-length");
    if (value != NULL) {
        total += strtoul(value, NULL, 10);
    } else if (header_value(peer->in, *head_length, "transfer-encoding") != NULL) {
        const char *last = memmem(gap + 2, peer->in_length - *head_length + 2, "\r\n0\r\n\r\n", 7);
        if (last == NULL)
            return 0;
        total = (size_t)(last - peer->in) + 7;
    }
    return total <= peer->in_length ? total : 0;
}

static void begin_stream(struct peer *peer, int fd, const char *body, size_t length, int64_t now)
{
    const char *model = memmem(body, length, "bench-", 6);
    peer->events_total = model != NULL ? atoi(model + 6) : 0;
    if (peer->events_total < 2 || peer->events_total > 100000)
        peer->events_total = 64;
    peer->paced = memmem(body, length, "-paced\"", 7) != NULL;
    peer->due_ns = now;
    peer->events_made = 0;
    peer->streaming = true;
    memcpy(peer->out, STREAM_HEAD, sizeof STREAM_HEAD - 1);
    peer->out_length = sizeof STREAM_HEAD - 1;
    if (!peer->listed) /* a closed peer's number may come back before its old entry has left the list */
        streams[stream_count++] = fd;
    peer->listed = true;
}

/* Answers the first complete request in the buffer; false when there is none or the peer is gone. */
static bool answer_one(int fd)
{
    struct peer *peer = peers[fd];
    size_t head_length = 0, total;
    if (!peer->open || peer->streaming || peer->out_length > 0 || (total = request_length(peer, &head_length)) == 0)
        return false;
    const char *body = peer->in + head_length;
    size_t body_length = total - head_length;
    bool is_get = memcmp(peer->in, "GET", 3) == 0;
    if (!is_get && (memmem(body, body_length, "\"stream\":true", 13) || memmem(body, body_length, "\"stream\": true", 14))) {
        begin_stream(peer, fd, body, body_length, now_ns());
    } else {
        peer->out_length = is_get ? models_length : plain_length;
        memcpy(peer->out, is_get ? models_response : plain_response, peer->out_length);
    }
    memmove(peer->in, peer->in + total, peer->in_length - total);
    peer->in_length -= total;
    return drain(fd);
}

static void accept_all(int listener)
{
    int fd, on = 1;
    while ((fd = accept4(listener, NULL, NULL, SOCK_NONBLOCK | SOCK_CLOEXEC)) >= 0) {
        if (fd >= MAX_PEERS) {
            close(fd);
            continue;
        }
        if (peers[fd] == NULL) {
            peers[fd] = calloc(1, sizeof(struct peer));
            peers[fd]->in_size = IN_START;
            peers[fd]->in = malloc(IN_START);
        }
        struct peer *peer = peers[fd];
        peer->open = true;
        peer->streaming = peer->waiting_for_room = false;
        peer->in_length = peer->out_length = peer->out_sent = 0;
        setsockopt(fd, IPPROTO_TCP, TCP_NODELAY, &on, sizeof on);
        watch(fd, EPOLL_CTL_ADD, EPOLLIN);
    }
}

static void read_from(int fd)
{
    struct peer *peer = peers[fd];
    if (peer->in_length == peer->in_size) {
        if (peer->in_size >= IN_LIMIT) {
            hang_up(fd);
            return;
        }
        peer->in_size *= 2;
        peer->in = realloc(peer->in, peer->in_size);
    }
    ssize_t got = recv(fd, peer->in + peer->in_length, peer->in_size - peer->in_length, 0);
    if (got == 0 || (got < 0 && errno != EAGAIN))
        hang_up(fd);
    else if (got > 0)
        peer->in_length += (size_t)got;
}

static void serve_turns(void)
{
    int64_t now = now_ns();
    for (int i = 0; i < stream_count;) {
        int fd = streams[i];
        if (take_turn(fd, now)) {
            i++;
            continue;
        }
        streams[i] = streams[--stream_count];
        peers[fd]->listed = false;
        while (answer_one(fd))
            ;
    }
}

/* How long epoll may sleep: not at all while a stream can send, to the next beat while all are paced, else for ever. */
static int patience_ms(void)
{
    int patience = -1;
    int64_t now = stream_count ? now_ns() : 0;
    for (int i = 0; i < stream_count; i++) {
        struct peer *peer = peers[streams[i]];
        if (peer->waiting_for_room)
            continue;
        if (!peer->paced || peer->due_ns <= now || !peer->streaming)
            return 0;
        int wait = (int)((peer->due_ns - now + 999999) / 1000000);
        if (patience < 0 || wait < patience)
            patience = wait;
    }
    return patience;
}

static int listen_on(int port)
{
    int on = 1, listener = socket(AF_INET, SOCK_STREAM | SOCK_NONBLOCK | SOCK_CLOEXEC, 0);
    setsockopt(listener, SOL_SOCKET, SO_REUSEADDR, &on, sizeof on);
    struct sockaddr_in address = {.sin_family = AF_INET, .sin_port = htons((uint16_t)port)};
    address.sin_addr.s_addr = htonl(INADDR_LOOPBACK);
    if (bind(listener, (struct sockaddr *)&address, sizeof address) != 0 || listen(listener, 1024) != 0) {
        perror("upstream: bind");
        exit(1);
    }
    return listener;
}

int main(int argc, char **argv)
{
    if (argc != 2) {
        fprintf(stderr, "usage: upstream PORT\n");
        return 64;
    }
    signal(SIGPIPE, SIG_IGN);
    build_responses();
    build_chunks();
    int listener = listen_on(atoi(argv[1]));
    poller = epoll_create1(EPOLL_CLOEXEC);
    watch(listener, EPOLL_CTL_ADD, EPOLLIN);
    struct epoll_event ready[EVENTS_PER_WAIT];
    for (;;) {
        int count = epoll_wait(poller, ready, EVENTS_PER_WAIT, patience_ms());
        for (int i = 0; i < count; i++) {
            int fd = ready[i].data.fd;
            if (fd == listener) {
                accept_all(listener);
                continue;
            }
            if (!peers[fd]->open)
                continue;
            if (ready[i].events & (EPOLLIN | EPOLLHUP | EPOLLERR))
                read_from(fd);
            if (peers[fd]->open && (ready[i].events & EPOLLOUT))
                drain(fd);
            while (answer_one(fd))
                ;
        }
        serve_turns();
    }
}
