/* Doorbell: an event channel port that a ring's end waits on without the GIL. Between two system calls of a wait Python
 * costs more than the calls themselves: C's libxenvchan has two, read() and write() of /dev/xen/evtchn.
 *
 * Any number of threads wait: whoever comes first polls and takes the event for all (it leads), the others follow, and
 * every event has all of them look. `changes` counts whatever has them look, so nothing is lost between a look and a wait.
 *
 * What every hand-over calls it calls by system_call(): libc's own read and write look whether to be a cancellation
 * point once there are threads, and lie in pages of their own.
 */

#include "native.h"

#include <errno.h>
#include <fcntl.h>
#include <linux/futex.h>
#include <math.h>
#include <poll.h>
#include <sys/eventfd.h>
#include <sys/ioctl.h>
#include <sys/socket.h>
#include <sys/syscall.h>
#include <time.h>
#include <unistd.h>

typedef uint16_t domid_t; /* which evtchn.h uses and does not define */
#include <xen/evtchn.h>

#ifndef DOMID_SELF
#define DOMID_SELF 0x7FF0 /* Xen public/xen.h */
#endif

uint64_t
monotonic_now(void)
{
    struct timespec time;
    clock_gettime(CLOCK_MONOTONIC, &time);
    return (uint64_t)time.tv_sec * 1000000000u + (uint64_t)time.tv_nsec;
}

int HOT
parse_timeout(PyObject *timeout, uint64_t *deadline)
{
    *deadline = NEVER;
    if (timeout == Py_None)
        return 0;
    double seconds = PyFloat_AsDouble(timeout);
    if (seconds == -1.0 && PyErr_Occurred())
        return -1;
    if (isnan(seconds)) {
        PyErr_SetString(PyExc_ValueError, "a timeout of nan seconds");
        return -1;
    }
    if (seconds < 1e9)
        *deadline = monotonic_now() + (seconds > 0 ? (uint64_t)(seconds * 1e9) : 0);
    return 0;
}

/* A signal that comes just before the system call does not end it, so no wait is longer than this, in nanoseconds. */
#define PAUSE 1000000000u

/* How long a wait may last, and what its end then is. Where the deadline is NEVER the clock is not read: in a PV domain
 * that is a system call. */
static Waited HOT
limit_wait(const Doorbell *self, uint64_t deadline, struct timespec *limit)
{
    uint64_t rest = __atomic_load_n(&self->patience, __ATOMIC_RELAXED);
    if (deadline != NEVER) {
        uint64_t now = monotonic_now();
        uint64_t until = deadline > now ? deadline - now : 0;
        rest = until < rest ? until : rest;
    }
    Waited end = rest > PAUSE ? INTERRUPTED : TIMED_OUT;
    if (rest > PAUSE)
        rest = PAUSE;
    limit->tv_sec = (time_t)(rest / 1000000000u);
    limit->tv_nsec = (long)(rest % 1000000000u);
    return end;
}

/* ---- Waiting ------------------------------------------------------------------------------------------- */

static void HOT
tell_all(Doorbell *self)
{
    __atomic_fetch_add(&self->changes, 1, __ATOMIC_SEQ_CST);
    if (__atomic_load_n(&self->followers, __ATOMIC_SEQ_CST) != 0)
        syscall(SYS_futex, &self->changes, FUTEX_WAKE_PRIVATE, INT_MAX, NULL, NULL, 0);
}

/* Takes the kernel's events, waiting for one where the file is not O_NONBLOCK, and lets the next ones come: 0, or an
 * errno. */
static int HOT
take_kernel_events(Doorbell *self, int bell)
{
    uint32_t ports[64];
    long size = system_call(SYS_read, bell, ports, sizeof(ports));
    if (size < 0 && size != -EFBIG)
        return (int)-size;
    if (size < 0) { /* more events than the ring holds: it is emptied, and our port counts as rung */
        ioctl(bell, IOCTL_EVTCHN_RESET);
        ports[0] = self->port;
        size = sizeof(ports[0]);
    }
    system_call(SYS_write, bell, ports, (size_t)size); /* nothing is wrong with a port but that it is closed, which its owner knows */
    for (ssize_t i = 0; i < size / (long)sizeof(ports[0]); i++)
        if (ports[i] == self->port)
            __atomic_fetch_add(&self->events, 1, __ATOMIC_SEQ_CST);
    return 0;
}

/* Takes the event that poll saw. */
static void HOT
take_event(Doorbell *self, int bell)
{
    if (self->is_kernels)
        take_kernel_events(self, bell);
    else {
        char pending[4096]; /* an embedded machine's port is a socket, and what lies in it the pending bit */
        ssize_t size = recv(bell, pending, sizeof(pending), MSG_DONTWAIT);
        (void)size;
        __atomic_fetch_add(&self->events, 1, __ATOMIC_SEQ_CST);
    }
}

/* Makes ready for waits in a read: who waits there is woken through an event channel of this domain with itself. */
static void COLD
make_ready_to_block(Doorbell *self, int bell)
{
    struct ioctl_evtchn_bind_unbound_port unbound = {.remote_domain = DOMID_SELF};
    int port = ioctl(bell, IOCTL_EVTCHN_BIND_UNBOUND_PORT, &unbound);
    self->cannot_block = 1;
    if (port < 0)
        return;
    struct ioctl_evtchn_bind_interdomain both = {.remote_domain = DOMID_SELF, .remote_port = (unsigned int)port};
    int flags = fcntl(bell, F_GETFL);
    if (ioctl(bell, IOCTL_EVTCHN_BIND_INTERDOMAIN, &both) < 0 || start_watching(self) != 0 || flags < 0 ||
        fcntl(bell, F_SETFL, flags & ~O_NONBLOCK) < 0)
        return; /* the ports are the file's, and end with it */
    self->cannot_block = 0;
    __atomic_store_n(&self->waker_port, (uint32_t)port, __ATOMIC_SEQ_CST);
}

/* Leads without a deadline, in as many system calls as C's. */
static Waited HOT
lead_in_read(Doorbell *self, uint32_t seen, int bell)
{
    uint32_t since = begin_watched_wait(self);
    /* Again, since wake() knows from when on it is to ring. */
    int error = __atomic_load_n(&self->changes, __ATOMIC_SEQ_CST) == seen ? take_kernel_events(self, bell) : 0;
    int late = end_watched_wait(self, since);
    if (error != 0)
        return error == EINTR ? INTERRUPTED : SILENCED;
    return !late ? CHANGED : __atomic_load_n(&self->patience, __ATOMIC_RELAXED) == NEVER ? INTERRUPTED : TIMED_OUT;
}

/* Leads in a poll, for whoever has a deadline, and for an embedded machine's ports. */
static Waited COLD
lead_in_poll(Doorbell *self, uint64_t deadline, int bell)
{
    int life = self->life == NULL ? -1 : hold_descriptor(self->life);
    int waker = hold_descriptor(self->waker);
    struct pollfd polled[] = {{self->hung_up ? -1 : bell, POLLIN, 0}, {waker, POLLIN, 0}, {life, POLLRDHUP, 0}};
    struct timespec limit;
    Waited end = limit_wait(self, deadline, &limit);
    int count = ppoll(polled, life < 0 ? 2 : 3, &limit, NULL);
    Waited result = CHANGED;
    if (count < 0)
        result = INTERRUPTED;
    else if (count == 0)
        result = end;
    else {
        if (polled[0].revents & POLLIN)
            take_event(self, bell);
        if (polled[1].revents & POLLIN) {
            eventfd_t ignored;
            eventfd_read(waker, &ignored);
        }
        /* A peer of an embedded machine may shut its end down: no event is ever to come, which is no error. */
        if (!self->is_kernels && (polled[0].revents & (POLLHUP | POLLERR)))
            self->hung_up = 1;
        if (life >= 0 && polled[2].revents != 0)
            result = SILENCED;
        else if (self->is_kernels && (polled[0].revents & (POLLERR | POLLNVAL)))
            result = SILENCED;
    }
    if (waker >= 0)
        drop_descriptor(self->waker);
    if (life >= 0)
        drop_descriptor(self->life);
    return result;
}

static Waited HOT
lead(Doorbell *self, int bell, uint32_t seen, uint64_t deadline)
{
    /* wake() adds to `changes` before it looks whether somebody leads. */
    if (__atomic_load_n(&self->changes, __ATOMIC_SEQ_CST) != seen)
        return CHANGED;
    if (bell < 0)
        return SILENCED;
    int reads = deadline == NEVER && self->is_kernels;
    if (reads && self->waker_port == 0 && !self->cannot_block)
        make_ready_to_block(self, bell);
    return reads && self->waker_port != 0 ? lead_in_read(self, seen, bell) : lead_in_poll(self, deadline, bell);
}

static Waited COLD
follow(Doorbell *self, uint32_t seen, uint64_t deadline)
{
    struct timespec limit;
    Waited end = limit_wait(self, deadline, &limit);
    __atomic_fetch_add(&self->followers, 1, __ATOMIC_SEQ_CST);
    long result = syscall(SYS_futex, &self->changes, FUTEX_WAIT_PRIVATE, seen, &limit, NULL, 0);
    int error = result < 0 ? errno : 0;
    __atomic_fetch_sub(&self->followers, 1, __ATOMIC_SEQ_CST);
    return error == EINTR ? INTERRUPTED : error == ETIMEDOUT ? end : CHANGED;
}

Waited HOT
wait_on_bell(Doorbell *self, int bell, uint32_t seen, uint64_t deadline)
{
    if (self->generation != fork_generation)
        return SILENCED; /* and a thread that the child does not have may lead for ever */
    if (__atomic_load_n(&self->changes, __ATOMIC_SEQ_CST) != seen)
        return CHANGED;
    uint32_t nobody = 0;
    if (!__atomic_compare_exchange_n(&self->led, &nobody, 1, 0, __ATOMIC_SEQ_CST, __ATOMIC_SEQ_CST))
        return follow(self, seen, deadline);
    Waited result = lead(self, bell, seen, deadline);
    /* First, so that who leads next and looked before this event does not sleep over it. */
    __atomic_fetch_add(&self->changes, 1, __ATOMIC_SEQ_CST);
    __atomic_store_n(&self->led, 0, __ATOMIC_SEQ_CST);
    tell_all(self); /* of the event, or for another to lead */
    return result;
}

Waited HOT
wait_for_change(Doorbell *self, uint32_t seen, uint64_t deadline)
{
    int bell = hold_descriptor(self->bell);
    Waited result = wait_on_bell(self, bell, seen, deadline);
    if (bell >= 0)
        drop_descriptor(self->bell);
    return result;
}

/* ---- Methods ------------------------------------------------------------------------------------------- */

static PyObject *
doorbell_new(PyTypeObject *type, PyObject *args, PyObject *kwargs)
{
    PyObject *bell, *life;
    int port;
    if (kwargs != NULL && PyDict_Size(kwargs) != 0) {
        PyErr_SetString(PyExc_TypeError, "Doorbell() takes no keyword arguments");
        return NULL;
    }
    if (!PyArg_ParseTuple(args, "OiO:Doorbell", &bell, &port, &life))
        return NULL;
    State *state = PyType_GetModuleState(type);
    if (!PyObject_TypeCheck(bell, state->descriptor) ||
        (life != Py_None && !PyObject_TypeCheck(life, state->descriptor))) {
        PyErr_SetString(PyExc_TypeError, "a Doorbell is made of one or two Descriptors");
        return NULL;
    }
    int fd = eventfd(0, EFD_CLOEXEC | EFD_NONBLOCK);
    if (fd < 0)
        return PyErr_SetFromErrno(PyExc_OSError);
    PyObject *waker = PyObject_CallFunction((PyObject *)state->descriptor, "i", fd);
    if (waker == NULL) {
        close(fd);
        return NULL;
    }
    Doorbell *self = (Doorbell *)PyType_GenericAlloc(type, 0);
    if (self == NULL) {
        Py_DECREF(waker); /* which closes it */
        return NULL;
    }
    self->waker = (Descriptor *)waker;
    self->patience = NEVER;
    self->generation = fork_generation;
    self->bell = (Descriptor *)Py_NewRef(bell);
    self->life = life == Py_None ? NULL : (Descriptor *)Py_NewRef(life);
    self->is_kernels = port >= 0;
    self->port = (uint32_t)port;
    return (PyObject *)self;
}

static void
doorbell_dealloc(PyObject *object)
{
    Doorbell *self = (Doorbell *)object;
    PyTypeObject *type = Py_TYPE(object);
    stop_watching(self);
    Py_XDECREF((PyObject *)self->waker);
    Py_XDECREF((PyObject *)self->bell);
    Py_XDECREF((PyObject *)self->life);
    free_yielder(self->yielder);
    freefunc release = (freefunc)PyType_GetSlot(type, Py_tp_free);
    release(object);
    Py_DECREF(type);
}

void
ring_waker(Doorbell *self)
{
    int bell = hold_descriptor(self->bell);
    if (bell >= 0) {
        struct ioctl_evtchn_notify notify = {.port = self->waker_port};
        ioctl(bell, IOCTL_EVTCHN_NOTIFY, &notify);
        drop_descriptor(self->bell);
    }
}

int HOT
ring_held_bell(const Doorbell *self, int bell)
{
    if (bell < 0)
        return ENOTCONN;
    if (self->is_kernels) {
        struct ioctl_evtchn_notify notify = {.port = self->port};
        return (int)-system_call(SYS_ioctl, bell, (void *)IOCTL_EVTCHN_NOTIFY, (size_t)&notify);
    }
    /* No room: an event is pending there already. Shut down: nobody is there, which is no error. */
    send(bell, "", 1, MSG_DONTWAIT | MSG_NOSIGNAL);
    return 0;
}

int HOT
ring_bell(Doorbell *self)
{
    int bell = hold_descriptor(self->bell);
    int error = ring_held_bell(self, bell);
    if (bell >= 0)
        drop_descriptor(self->bell);
    return error;
}

static PyObject *
doorbell_ring(PyObject *object, PyObject *Py_UNUSED(ignored))
{
    int error = ring_bell((Doorbell *)object);
    if (error != 0 && error != ENOTCONN) {
        errno = error;
        return PyErr_SetFromErrno(PyExc_OSError);
    }
    return PyBool_FromLong(error == 0);
}

static PyObject *
doorbell_wait(PyObject *object, PyObject *const *args, Py_ssize_t nargs)
{
    Doorbell *self = (Doorbell *)object;
    uint32_t seen;
    uint64_t deadline;
    if (check_count("wait", nargs, 2) < 0 || parse_value(args[0], 32, &seen) < 0 ||
        parse_timeout(args[1], &deadline) < 0)
        return NULL;
    Waited waited;
    do {
        Py_BEGIN_ALLOW_THREADS
        waited = wait_for_change(self, seen, deadline);
        Py_END_ALLOW_THREADS
        if (waited == INTERRUPTED && PyErr_CheckSignals() < 0)
            return NULL;
    } while (waited == INTERRUPTED);
    return PyLong_FromLong(waited);
}

static PyObject *
doorbell_wake(PyObject *object, PyObject *Py_UNUSED(ignored))
{
    Doorbell *self = (Doorbell *)object;
    if (self->generation != fork_generation)
        Py_RETURN_NONE; /* what wakes is the parent's too */
    __atomic_fetch_add(&self->wakes, 1, __ATOMIC_SEQ_CST);
    tell_all(self);
    if (__atomic_load_n(&self->waker_port, __ATOMIC_SEQ_CST) != 0)
        ring_waker(self);
    else if (__atomic_load_n(&self->led, __ATOMIC_SEQ_CST) != 0) {
        int waker = hold_descriptor(self->waker);
        if (waker >= 0) {
            eventfd_write(waker, 1);
            drop_descriptor(self->waker);
        }
    }
    Py_RETURN_NONE;
}

static PyObject *
doorbell_stop(PyObject *object, PyObject *argument)
{
    int stopped = PyObject_IsTrue(argument);
    if (stopped < 0)
        return NULL;
    __atomic_store_n(&((Doorbell *)object)->stopped, (uint32_t)stopped, __ATOMIC_SEQ_CST);
    return doorbell_wake(object, NULL);
}

static PyObject *
doorbell_close(PyObject *object, PyObject *Py_UNUSED(ignored))
{
    return PyObject_CallMethod((PyObject *)((Doorbell *)object)->waker, "close", NULL);
}

static PyObject *
doorbell_get_changes(PyObject *object, void *Py_UNUSED(closure))
{
    return PyLong_FromUnsignedLong(__atomic_load_n(&((Doorbell *)object)->changes, __ATOMIC_SEQ_CST));
}

static PyObject *
doorbell_get_events(PyObject *object, void *Py_UNUSED(closure))
{
    return PyLong_FromUnsignedLong(__atomic_load_n(&((Doorbell *)object)->events, __ATOMIC_SEQ_CST));
}

static PyObject *
doorbell_get_wakes(PyObject *object, void *Py_UNUSED(closure))
{
    return PyLong_FromUnsignedLong(__atomic_load_n(&((Doorbell *)object)->wakes, __ATOMIC_SEQ_CST));
}

static int
doorbell_set_patience(PyObject *object, PyObject *value, void *Py_UNUSED(closure))
{
    uint64_t until;
    if (value == NULL) {
        PyErr_SetString(PyExc_AttributeError, "patience cannot be deleted");
        return -1;
    }
    if (parse_timeout(value, &until) < 0)
        return -1;
    uint64_t patience = until == NEVER ? NEVER : until - monotonic_now();
    __atomic_store_n(&((Doorbell *)object)->patience, patience, __ATOMIC_RELAXED);
    return 0;
}

static PyObject *
doorbell_get_patience(PyObject *object, void *Py_UNUSED(closure))
{
    uint64_t patience = __atomic_load_n(&((Doorbell *)object)->patience, __ATOMIC_RELAXED);
    return patience == NEVER ? Py_NewRef(Py_None) : PyFloat_FromDouble((double)patience / 1e9);
}

static int
doorbell_set_poll(PyObject *object, PyObject *value, void *Py_UNUSED(closure))
{
    if (value == NULL) {
        PyErr_SetString(PyExc_AttributeError, "poll cannot be deleted");
        return -1;
    }
    double poll = PyFloat_AsDouble(value);
    if (poll == -1.0 && PyErr_Occurred())
        return -1;
    if (!(poll >= 0 && poll <= 10)) {
        PyErr_Format(PyExc_ValueError, "poll is a number of seconds up to 10, not %R", value);
        return -1;
    }
    __atomic_store_n(&((Doorbell *)object)->poll, (uint64_t)(poll * 1e9 + 0.5), __ATOMIC_RELAXED);
    return 0;
}

static PyObject *
doorbell_get_poll(PyObject *object, void *Py_UNUSED(closure))
{
    return PyFloat_FromDouble((double)__atomic_load_n(&((Doorbell *)object)->poll, __ATOMIC_RELAXED) / 1e9);
}

static PyObject *
doorbell_get_yielder(PyObject *object, void *Py_UNUSED(closure))
{
    const Yielder *yielder = __atomic_load_n(&((Doorbell *)object)->yielder, __ATOMIC_ACQUIRE);
    return Py_NewRef(yielder == NULL ? Py_None : (PyObject *)yielder->file);
}

PyDoc_STRVAR(doorbell_doc,
"Doorbell(bell, port, life, /)\n--\n\n"
"An event channel port to ring and to wait on. `bell` is the Descriptor of an evtchn device, of which this takes every\n"
"event, and `port` a port of it; or, with a port of -1, that of an embedded machine's socket for the port, and `life`\n"
"one whose end says that the machine is gone.\n\n"
"Threads: any call from any thread; an event has all that wait look.");

static PyMethodDef doorbell_methods[] = {
    {"ring", doorbell_ring, METH_NOARGS, "ring($self, /)\n--\n\nSend the peer an event; False where the port is closed."},
    {"wait", (PyCFunction)(void (*)(void))doorbell_wait, METH_FASTCALL,
     "wait($self, changes, timeout, /)\n--\n\n"
     "Wait until `changes` is another, for an event or a wake: 0 where it is, 1 where so many seconds (None: for ever)\n"
     "passed, 3 where no event can come any more."},
    {"look", (PyCFunction)(void (*)(void))doorbell_look, METH_FASTCALL,
     "look($self, buffer, offset, value, wakes, /)\n--\n\n"
     "Look for `poll` seconds, before a wait: whether the word of 32 bits at a byte offset became another than `value`, or\n"
     "the doorbell's `wakes` another."},
    {"yield_by", (PyCFunction)(void (*)(void))doorbell_yield_by, METH_FASTCALL,
     "yield_by($self, file, request, argument, /)\n--\n\n"
     "Do an ioctl of a Descriptor's between such looks, which gives the processor to other domains. To be told once."},
    {"wake", doorbell_wake, METH_NOARGS, "wake($self, /)\n--\n\nHave every thread that waits look again, and return."},
    {"stop", doorbell_stop, METH_O,
     "stop($self, stopped, /)\n--\n\nWake whoever waits, and have whoever comes not wait; or let them wait again."},
    {"close", doorbell_close, METH_NOARGS,
     "close($self, /)\n--\n\nGive back what `wake` needs, once nobody waits; the port is its owner's to close."},
    {NULL, NULL, 0, NULL},
};

static PyGetSetDef doorbell_getset[] = {
    {"changes", doorbell_get_changes, NULL, "Counts whatever has those who wait look again, modulo 2**32.", NULL},
    {"patience", doorbell_get_patience, doorbell_set_patience,
     "Seconds after which a wait without an event ends as one whose time is out, whatever its timeout; None for none.", NULL},
    {"poll", doorbell_get_poll, doorbell_set_poll,
     "Seconds for which a ring's end or a BlockServer looks again and again before it waits here; at most 10.", NULL},
    {"yielder", doorbell_get_yielder, NULL, "The Descriptor that `yield_by` was told of, or None.", NULL},
    {"events", doorbell_get_events, NULL, "How many events were taken, modulo 2**32.", NULL},
    {"wakes", doorbell_get_wakes, NULL, "How often `wake` was called, modulo 2**32.", NULL},
    {NULL, NULL, NULL, NULL, NULL},
};

static PyType_Slot doorbell_slots[] = {
    {Py_tp_doc, (void *)doorbell_doc},
    {Py_tp_new, doorbell_new},
    {Py_tp_dealloc, doorbell_dealloc},
    {Py_tp_methods, doorbell_methods},
    {Py_tp_getset, doorbell_getset},
    {0, NULL},
};

PyType_Spec doorbell_spec = {
    .name = "xengrant._native.Doorbell",
    .basicsize = sizeof(Doorbell),
    .flags = Py_TPFLAGS_DEFAULT | Py_TPFLAGS_IMMUTABLETYPE,
    .slots = doorbell_slots,
};
