/*
 * vmlink, the CNI plugin that a container runtime executes: it hands its environment, its stdin and
 * the opened network namespace to vmlinkd and prints the answer. cni/wire.py is the reference for
 * the wire format, the limits and the queue of DELs.
 *
 * VMLINK_SOCKET   where vmlinkd listens, at most 107 bytes
 * VMLINK_TIMEOUT  seconds for everything, 1 to 600
 */
#define _GNU_SOURCE
#include <dirent.h>
#include <endian.h>
#include <errno.h>
#include <fcntl.h>
#include <poll.h>
#include <signal.h>
#include <stdarg.h>
#include <stdbool.h>
#include <stdint.h>
#include <stdio.h>
#include <stdlib.h>
#include <stdnoreturn.h>
#include <string.h>
#include <sys/file.h>
#include <sys/socket.h>
#include <sys/stat.h>
#include <sys/uio.h>
#include <sys/un.h>
#include <time.h>
#include <unistd.h>

#define VERSIONS(separator) "0.3.1" separator "0.4.0" separator "1.0.0" separator "1.1.0"
#define MAGIC "VML1"

enum { HEADER = 8, ENV_MAX = 64 << 10, STDIN_MAX = 1 << 20, ANSWER_MAX = 4 << 20 };
enum { QUEUE_MAX = 4096, MESSAGE_MAX = 512 };
enum { UNKNOWN_CONTAINER = 3, BAD_ENVIRONMENT, IO_FAILURE, CANNOT_DECODE };
enum { TRY_AGAIN = 11, NOT_READY = 50 };

typedef char Json[6 * MESSAGE_MAX + 128];

static char version[16] = "1.1.0";
static struct sockaddr_un vmlinkd = {.sun_family = AF_UNIX};
static _Atomic(const char *) late; /* what the deadline prints: complete at any moment */

static bool is(const char *one, const char *other)
{
    return strcmp(one, other) == 0;
}

/* After a failed read or write: true when it is worth another try. Our ends may be O_NONBLOCK. */
static bool passing(int fd, short event)
{
    if (errno == EAGAIN)
        return poll(&(struct pollfd){.fd = fd, .events = event}, 1, -1) >= 0 || errno == EINTR;
    return errno == EINTR;
}

static bool write_all(int fd, const char *data, size_t size)
{
    while (size > 0) {
        ssize_t n = write(fd, data, size);
        if (n < 0 && !passing(fd, POLLOUT))
            return false;
        if (n > 0)
            data += n, size -= (size_t)n;
    }
    return true;
}

/* Reads to the end of file or to `size` bytes; returns the count, -1 on errors. */
static ssize_t read_all(int fd, char *data, size_t size)
{
    size_t done = 0;
    while (done < size) {
        ssize_t n = read(fd, data + done, size - done);
        if (n == 0)
            break;
        if (n < 0 && !passing(fd, POLLIN))
            return -1;
        if (n > 0)
            done += (size_t)n;
    }
    return (ssize_t)done;
}

static noreturn void finish(int code, const char *body, size_t size)
{
    alarm(0); /* or its message could follow a part of ours */
    _exit(write_all(STDOUT_FILENO, body, size) ? code : IO_FAILURE);
}

__attribute__((format(printf, 3, 0)))
static void render(char *out, int code, const char *format, va_list values)
{
    char msg[MESSAGE_MAX];
    vsnprintf(msg, sizeof msg, format, values);
    out += sprintf(out, "{\"cniVersion\":\"%s\",\"code\":%d,\"msg\":\"", version, code);
    for (const unsigned char *c = (const void *)msg; *c; c++) {
        bool plain = *c >= ' ' && *c <= '~' && *c != '"' && *c != '\\'; /* a path may not be UTF-8 */
        out += sprintf(out, plain ? "%c" : "\\u%04x", *c);
    }
    strcpy(out, "\",\"details\":\"\"}\n");
}

__attribute__((format(printf, 2, 3)))
static noreturn void fail(int code, const char *format, ...)
{
    static Json json; /* static, so that this also works without memory */
    va_list values;
    va_start(values, format);
    render(json, code, format, values);
    va_end(values);
    finish(code, json, strlen(json));
}

__attribute__((format(printf, 2, 3)))
static void when_late(char *json, const char *format, ...)
{
    va_list values;
    va_start(values, format);
    render(json, TRY_AGAIN, format, values);
    va_end(values);
    late = json;
}

static void on_deadline(int signal)
{
    (void)signal;
    write_all(STDOUT_FILENO, late, strlen(late));
    _exit(TRY_AGAIN);
}

static const char *setting(const char *name, const char *fallback)
{
    const char *value = getenv(name);
    return value && *value ? value : fallback;
}

static long start_deadline(void)
{
    static Json json;
    char *end;
    long seconds = strtol(setting("VMLINK_TIMEOUT", "60"), &end, 10);
    if (*end || seconds < 1 || seconds > 600)
        fail(BAD_ENVIRONMENT, "VMLINK_TIMEOUT must be a whole number of seconds, 1 to 600");
    when_late(json, "stdin did not end within %ld s (VMLINK_TIMEOUT)", seconds);
    struct sigaction action = {.sa_handler = on_deadline};
    sigaction(SIGALRM, &action, NULL);
    sigset_t alarms; /* a blocked signal stays blocked across exec */
    sigemptyset(&alarms);
    sigaddset(&alarms, SIGALRM);
    sigprocmask(SIG_UNBLOCK, &alarms, NULL);
    alarm((unsigned)seconds);
    return seconds;
}

/* A scan and no JSON parser: vmlinkd judges the config, this only words our own answers. */
static void find_version(const char *config, size_t size)
{
    static const char key[] = "\"cniVersion\"";
    const char *end = config + size, *at = memmem(config, size, key, sizeof key - 1);
    if (!at)
        return;
    bool colon = false;
    for (at += sizeof key - 1; at < end && (strchr(" \t\r\n", *at) || (*at == ':' && !colon)); at++)
        colon |= *at == ':';
    if (!colon || at == end || *at++ != '"')
        return;
    size_t digits = 0;
    while (at + digits < end && at[digits] && strchr("0123456789.", at[digits]))
        digits++;
    if (digits > 0 && digits < sizeof version && at + digits < end && at[digits] == '"')
        memcpy(version, at, digits), version[digits] = '\0';
}

static size_t read_config(char *config)
{
    ssize_t size = read_all(STDIN_FILENO, config, STDIN_MAX + 1);
    if (size < 0)
        fail(IO_FAILURE, "cannot read stdin: %s", strerror(errno));
    find_version(config, (size_t)size);
    if (size > STDIN_MAX)
        fail(CANNOT_DECODE, "stdin has more than %d bytes", STDIN_MAX);
    return (size_t)size;
}

static noreturn void print_version(void)
{
    char body[160];
    int size = sprintf(body, "{\"cniVersion\":\"%s\",\"supportedVersions\":[\"%s\"]}\n", version,
                       VERSIONS("\",\""));
    finish(0, body, (size_t)size);
}

static void find_vmlinkd(void)
{
    const char *path = setting("VMLINK_SOCKET", "/run/vmlink/vmlinkd.sock");
    size_t size = strlen(path), limit = sizeof vmlinkd.sun_path - 1;
    if (size > limit)
        fail(BAD_ENVIRONMENT, "VMLINK_SOCKET has %zu bytes, a socket path at most %zu", size, limit);
    strcpy(vmlinkd.sun_path, path);
}

static bool is_sent(const char *variable)
{
    return (strncmp(variable, "CNI_", 4) == 0 && strchr(variable, '=')) ||
           strncmp(variable, "TRACEPARENT=", 12) == 0 ||
           strncmp(variable, "TRACESTATE=", 11) == 0 || strncmp(variable, "BAGGAGE=", 8) == 0;
}

/* Writes header and environment right before the config, where ENV_MAX + HEADER bytes are free. */
static struct iovec frame(char *config, size_t config_size)
{
    size_t env_size = 1;
    for (char **variable = environ; *variable; variable++)
        if (is_sent(*variable))
            env_size += strlen(*variable) + 1;
    if (env_size > ENV_MAX)
        fail(BAD_ENVIRONMENT, "the CNI_* variables have more than %d bytes", ENV_MAX);
    char *next = config - env_size, *start = next - HEADER;
    for (char **variable = environ; *variable; variable++)
        if (is_sent(*variable))
            next = stpcpy(next, *variable) + 1;
    *next = '\0';
    uint32_t size = htole32((uint32_t)(env_size + config_size));
    memcpy(start, MAGIC, 4);
    memcpy(start + 4, &size, 4);
    return (struct iovec){start, HEADER + env_size + config_size};
}

/* Returns the connection, or -1 when nobody listens. */
static int connect_vmlinkd(void)
{
    int rc, conn = socket(AF_UNIX, SOCK_STREAM | SOCK_CLOEXEC, 0);
    if (conn < 0)
        fail(TRY_AGAIN, "cannot make a socket: %s", strerror(errno));
    do
        rc = connect(conn, (struct sockaddr *)&vmlinkd, sizeof vmlinkd);
    while (rc < 0 && errno == EINTR);
    if (rc == 0)
        return conn;
    if (errno != ENOENT && errno != ECONNREFUSED)
        fail(IO_FAILURE, "cannot connect to %s: %s", vmlinkd.sun_path, strerror(errno));
    close(conn);
    return -1;
}

static noreturn void cannot_queue(int error)
{
    fail(TRY_AGAIN, "vmlinkd does not listen at %s and the DEL cannot be queued: %s",
         vmlinkd.sun_path, strerror(error));
}

static void require_names(void)
{
    const char *id = getenv("CNI_CONTAINERID"), *ifname = setting("CNI_IFNAME", NULL);
    if (!id || !ifname)
        fail(BAD_ENVIRONMENT, "missing:%s%s", id ? "" : " CNI_CONTAINERID",
             ifname ? "" : " CNI_IFNAME");
    if (!*id)
        fail(UNKNOWN_CONTAINER, "CNI_CONTAINERID is empty");
}

static int open_queue(void)
{
    char path[sizeof vmlinkd.sun_path + sizeof "./queue"];
    const char *slash = strrchr(vmlinkd.sun_path, '/');
    int parent = slash ? (int)(slash - vmlinkd.sun_path) : 1;
    snprintf(path, sizeof path, "%.*s/queue", parent, slash ? vmlinkd.sun_path : ".");
    for (char *end = path + 1; (end = strchr(end, '/')); *end++ = '/') {
        *end = '\0';
        mkdir(path, 0700); /* a failure shows when the queue is opened */
    }
    mkdir(path, 0700);
    int queue = open(path, O_RDONLY | O_DIRECTORY | O_CLOEXEC);
    if (queue < 0)
        cannot_queue(errno);
    return queue;
}

static int lock_shared(int queue)
{
    int lock = openat(queue, "lock", O_RDWR | O_CREAT | O_CLOEXEC, 0600);
    while (lock >= 0 && flock(lock, LOCK_SH) < 0)
        if (errno != EINTR)
            cannot_queue(errno);
    if (lock < 0)
        cannot_queue(errno);
    return lock;
}

static int count_queued(int queue)
{
    int count = 0, copy = openat(queue, ".", O_RDONLY | O_DIRECTORY | O_CLOEXEC);
    DIR *entries = copy < 0 ? NULL : fdopendir(copy);
    if (!entries)
        cannot_queue(errno);
    for (struct dirent *entry; (entry = readdir(entries));) {
        const char *dot = strrchr(entry->d_name, '.');
        count += dot && is(dot, ".del");
    }
    closedir(entries);
    return count;
}

static void store(int queue, const char *payload, size_t size)
{
    if (count_queued(queue) >= QUEUE_MAX)
        fail(TRY_AGAIN, "vmlinkd does not listen at %s and %d DELs are queued already",
             vmlinkd.sun_path, QUEUE_MAX);
    char name[64], temporary[64];
    struct timespec now;
    clock_gettime(CLOCK_REALTIME, &now);
    long long stamp = now.tv_sec * 1000000000LL + now.tv_nsec;
    snprintf(name, sizeof name, "%019lld-%ld.del", stamp, (long)getpid());
    snprintf(temporary, sizeof temporary, "%019lld-%ld.tmp", stamp, (long)getpid());
    int file = openat(queue, temporary, O_WRONLY | O_CREAT | O_EXCL | O_CLOEXEC, 0600);
    if (file < 0)
        cannot_queue(errno);
    if (!write_all(file, payload, size) || close(file) < 0 ||
        renameat(queue, temporary, queue, name) < 0) {
        int error = errno;
        unlinkat(queue, temporary, 0);
        cannot_queue(error);
    }
}

/* vmlinkd holds the lock exclusively from replay to listen(), so look again once we have it. */
static int connect_or_queue(const struct iovec *request)
{
    require_names();
    int queue = open_queue(), lock = lock_shared(queue), conn = connect_vmlinkd();
    if (conn < 0) {
        store(queue, (char *)request->iov_base + HEADER, request->iov_len - HEADER);
        finish(0, "", 0);
    }
    close(lock);
    close(queue);
    return conn;
}

static noreturn void nobody_listens(const char *verb)
{
    if (is(verb, "ADD") || is(verb, "CHECK") || is(verb, "GC"))
        fail(TRY_AGAIN, "vmlinkd does not listen at %s", vmlinkd.sun_path);
    if (is(verb, "STATUS"))
        fail(NOT_READY, "vmlinkd does not listen at %s", vmlinkd.sun_path);
    fail(BAD_ENVIRONMENT, "CNI_COMMAND %.32s is unknown", verb);
}

/* Sends with the first bytes the namespace, if it opens; vmlinkd judges what is missing. */
static void send_request(int conn, struct iovec request)
{
    union { struct cmsghdr align; char room[CMSG_SPACE(sizeof(int))]; } rights = {0};
    struct msghdr message = {.msg_iov = &request, .msg_iovlen = 1};
    int netns = open(setting("CNI_NETNS", ""), O_RDONLY | O_CLOEXEC | O_NONBLOCK);
    if (netns >= 0) {
        message.msg_control = &rights, message.msg_controllen = sizeof rights.room;
        struct cmsghdr *header = CMSG_FIRSTHDR(&message);
        header->cmsg_level = SOL_SOCKET, header->cmsg_type = SCM_RIGHTS;
        header->cmsg_len = CMSG_LEN(sizeof(int));
        memcpy(CMSG_DATA(header), &netns, sizeof netns);
    }
    while (request.iov_len > 0) {
        ssize_t n = sendmsg(conn, &message, 0);
        if (n < 0 && (errno == EPIPE || errno == ECONNRESET))
            return; /* a refusal may have arrived before we were through */
        if (n < 0 && errno != EINTR)
            fail(TRY_AGAIN, "cannot send to %s: %s", vmlinkd.sun_path, strerror(errno));
        if (n > 0) {
            request.iov_base = (char *)request.iov_base + n, request.iov_len -= (size_t)n;
            message.msg_control = NULL, message.msg_controllen = 0;
        }
    }
}

static void receive(int conn, void *data, size_t size)
{
    ssize_t n = read_all(conn, data, size);
    if (n < 0)
        fail(TRY_AGAIN, "cannot receive from %s: %s", vmlinkd.sun_path, strerror(errno));
    if ((size_t)n < size)
        fail(TRY_AGAIN, "vmlinkd at %s hung up before its answer ended", vmlinkd.sun_path);
}

static noreturn void relay_answer(int conn)
{
    struct { char magic[4]; uint32_t code, size; } header;
    receive(conn, &header, sizeof header);
    uint32_t code = le32toh(header.code), size = le32toh(header.size);
    if (memcmp(header.magic, MAGIC, 4) != 0 || size > ANSWER_MAX)
        fail(TRY_AGAIN, "who listens at %s does not speak " MAGIC, vmlinkd.sun_path);
    char *body = malloc(size + 1); /* one more: malloc(0) may be NULL */
    if (!body)
        fail(TRY_AGAIN, "no memory for an answer of %u bytes", size);
    receive(conn, body, size);
    finish(code < 256 ? (int)code : 255, body, size); /* exit(256) would mean success */
}

int main(void)
{
    static Json json;
    const char *verb = getenv("CNI_COMMAND");
    if (!verb) {
        dprintf(STDERR_FILENO, "vmlink: CNI plugin %s, versions %s\n", VMLINK_VERSION, VERSIONS(", "));
        return 0;
    }
    signal(SIGPIPE, SIG_IGN);
    long seconds = start_deadline();
    char *memory = malloc(HEADER + ENV_MAX + STDIN_MAX + 1);
    if (!memory)
        fail(TRY_AGAIN, "no memory for the request");
    char *config = memory + HEADER + ENV_MAX;
    size_t size = read_config(config);
    if (is(verb, "VERSION"))
        print_version();
    find_vmlinkd();
    when_late(json, "no answer from %s within %ld s (VMLINK_TIMEOUT)", vmlinkd.sun_path, seconds);
    struct iovec request = frame(config, size);
    int conn = connect_vmlinkd();
    if (conn < 0 && !is(verb, "DEL"))
        nobody_listens(verb);
    if (conn < 0)
        conn = connect_or_queue(&request);
    send_request(conn, request);
    relay_answer(conn);
}
