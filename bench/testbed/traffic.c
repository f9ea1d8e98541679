/*
 * Throughput and round trips of small UDP datagrams.
 *
 *   traffic serve PORT                  answer requests and count a flood's datagrams, until killed
 *   traffic flood IP PORT MS LENGTH     send as fast as possible; prints "SENT RECEIVED NS CPU_NS":
 *                                       RECEIVED and NS as the server saw them, CPU_NS the sender's
 *   traffic ask IP PORT COUNT LENGTH    send requests one after the other; prints each round trip in
 *                                       microseconds
 *
 * LENGTH is the payload in bytes. Requests without a response within a second are left out. Exit
 * status 1 and a line on stderr when the server does not answer at all.
 */
#define _GNU_SOURCE
#include <arpa/inet.h>
#include <errno.h>
#include <inttypes.h>
#include <stdbool.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <sys/socket.h>
#include <sys/time.h>
#include <time.h>
#include <unistd.h>

enum { BATCH = 32, LONGEST = 1472, BUFFER = 4 << 20, TRIES = 100 };
enum kind { DATA, ECHO, RESET, COUNTS };

struct datagram {
    uint64_t kind, number, received, ns;
};

_Static_assert(sizeof(struct datagram) == 32, "the shortest payload");

static struct mmsghdr batch[BATCH];
static struct iovec parts[BATCH];
static struct sockaddr_in from[BATCH];
static char data[BATCH][LONGEST] __attribute__((aligned(8)));

static void fail(const char *what)
{
    fprintf(stderr, "traffic: %s: %s\n", what, strerror(errno));
    exit(1);
}

static uint64_t clock_ns(clockid_t clock)
{
    struct timespec t;
    clock_gettime(clock, &t);
    return (uint64_t)t.tv_sec * 1000000000 + (uint64_t)t.tv_nsec;
}

static uint64_t now(void)
{
    return clock_ns(CLOCK_MONOTONIC);
}

static void prepare(size_t length, bool with_from)
{
    for (int i = 0; i < BATCH; i++) {
        parts[i] = (struct iovec){data[i], length};
        batch[i].msg_hdr = (struct msghdr){.msg_iov = &parts[i], .msg_iovlen = 1};
        if (with_from) {
            batch[i].msg_hdr.msg_name = &from[i];
            batch[i].msg_hdr.msg_namelen = sizeof from[i];
        }
    }
}

static int udp(void)
{
    int s = socket(AF_INET, SOCK_DGRAM | SOCK_CLOEXEC, 0), size = BUFFER;
    if (s < 0)
        fail("socket");
    /* A large buffer: datagrams must not be lost because this process is not scheduled. */
    setsockopt(s, SOL_SOCKET, SO_RCVBUFFORCE, &size, sizeof size);
    return s;
}

static void serve(uint16_t port)
{
    struct sockaddr_in any = {.sin_family = AF_INET, .sin_port = htons(port)};
    uint64_t received = 0, first = 0, last = 0;
    int s = udp();
    if (bind(s, (struct sockaddr *)&any, sizeof any))
        fail("bind");
    for (;;) {
        prepare(LONGEST, true);
        int n = recvmmsg(s, batch, BATCH, MSG_WAITFORONE, NULL);
        if (n < 0)
            fail("receive");
        uint64_t time = now();
        for (int i = 0; i < n; i++) {
            struct datagram *d = (struct datagram *)data[i];
            if (batch[i].msg_len < sizeof *d)
                continue;
            if (d->kind == DATA) {
                if (!received++)
                    first = time;
                last = time;
                continue;
            }
            if (d->kind == RESET)
                received = first = last = 0;
            d->received = received;
            d->ns = last - first;
            sendto(s, d, batch[i].msg_len, 0, (struct sockaddr *)&from[i], sizeof from[i]);
        }
    }
}

/* Send a request and overwrite it with its response; false when none comes in time. */
static bool exchange(int s, struct datagram *request, size_t length)
{
    char reply[LONGEST] __attribute__((aligned(8)));
    struct datagram *d = (struct datagram *)reply;
    if (send(s, request, length, 0) < 0)
        return false;
    for (;;) {
        ssize_t n = recv(s, reply, sizeof reply, 0);
        if (n < (ssize_t)sizeof *d)
            return false;
        if (d->kind == request->kind && d->number == request->number)
            break;
    }
    *request = *d;
    return true;
}

static void set_timeout(int s, long microseconds)
{
    struct timeval limit = {microseconds / 1000000, microseconds % 1000000};
    setsockopt(s, SOL_SOCKET, SO_RCVTIMEO, &limit, sizeof limit);
}

static struct datagram exchange_with_retry(int s, enum kind kind)
{
    struct datagram d = {.kind = kind};
    set_timeout(s, 50000);
    while (d.number++ < TRIES) {
        if (exchange(s, &d, sizeof d))
            return d;
        if (errno == ECONNREFUSED)
            usleep(20000);
    }
    fail("the server does not answer");
    return d;
}

static int client(const char *ip, uint16_t port)
{
    struct sockaddr_in to = {.sin_family = AF_INET, .sin_port = htons(port)};
    int s = udp();
    if (inet_pton(AF_INET, ip, &to.sin_addr) != 1)
        fail(ip);
    if (connect(s, (struct sockaddr *)&to, sizeof to))
        fail("connect");
    exchange_with_retry(s, RESET);
    return s;
}

static void flood(int s, uint64_t ms, size_t length)
{
    uint64_t sent = 0, end = now() + ms * 1000000, cpu = clock_ns(CLOCK_PROCESS_CPUTIME_ID);
    prepare(length, false);
    while (now() < end) {
        int n = sendmmsg(s, batch, BATCH, 0);
        if (n < 0 && errno != ENOBUFS)
            fail("send");
        if (n > 0)
            sent += (unsigned)n;
    }
    cpu = clock_ns(CLOCK_PROCESS_CPUTIME_ID) - cpu;
    struct datagram d = exchange_with_retry(s, COUNTS);
    printf("%" PRIu64 " %" PRIu64 " %" PRIu64 " %" PRIu64 "\n", sent, d.received, d.ns, cpu);
}

static void ask(int s, uint64_t count, size_t length)
{
    struct datagram *d = (struct datagram *)data[0];
    set_timeout(s, 1000000);
    for (uint64_t i = 0; i < count; i++) {
        *d = (struct datagram){.kind = ECHO, .number = i};
        uint64_t start = now();
        if (exchange(s, d, length))
            printf("%.1f\n", (double)(now() - start) / 1000);
    }
}

int main(int argc, char **argv)
{
    const char *verb = argc > 1 ? argv[1] : "";
    if (!strcmp(verb, "serve") && argc == 3)
        serve((uint16_t)atoi(argv[2]));
    size_t length = argc == 6 ? strtoul(argv[5], NULL, 10) : 0;
    bool floods = !strcmp(verb, "flood");
    if ((!floods && strcmp(verb, "ask")) || length < sizeof(struct datagram) || length > LONGEST) {
        fprintf(stderr, "traffic: flood IP PORT MS LENGTH, or ask IP PORT COUNT LENGTH (32-1472)\n");
        return 2;
    }
    int s = client(argv[2], (uint16_t)atoi(argv[3]));
    uint64_t amount = strtoull(argv[4], NULL, 10);
    if (floods)
        flood(s, amount, length);
    else
        ask(s, amount, length);
    return 0;
}
