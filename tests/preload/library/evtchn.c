/* evtchn, as src/xengrant/devices/socket_events.py does it: binding hands out a socket. What lies in it is the pending
 * bit, and what is sent through it is an event to the other side. All are in one epoll, which is the descriptor that
 * the program has; a port that was read is disarmed there, which masks it, until its number is written back.
 */
#define _GNU_SOURCE
#include "preload.h"

#include <errno.h>
#include <fcntl.h>
#include <poll.h>
#include <stdlib.h>
#include <string.h>
#include <sys/epoll.h>
#include <sys/ioctl.h>
#include <sys/socket.h>
#include <unistd.h>

typedef uint16_t domid_t; /* which evtchn.h uses and does not define */
#include <xen/sys/evtchn.h>

enum { ARMED = EPOLLIN | EPOLLONESHOT, DRAIN_MOST = 16 };

static const uint64_t MACHINE = UINT64_MAX; /* in the epoll, no port */

static int arm(struct file *file, int operation, const struct port *port)
{
    struct epoll_event event = {.events = ARMED, .data.u64 = port->number};

    return epoll_ctl(file->descriptor, operation, port->end, &event);
}

int evtchn_open(struct file *file)
{
    struct epoll_event event = {.events = EPOLLRDHUP, .data.u64 = MACHINE};
    int epoll = epoll_create1(EPOLL_CLOEXEC);

    if (epoll >= 0 && epoll_ctl(epoll, EPOLL_CTL_ADD, file->connection, &event) < 0)
        give_up("epoll: %s", strerror(errno));
    return epoll;
}

void evtchn_close(struct file *file)
{
    while (file->ports) {
        struct port *port = file->ports;
        file->ports = port->next;
        real_close(port->end);
        free(port);
    }
}

/* Where the port is linked in, or the end of the list; the lock is held. */
static struct port **find(struct file *file, uint32_t number)
{
    struct port **link = &file->ports;

    while (*link && (*link)->number != number)
        link = &(*link)->next;
    return link;
}

/* ---- ioctls --------------------------------------------------------------------------------------------- */

static int at_machine(struct file *file, unsigned long number, const void *argument, size_t size, struct reply *reply)
{
    uint32_t head[3] = {(uint32_t)number, (uint32_t)size, 0};
    uint8_t body[sizeof head + 64];

    if (size > 64)
        give_up("evtchn: an argument of %zu bytes", size);
    memcpy(body, head, sizeof head);
    memcpy(body + sizeof head, argument, size);
    return request(file, IOCTL, body, sizeof head + size, reply);
}

static int bind_port(struct file *file, unsigned long number, const void *argument, size_t size)
{
    struct reply reply;
    struct port *port = calloc(1, sizeof *port);

    if (!port)
        give_up("no memory");
    if (at_machine(file, number, argument, size, &reply) < 0) {
        free(port);
        return -1;
    }
    if (reply.fd_count != 1)
        give_up("evtchn: a port without its socket");
    int result = reply.result;
    port->number = (uint32_t)result;
    port->end = reply.fds[0];
    reply.fds[0] = -1;
    free_reply(&reply);
    pthread_mutex_lock(&file->ports_lock);
    port->next = file->ports;
    file->ports = port;
    if (arm(file, EPOLL_CTL_ADD, port) < 0)
        give_up("epoll: %s", strerror(errno));
    pthread_mutex_unlock(&file->ports_lock);
    return result;
}

static int unbind_port(struct file *file, unsigned long number, const void *argument, size_t size)
{
    uint32_t wanted;
    struct reply reply;

    memcpy(&wanted, argument, sizeof wanted);
    pthread_mutex_lock(&file->ports_lock);
    struct port **link = find(file, wanted), *port = *link;
    if (port)
        *link = port->next;
    pthread_mutex_unlock(&file->ports_lock);
    if (port) {
        epoll_ctl(file->descriptor, EPOLL_CTL_DEL, port->end, NULL);
        real_close(port->end);
        free(port);
    }
    if (at_machine(file, number, argument, size, &reply) < 0)
        return -1;
    free_reply(&reply);
    return 0;
}

static int notify(struct file *file, const void *argument)
{
    uint32_t wanted;

    memcpy(&wanted, argument, sizeof wanted);
    pthread_mutex_lock(&file->ports_lock);
    struct port *port = *find(file, wanted);
    /* No room: an event is pending there already. Shut down: nobody is there, which is no error. */
    if (port && send(port->end, "", 1, MSG_DONTWAIT | MSG_NOSIGNAL) < 0)
        errno = 0;
    pthread_mutex_unlock(&file->ports_lock);
    if (port)
        return 0;
    errno = ENOTCONN;
    return -1;
}

int evtchn_ioctl(struct file *file, unsigned long number, void *argument, size_t size)
{
    struct reply reply;

    switch (number) {
    case IOCTL_EVTCHN_NOTIFY:
        return notify(file, argument);
    case IOCTL_EVTCHN_RESET:
        return 0; /* there is no ring that could have overflowed */
    case IOCTL_EVTCHN_UNBIND:
        return unbind_port(file, number, argument, size);
    case IOCTL_EVTCHN_BIND_VIRQ:
    case IOCTL_EVTCHN_BIND_INTERDOMAIN:
    case IOCTL_EVTCHN_BIND_UNBOUND_PORT:
        return bind_port(file, number, argument, size);
    default:
        if (at_machine(file, number, argument, size, &reply) < 0)
            return -1;
        free_reply(&reply);
        return 0;
    }
}

/* ---- read and write ------------------------------------------------------------------------------------- */

/* Take what is pending. 0 where it is only that the other end is gone: no event, nor will one ever come. */
static int drain(int end)
{
    char bytes[4096];
    size_t taken = 0;

    for (int i = 0; i < DRAIN_MOST; i++) {
        ssize_t count = recv(end, bytes, sizeof bytes, MSG_DONTWAIT);
        if (count < 0 && errno == EAGAIN)
            return 1;
        if (count > 0)
            taken += (size_t)count;
        if (count < (ssize_t)sizeof bytes)
            break;
    }
    return taken > 0;
}

/* Take up to `room` pending ports, which masks them: how many, or -1 where the machine is gone. */
static ssize_t take(struct file *file, uint32_t *numbers, int room)
{
    struct epoll_event ready[PAGE / sizeof *numbers];
    ssize_t count = 0;
    int gone = 0;

    pthread_mutex_lock(&file->ports_lock);
    int events = epoll_wait(file->descriptor, ready, room, 0);
    for (int i = 0; i < events; i++) {
        struct port *port = ready[i].data.u64 == MACHINE ? NULL : *find(file, (uint32_t)ready[i].data.u64);
        gone |= ready[i].data.u64 == MACHINE;
        if (port && drain(port->end))
            numbers[count++] = port->number;
    }
    pthread_mutex_unlock(&file->ports_lock);
    return count || !gone ? count : -1;
}

ssize_t evtchn_read(struct file *file, void *data, size_t size)
{
    uint32_t numbers[PAGE / sizeof(uint32_t)];
    int room = (int)((size < PAGE ? size : PAGE) / sizeof *numbers);
    ssize_t count;

    if (room == 0)
        return 0;
    while ((count = take(file, numbers, room)) == 0) {
        struct pollfd descriptor = {.fd = file->descriptor, .events = POLLIN};
        if (fcntl(file->descriptor, F_GETFL) & O_NONBLOCK) {
            errno = EAGAIN;
            return -1;
        }
        if (poll(&descriptor, 1, -1) < 0)
            return -1;
    }
    if (count < 0) {
        errno = ENODEV;
        return -1;
    }
    memcpy(data, numbers, (size_t)count * sizeof *numbers);
    log_call(file, "\"call\": \"read\", \"ports\": %zd", count);
    return count * (ssize_t)sizeof *numbers;
}

ssize_t evtchn_write(struct file *file, const void *data, size_t size)
{
    size_t count = (size < PAGE ? size : PAGE) / sizeof(uint32_t);

    for (size_t i = 0; i < count; i++) {
        uint32_t number;
        memcpy(&number, (const char *)data + i * sizeof number, sizeof number);
        pthread_mutex_lock(&file->ports_lock);
        struct port *port = *find(file, number);
        if (port)
            arm(file, EPOLL_CTL_MOD, port);
        pthread_mutex_unlock(&file->ports_lock);
    }
    log_call(file, "\"call\": \"write\", \"ports\": %zu", count);
    return (ssize_t)(count * sizeof(uint32_t));
}
