/* A connection to the machine: src/xengrant/devices/wire.py in C. One is one open file. */
#define _GNU_SOURCE
#include "preload.h"

#include <ctype.h>
#include <errno.h>
#include <fcntl.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <sys/socket.h>
#include <sys/un.h>
#include <unistd.h>

enum { VERSION = 1, FDS_PER_BATCH = 250, FDS_PER_MESSAGE = 253, MAX_BODY = 8 << 20 };

/* ---- Which machine ------------------------------------------------------------------------------------- */

int machine_is_named(void)
{
    const char *url = getenv("XENGRANT_PRELOAD_URL");

    return url && !strncmp(url, "embedded:", 9);
}

static void unquote(char *text)
{
    char *to = text;

    for (; *text; text++) {
        unsigned value;
        if (*text == '%' && isxdigit((unsigned char)text[1]) && isxdigit((unsigned char)text[2])) {
            sscanf(text + 1, "%2x", &value);
            *to++ = (char)value;
            text += 2;
        } else {
            *to++ = *text;
        }
    }
    *to = '\0';
}

/* The directory, which the caller frees, and the domid. */
static char *parse_url(unsigned *domid)
{
    const char *url = getenv("XENGRANT_PRELOAD_URL");
    const char *query = strchr(url, '?');
    char *directory = strndup(url + 9, query ? (size_t)(query - url) - 9 : 0);

    if (!directory || !*directory || sscanf(query, "?domid=%u", domid) != 1)
        give_up("XENGRANT_PRELOAD_URL is %s, where embedded:DIRECTORY?domid=N is needed", url);
    unquote(directory);
    return directory;
}

static int connect_machine(const char *directory)
{
    struct sockaddr_un address = {.sun_family = AF_UNIX};
    int at = open(directory, O_PATH | O_DIRECTORY | O_CLOEXEC);
    int connection = socket(AF_UNIX, SOCK_STREAM | SOCK_CLOEXEC, 0);

    if (at < 0 || connection < 0)
        give_up("%s: %s", directory, strerror(errno));
    snprintf(address.sun_path, sizeof address.sun_path, "/proc/self/fd/%d/machine", at);
    if (connect(connection, (struct sockaddr *)&address, sizeof address) < 0)
        give_up("%s: no embedded machine: %s", directory, strerror(errno));
    real_close(at);
    return connection;
}

int connect_device(const char *device)
{
    unsigned domid;
    char *directory = parse_url(&domid);
    struct file file = {.device = device, .connection = connect_machine(directory)};
    struct reply reply;
    uint8_t body[64];
    uint32_t version = VERSION;
    uint16_t word[2] = {(uint16_t)domid, 0};
    size_t length = strlen(device);

    free(directory);
    pthread_mutex_init(&file.requests, NULL);
    memcpy(body, &version, 4);
    memcpy(body + 4, word, 4);
    memcpy(body + 8, device, length);
    if (request(&file, HELLO, body, 8 + length, &reply) < 0) {
        int error = errno;
        real_close(file.connection);
        errno = error;
        return -1;
    }
    free_reply(&reply);
    return file.connection;
}

/* ---- Requests ------------------------------------------------------------------------------------------ */

static int send_all(int connection, const void *data, size_t length)
{
    for (size_t done = 0; done < length;) {
        ssize_t count = send(connection, (const char *)data + done, length - done, MSG_NOSIGNAL);
        if (count < 0 && errno != EINTR)
            return -1;
        done += count < 0 ? 0 : (size_t)count;
    }
    return 0;
}

/* Exactly `length` bytes, and the descriptors that came with them. */
static int receive_all(int connection, void *data, size_t length, struct reply *reply)
{
    for (size_t done = 0; done < length;) {
        union {
            struct cmsghdr header;
            char bytes[CMSG_SPACE(sizeof(int) * FDS_PER_MESSAGE)];
        } control;
        struct iovec part = {(char *)data + done, length - done};
        struct msghdr message = {
            .msg_iov = &part, .msg_iovlen = 1, .msg_control = &control, .msg_controllen = sizeof control};
        ssize_t count = recvmsg(connection, &message, MSG_CMSG_CLOEXEC);
        if (count < 0 && errno == EINTR)
            continue;
        if (count <= 0)
            return -1;
        done += (size_t)count;
        for (struct cmsghdr *c = CMSG_FIRSTHDR(&message); c; c = CMSG_NXTHDR(&message, c)) {
            if (c->cmsg_level != SOL_SOCKET || c->cmsg_type != SCM_RIGHTS)
                continue;
            unsigned more = (unsigned)((c->cmsg_len - CMSG_LEN(0)) / sizeof(int));
            reply->fds = realloc(reply->fds, (reply->fd_count + more) * sizeof(int));
            if (!reply->fds)
                give_up("no memory");
            memcpy(reply->fds + reply->fd_count, CMSG_DATA(c), more * sizeof(int));
            reply->fd_count += more;
        }
    }
    return 0;
}

static int receive_reply(int connection, struct reply *reply)
{
    struct {
        uint32_t length;
        int32_t result;
        uint32_t fds;
    } head;

    memset(reply, 0, sizeof *reply);
    if (receive_all(connection, &head, sizeof head, reply) < 0)
        return -1;
    if (head.length > MAX_BODY)
        give_up("a reply of %u bytes", head.length);
    /* The first batch of descriptors came with the head; each further one has a byte of its own behind the body. */
    size_t tails = head.fds ? (head.fds + FDS_PER_BATCH - 1) / FDS_PER_BATCH - 1 : 0;
    reply->body = malloc(head.length + tails + 1);
    if (!reply->body)
        give_up("no memory");
    reply->length = head.length;
    reply->result = head.result;
    if (receive_all(connection, reply->body, head.length + tails, reply) < 0)
        return -1;
    if (reply->fd_count != head.fds)
        give_up("%u of %u descriptors came: raise RLIMIT_NOFILE", reply->fd_count, head.fds);
    return 0;
}

/* 0 and a reply to free, or -1 and errno: the machine's, or ENODEV where it is gone. */
int request(struct file *file, enum kind kind, const void *body, size_t length, struct reply *reply)
{
    struct {
        uint32_t length;
        uint8_t kind;
        uint8_t pad[3];
    } head = {.length = (uint32_t)length, .kind = (uint8_t)kind};

    pthread_mutex_lock(&file->requests);
    int failed = send_all(file->connection, &head, sizeof head) < 0 ||
                 send_all(file->connection, body, length) < 0 || receive_reply(file->connection, reply) < 0;
    pthread_mutex_unlock(&file->requests);
    if (failed) {
        errno = ENODEV;
        return -1;
    }
    if (reply->result >= 0)
        return 0;
    int error = -reply->result;
    free_reply(reply);
    errno = error;
    return -1;
}

void free_reply(struct reply *reply)
{
    for (unsigned i = 0; i < reply->fd_count; i++)
        if (reply->fds[i] >= 0)
            real_close(reply->fds[i]);
    free(reply->fds);
    free(reply->body);
}

/* What the machine cannot refuse. Where it is gone, so is what it held of ours. */
static void tell(struct file *file, enum kind kind, const void *body, size_t length)
{
    struct reply reply;

    if (request(file, kind, body, length, &reply) == 0)
        free_reply(&reply);
}

void tell_unmapped(struct file *file, uint64_t cookie)
{
    tell(file, MUNMAP, &cookie, sizeof cookie);
}

/* When this returns the machine has released the file. */
void close_file(struct file *file)
{
    tell(file, RELEASE, NULL, 0);
    real_close(file->connection);
    evtchn_close(file);
    free(file);
}
