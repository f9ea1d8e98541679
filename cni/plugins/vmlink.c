/*
 * vmlink, the CNI plugin that a container runtime executes. It sends its environment, its stdin and
 * the opened network namespace to vmlinkd and prints the answer. The framing, the limits and the
 * queue of DELs are described in cni/spec/protocol.py.
 *
 * VMLINK_SOCKET   where vmlinkd listens, at most 107 bytes (/run/vmlink/vmlinkd.sock)
 * VMLINK_TIMEOUT  seconds for everything, 1 to 600 (60)
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
#include <string.h>
#include <sys/file.h>
#include <sys/socket.h>
#include <sys/stat.h>
#include <sys/un.h>
#include <time.h>
#include <unistd.h>

#define VERSIONS(separator) "0.3.1" separator "0.4.0" separator "1.0.0" separator "1.1.0"
#define ERROR(version, code, msg) \
    "{\"cniVersion\":\"" version "\",\"code\":" code ",\"msg\":\"" msg "\",\"details\":\"\"}\n"
#define SUPPORTED \
    "{\"cniVersion\":\"%s\",\"supportedVersions\":[\"" VERSIONS("\",\"") "\"]}\n"
#define MAGIC "VML1"

enum { HEADER = 8, ENV_MAX = 64 << 10, STDIN_MAX = 1 << 20, ANSWER_MAX = 4 << 20 };
enum { UNKNOWN_CONTAINER = 3, BAD_ENVIRONMENT, IO_FAILURE, CANNOT_DECODE };
enum { TRY_AGAIN = 11, NOT_READY = 50, QUEUE_MAX = 4096 };

struct request {
    char magic[4];
    uint32_t size;
    char payload[ENV_MAX + STDIN_MAX + 2]; /* 2: a byte too many is noticed, and a NUL ends it */
};

static char version[16] = "1.1.0";
static struct sockaddr_un vmlinkd = {.sun_family = AF_UNIX};
static char where[6 * sizeof vmlinkd.sun_path]; /* its path, escaped for JSON */
/* What the deadline prints. A signal handler reads it, so it is a complete answer at any moment. */
static _Atomic(const char *) late =
    ERROR("1.1.0", "11", "stdin was not closed within VMLINK_TIMEOUT; the runtime must close it");

static bool is(const char *one, const char *other)
{
    return strcmp(one, other) == 0;
}

/* Reads or writes `size` bytes, fewer only at the end of file; returns the count, -1 on errors.
 * stdin and stdout may be O_NONBLOCK. EINTR cannot occur: the one signal handler never returns. */
static ssize_t transfer(short way, int fd, char *data, size_t size)
{
    size_t done = 0;
    while (done < size) {
        ssize_t n = way == POLLIN ? read(fd, data + done, size - done)
                                  : write(fd, data + done, size - done);
        if (n == 0)
            break;
        if (n > 0)
            done += (size_t)n;
        else if (errno != EAGAIN || poll(&(struct pollfd){fd, way, 0}, 1, -1) < 0)
            return -1;
    }
    return (ssize_t)done;
}

static _Noreturn void finish(int code, const char *body, size_t size)
{
    alarm(0); /* its message must not follow a part of this one */
    _exit(transfer(POLLOUT, STDOUT_FILENO, (char *)body, size) < 0 ? IO_FAILURE : code);
}

/* Prints an error and exits. Values must not need escaping in JSON: use `where` for the path. */
__attribute__((format(printf, 2, 3)))
static _Noreturn void fail(int code, const char *format, ...)
{
    char msg[sizeof where + 256], json[sizeof msg + 128];
    va_list values;
    va_start(values, format);
    vsnprintf(msg, sizeof msg, format, values);
    va_end(values);
    finish(code, json, (size_t)sprintf(json, ERROR("%s", "%d", "%s"), version, code, msg));
}

static void on_deadline(int signal)
{
    (void)signal;
    finish(TRY_AGAIN, late, strlen(late));
}

static const char *setting(const char *name, const char *fallback)
{
    const char *value = getenv(name);
    return value && *value ? value : fallback;
}

static long start_deadline(void)
{
    char *end;
    long seconds = strtol(setting("VMLINK_TIMEOUT", "60"), &end, 10);
    if (*end || seconds < 1 || seconds > 600)
        fail(BAD_ENVIRONMENT, "VMLINK_TIMEOUT must be a whole number of seconds, 1 to 600");
    struct sigaction action = {.sa_handler = on_deadline};
    sigaddset(&action.sa_mask, SIGALRM);
    sigaction(SIGALRM, &action, NULL);
    sigprocmask(SIG_UNBLOCK, &action.sa_mask, NULL); /* the runtime may have blocked it */
    alarm((unsigned)seconds);
    return seconds;
}

/* Reads stdin to its end. The version, which is only for this program's own errors, is searched
 * for without a JSON parser; vmlinkd validates it. No ADD had a configuration that is too large, so
 * a DEL goes without. */
static size_t read_config(char *config, bool needed)
{
    char digits[sizeof version], quote;
    ssize_t size = transfer(POLLIN, STDIN_FILENO, config, STDIN_MAX + 1);
    if (size < 0)
        fail(IO_FAILURE, "cannot read stdin: %s", strerror(errno));
    config[size] = '\0';
    const char *at = strstr(config, "\"cniVersion\"");
    if (at && sscanf(at, "\"cniVersion\" : \"%15[0-9.]%c", digits, &quote) == 2 && quote == '"')
        strcpy(version, digits);
    if (size > STDIN_MAX && !needed)
        return 0;
    if (size > STDIN_MAX)
        fail(CANNOT_DECODE, "stdin has more than %d bytes; make the network configuration smaller",
             STDIN_MAX);
    return (size_t)size;
}

static void find_vmlinkd(void)
{
    const char *path = setting("VMLINK_SOCKET", "/run/vmlink/vmlinkd.sock");
    if (strlen(path) >= sizeof vmlinkd.sun_path)
        fail(BAD_ENVIRONMENT, "VMLINK_SOCKET has %zu bytes; use a path of at most 107",
             strlen(path));
    strcpy(vmlinkd.sun_path, path);
    char *out = where;
    for (const unsigned char *c = (const void *)path; *c; c++) {
        bool plain = *c >= ' ' && *c <= '~' && *c != '"' && *c != '\\'; /* it may not be UTF-8 */
        out += sprintf(out, plain ? "%c" : "\\u%04x", *c);
    }
}

static bool is_sent(const char *variable)
{
    return (strncmp(variable, "CNI_", 4) == 0 && strchr(variable, '=')) ||
           strncmp(variable, "TRACEPARENT=", 12) == 0 ||
           strncmp(variable, "TRACESTATE=", 11) == 0 || strncmp(variable, "BAGGAGE=", 8) == 0;
}

/* Writes the environment to the start of the payload and moves the config, which was read to
 * ENV_MAX, up to it; returns the payload's size. */
static size_t frame(struct request *request, size_t config_size)
{
    char *next = request->payload, *config = next + ENV_MAX;
    for (char **variable = environ; *variable; variable++) {
        if (!is_sent(*variable))
            continue;
        if (strlen(*variable) + 2 > (size_t)(config - next))
            fail(BAD_ENVIRONMENT, "the CNI_* variables have more than %d bytes; shorten them",
                 ENV_MAX);
        next = stpcpy(next, *variable) + 1;
    }
    *next++ = '\0';
    memmove(next, config, config_size);
    size_t size = (size_t)(next - request->payload) + config_size;
    memcpy(request->magic, MAGIC, sizeof request->magic);
    request->size = htole32((uint32_t)size);
    return size;
}

/* Returns the connection, or -1 when vmlinkd does not listen. */
static int connect_vmlinkd(void)
{
    int conn = socket(AF_UNIX, SOCK_STREAM | SOCK_CLOEXEC, 0);
    if (conn < 0)
        fail(TRY_AGAIN, "cannot make a socket: %s", strerror(errno));
    if (connect(conn, (struct sockaddr *)&vmlinkd, sizeof vmlinkd) == 0)
        return conn;
    if (errno != ENOENT && errno != ECONNREFUSED)
        fail(IO_FAILURE, "cannot connect to %s: %s", where, strerror(errno));
    close(conn);
    return -1;
}

static _Noreturn void nobody_listens(const char *verb)
{
    bool status = is(verb, "STATUS");
    if (!status && !is(verb, "ADD") && !is(verb, "CHECK") && !is(verb, "GC"))
        fail(BAD_ENVIRONMENT, "CNI_COMMAND must be ADD, DEL, CHECK, GC, STATUS or VERSION");
    fail(status ? NOT_READY : TRY_AGAIN, "vmlinkd does not listen at %s; start vmlinkd.socket",
         where);
}

static _Noreturn void cannot_queue(const char *why)
{
    fail(TRY_AGAIN, "vmlinkd does not listen at %s and the DEL cannot be queued: %s", where, why);
}

static DIR *open_queue(void)
{
    char path[sizeof vmlinkd.sun_path + sizeof "queue/"], *slash = strrchr(vmlinkd.sun_path, '/');
    int parent = slash ? (int)(slash + 1 - vmlinkd.sun_path) : 0;
    sprintf(path, "%.*squeue/", parent, vmlinkd.sun_path);
    for (char *end = path; (end = strchr(end + 1, '/')); *end = '/') {
        *end = '\0';
        mkdir(path, 0700); /* if it fails, so does opendir() below */
    }
    return opendir(path);
}

static _Noreturn void store(DIR *queue, const struct request *request, size_t size)
{
    int count = 0;
    for (struct dirent *entry; (entry = readdir(queue));) {
        const char *dot = strrchr(entry->d_name, '.');
        count += dot && is(dot, ".del");
    }
    if (count >= QUEUE_MAX)
        fail(TRY_AGAIN, "vmlinkd does not listen at %s and %d DELs are queued; start it", where,
             QUEUE_MAX);
    char name[64], temporary[sizeof name + sizeof ".tmp"];
    struct timespec now;
    clock_gettime(CLOCK_REALTIME, &now);
    sprintf(name, "%010lld%09ld-%d.del", (long long)now.tv_sec, now.tv_nsec, getpid());
    sprintf(temporary, "%s.tmp", name);
    int fd = dirfd(queue), file = openat(fd, temporary, O_WRONLY | O_CREAT | O_EXCL, 0600);
    if (file < 0 || transfer(POLLOUT, file, (char *)request->payload, size) < 0 ||
        close(file) < 0 || renameat(fd, temporary, fd, name) < 0) {
        const char *why = strerror(errno);
        unlinkat(fd, temporary, 0);
        cannot_queue(why);
    }
    finish(0, "", 0);
}

/* vmlinkd holds the lock exclusively from before the replay until it listens: it may listen once
 * the lock is ours, so try to connect again. */
static int connect_or_queue(const struct request *request, size_t size)
{
    const char *id = getenv("CNI_CONTAINERID"), *ifname = setting("CNI_IFNAME", NULL);
    if (!id || !ifname)
        fail(BAD_ENVIRONMENT, "missing:%s%s", id ? "" : " CNI_CONTAINERID",
             ifname ? "" : " CNI_IFNAME");
    if (!*id)
        fail(UNKNOWN_CONTAINER, "CNI_CONTAINERID is empty");
    DIR *queue = open_queue();
    int lock = queue ? openat(dirfd(queue), "lock", O_RDWR | O_CREAT | O_CLOEXEC, 0600) : -1;
    if (lock < 0 || flock(lock, LOCK_SH) < 0)
        cannot_queue(strerror(errno));
    int conn = connect_vmlinkd();
    if (conn < 0)
        store(queue, request, size);
    close(lock);
    return conn;
}

/* Sends the request, and with its first byte the namespace, if that can be opened. vmlinkd says
 * what is missing. */
static void send_request(int conn, struct request *request, size_t size)
{
    struct { struct cmsghdr header; int netns; } rights = {
        {.cmsg_len = CMSG_LEN(sizeof(int)), .cmsg_level = SOL_SOCKET, .cmsg_type = SCM_RIGHTS},
        open(setting("CNI_NETNS", ""), O_RDONLY | O_CLOEXEC | O_NONBLOCK),
    };
    struct iovec bytes = {request, size};
    struct msghdr message = {.msg_iov = &bytes, .msg_iovlen = 1, .msg_control = &rights,
                             .msg_controllen = rights.netns < 0 ? 0 : sizeof rights};
    ssize_t n = sendmsg(conn, &message, 0);
    if (n >= 0)
        n = transfer(POLLOUT, conn, (char *)request + n, size - (size_t)n);
    if (n < 0 && errno != EPIPE && errno != ECONNRESET) /* then vmlinkd may have refused already */
        fail(TRY_AGAIN, "cannot send to %s: %s", where, strerror(errno));
}

static void receive(int conn, void *data, size_t size)
{
    ssize_t n = transfer(POLLIN, conn, data, size);
    if (n < (ssize_t)size)
        fail(TRY_AGAIN, "no answer from %s: %s; see the log of vmlinkd", where,
             n < 0 ? strerror(errno) : "the connection was closed");
}

static _Noreturn void relay_answer(int conn)
{
    struct { char magic[4]; uint32_t code, size; } header;
    receive(conn, &header, sizeof header);
    uint32_t code = le32toh(header.code), size = le32toh(header.size);
    if (memcmp(header.magic, MAGIC, sizeof header.magic) != 0 || size > ANSWER_MAX)
        fail(TRY_AGAIN, "the answer from %s is not one of vmlinkd; check VMLINK_SOCKET", where);
    char *body = malloc(size + 1); /* malloc(0) may be NULL */
    if (!body)
        fail(TRY_AGAIN, "no memory for an answer of %u bytes", size);
    receive(conn, body, size);
    finish(code < 256 ? (int)code : 255, body, size); /* exit(256) would be 0, success */
}

int main(void)
{
    static char json[2 * sizeof where];
    const char *verb = getenv("CNI_COMMAND");
    if (!verb) {
        fputs("vmlink: CNI plugin " VMLINK_VERSION ", versions " VERSIONS(", ") "\n", stderr);
        return 0;
    }
    signal(SIGPIPE, SIG_IGN);
    long seconds = start_deadline();
    struct request *request = malloc(sizeof *request);
    if (!request)
        fail(TRY_AGAIN, "no memory for the request");
    size_t size = read_config(request->payload + ENV_MAX, !is(verb, "DEL"));
    if (is(verb, "VERSION"))
        finish(0, json, (size_t)sprintf(json, SUPPORTED, version));
    find_vmlinkd();
    sprintf(json, ERROR("%s", "%d", "no answer from %s within %ld s (VMLINK_TIMEOUT)"), version,
            TRY_AGAIN, where, seconds);
    late = json;
    size = frame(request, size);
    int conn = connect_vmlinkd();
    if (conn < 0 && is(verb, "DEL"))
        conn = connect_or_queue(request, size);
    else if (conn < 0)
        nobody_listens(verb);
    send_request(conn, request, HEADER + size);
    relay_answer(conn);
}
