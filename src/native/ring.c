/* Rings of bytes: RingReader and RingWriter, the two ends of a ring as the console, xenstore and vchan have it: two free
 * running indices of 32 bits, and a power of two of bytes, in memory that the peer writes too (Xen public/io/ring.h,
 * "xen_mb(); ... ; prod += n"). And ask_notify and take_notify, a vchan's bytes of who wants to be told.
 *
 * An end's own index is a private variable; what it says in shared memory is for the peer only. The peer's is loaded
 * once in each call and then checked: it may not run backwards, nor further than the ring has bytes. Whatever the peer
 * writes, no byte outside the ring is touched, and no call loops on what it writes but those that wait, which
 * have a timeout.
 */

#include "native.h"

#include <sched.h>
#include <string.h>

/* Xen public/io/libxenvchan.h: tell me when you have written, or read. */
#define NOTIFY_WRITE 1
#define NOTIFY_READ 2

/* Copies shorter than this, some 10 us, keep the GIL: giving it up can cost a wait for another thread's turn, 5 ms. */
#define WITHOUT_GIL 131072

/* ---- A call's view of the shared memory ---------------------------------------------------------------- */

typedef struct {
    Py_buffer indices;
    Py_buffer data;
} Opened;

static int
take_buffers(Ring *self, Opened *opened)
{
    if (PyObject_GetBuffer(self->indices, &opened->indices, PyBUF_WRITABLE) < 0)
        return -1;
    if (PyObject_GetBuffer(self->data, &opened->data, self->writes ? PyBUF_WRITABLE : PyBUF_SIMPLE) < 0)
        goto release;
    Py_ssize_t words = opened->indices.len - (Py_ssize_t)sizeof(uint32_t);
    if (self->own_at <= words && self->peer_at <= words && self->start <= opened->data.len - (Py_ssize_t)self->size &&
        ((uintptr_t)opened->indices.buf + (uintptr_t)self->own_at) % sizeof(uint32_t) == 0 &&
        ((uintptr_t)opened->indices.buf + (uintptr_t)self->peer_at) % sizeof(uint32_t) == 0)
        return 0;
    PyErr_SetString(PyExc_ValueError, "the ring does not lie in its buffers, or its indices are not aligned");
    PyBuffer_Release(&opened->data);
release:
    PyBuffer_Release(&opened->indices);
    return -1;
}

static void
release_buffers(Opened *opened)
{
    PyBuffer_Release(&opened->data);
    PyBuffer_Release(&opened->indices);
}

/* One call at a time uses an end; another waits, without the GIL, which the first may need to finish. */
static void
occupy_without_gil(Ring *self)
{
    while (__atomic_exchange_n(&self->busy, 1, __ATOMIC_ACQUIRE))
        sched_yield();
}

static void
occupy(Ring *self)
{
    if (self->generation != fork_generation) { /* another thread of the parent may have been at it */
        self->generation = fork_generation;
        self->busy = 0;
    }
    if (__atomic_exchange_n(&self->busy, 1, __ATOMIC_ACQUIRE)) {
        Py_BEGIN_ALLOW_THREADS
        occupy_without_gil(self);
        Py_END_ALLOW_THREADS
    }
}

static void
vacate(Ring *self)
{
    __atomic_store_n(&self->busy, 0, __ATOMIC_RELEASE);
}

static int
ring_open(Ring *self, Opened *opened)
{
    occupy(self);
    if (take_buffers(self, opened) == 0)
        return 0;
    vacate(self);
    return -1;
}

static void
ring_close(Ring *self, Opened *opened)
{
    release_buffers(opened);
    vacate(self);
}

/* Loads the peer's index, once: how many bytes may be read, or written, now. 0, or -1 for a lie. */
static int
look(Ring *self, const Opened *opened)
{
    uint32_t peer = __atomic_load_n((uint32_t *)((char *)opened->indices.buf + self->peer_at), __ATOMIC_ACQUIRE);
    uint32_t apart = self->writes ? self->own - peer : peer - self->own;
    uint32_t may = self->writes ? self->size - apart : apart;
    if (apart > self->size || may < self->seen) {
        self->lie = peer;
        return -1;
    }
    self->seen = may;
    return 0;
}

/* After `is_there` said that so many bytes are: an index that is behind that now, or was beyond the ring, is a lie. */
static int
look_again(Ring *self, const Opened *opened, uint32_t wanted)
{
    if (look(self, opened) < 0)
        return -1;
    if (self->seen >= wanted)
        return 0;
    self->lie = self->writes ? self->own - (self->size - self->seen) : self->own + self->seen;
    return -1;
}

static void
refuse(const Ring *self)
{
    PyObject *error = our_error("ProtocolError");
    if (error == NULL)
        return;
    PyErr_Format(error, "the peer's %s index of a ring of %u bytes is %u, where ours is %u: that cannot be",
                 self->writes ? "consumer" : "producer", self->size, self->lie, self->own);
    Py_DECREF(error);
}

static int
look_or_raise(Ring *self, const Opened *opened)
{
    if (look(self, opened) == 0)
        return 0;
    refuse(self);
    return -1;
}

/* Count bytes are read, or written: the peer may have their room, or see them. */
static void
publish(Ring *self, const Opened *opened, uint32_t count)
{
    uint32_t own = self->own + count;
    __atomic_store_n(&self->own, own, __ATOMIC_RELAXED); /* `wait` of another thread reads it */
    self->seen -= count;
    __atomic_store_n((uint32_t *)((char *)opened->indices.buf + self->own_at), own, __ATOMIC_RELEASE);
}

static void
copy(const Ring *self, const Opened *opened, char *memory, uint32_t count)
{
    char *ring = (char *)opened->data.buf + self->start;
    uint32_t at = self->own & (self->size - 1);
    uint32_t first = count < self->size - at ? count : self->size - at;
    if (self->writes) {
        memcpy(ring + at, memory, first);
        memcpy(ring, memory + first, count - first);
    } else {
        memcpy(memory, ring + at, first);
        memcpy(memory + first, ring, count - first);
    }
}

/* Once an index was stored: tells the peer, where this end can and that asked for it. */
static void
tell(Ring *self, const Opened *opened)
{
    if (self->doorbell == NULL)
        return;
    uint8_t *asked = (uint8_t *)opened->indices.buf + self->asked_at;
    uint8_t bit = self->writes ? NOTIFY_WRITE : NOTIFY_READ;
    __atomic_thread_fence(__ATOMIC_SEQ_CST);
    if ((__atomic_load_n(asked, __ATOMIC_RELAXED) & bit) != 0 && /* where nobody asks, the peer keeps the line */
        (__atomic_fetch_and(asked, (uint8_t)~bit, __ATOMIC_SEQ_CST) & bit) != 0)
        ring_bell(self->doorbell); /* an error says that the port is closed: then nobody is to be told */
}

static void
move(Ring *self, const Opened *opened, char *memory, uint32_t count)
{
    if (count >= WITHOUT_GIL) {
        Py_BEGIN_ALLOW_THREADS
        copy(self, opened, memory, count);
        Py_END_ALLOW_THREADS
    } else
        copy(self, opened, memory, count);
    publish(self, opened, count);
    tell(self, opened);
}

/* ---- Made and destroyed -------------------------------------------------------------------------------- */

static PyObject *
ring_new(PyTypeObject *type, PyObject *args, PyObject *kwargs, int writes)
{
    PyObject *indices, *data;
    Py_ssize_t cons, prod, start, size;
    if (kwargs != NULL && PyDict_Size(kwargs) != 0) {
        PyErr_SetString(PyExc_TypeError, "a ring takes no keyword arguments");
        return NULL;
    }
    if (!PyArg_ParseTuple(args, "OnnOnn", &indices, &cons, &prod, &data, &start, &size))
        return NULL;
    if (cons < 0 || prod < 0 || start < 0 || size < 1 || size > (Py_ssize_t)1 << 31 || (size & (size - 1)) != 0) {
        PyErr_SetString(PyExc_ValueError, "a ring's offsets are not negative and its size is a power of two up to 2**31");
        return NULL;
    }
    Ring *self = (Ring *)PyType_GenericAlloc(type, 0);
    if (self == NULL)
        return NULL;
    self->indices = Py_NewRef(indices);
    self->data = Py_NewRef(data);
    self->own_at = writes ? prod : cons;
    self->peer_at = writes ? cons : prod;
    self->start = start;
    self->size = (uint32_t)size;
    self->writes = (char)writes;
    self->generation = fork_generation;
    Opened opened;
    if (ring_open(self, &opened) < 0) {
        Py_DECREF(self);
        return NULL;
    }
    self->own = __atomic_load_n((uint32_t *)((char *)opened.indices.buf + self->own_at), __ATOMIC_ACQUIRE);
    int looked = look_or_raise(self, &opened);
    ring_close(self, &opened);
    if (looked < 0) {
        Py_DECREF(self);
        return NULL;
    }
    return (PyObject *)self;
}

static PyObject *
reader_new(PyTypeObject *type, PyObject *args, PyObject *kwargs)
{
    return ring_new(type, args, kwargs, 0);
}

static PyObject *
writer_new(PyTypeObject *type, PyObject *args, PyObject *kwargs)
{
    return ring_new(type, args, kwargs, 1);
}

/* There is no tp_clear, as in held.c. */
static int
ring_traverse(PyObject *object, visitproc visit, void *arg)
{
    Ring *self = (Ring *)object;
    Py_VISIT(Py_TYPE(object));
    Py_VISIT(self->indices);
    Py_VISIT(self->data);
    return 0;
}

static void
ring_dealloc(PyObject *object)
{
    Ring *self = (Ring *)object;
    PyTypeObject *type = Py_TYPE(object);
    PyObject_GC_UnTrack(object);
    Py_XDECREF((PyObject *)self->doorbell);
    Py_XDECREF(self->indices);
    Py_XDECREF(self->data);
    PyObject_GC_Del(object);
    Py_DECREF(type);
}

/* Neither type has subclasses. */
int
is_ring(PyObject *object, int writes)
{
    return PyType_GetSlot(Py_TYPE(object), Py_tp_dealloc) == (void *)ring_dealloc && ((Ring *)object)->writes == writes;
}

/* ---- Methods and attributes ---------------------------------------------------------------------------- */

static PyObject *
ring_get_available(PyObject *object, void *Py_UNUSED(closure))
{
    Ring *self = (Ring *)object;
    Opened opened;
    if (ring_open(self, &opened) < 0)
        return NULL;
    int looked = look_or_raise(self, &opened);
    uint32_t seen = self->seen;
    ring_close(self, &opened);
    return looked < 0 ? NULL : PyLong_FromUnsignedLong(seen);
}

static PyObject *
reader_read(PyObject *object, PyObject *argument)
{
    Ring *self = (Ring *)object;
    Py_ssize_t most = PyNumber_AsSsize_t(argument, NULL);
    if (most == -1 && PyErr_Occurred())
        return NULL;
    if (most < 0) {
        PyErr_Format(PyExc_ValueError, "cannot read %zd bytes", most);
        return NULL;
    }
    Opened opened;
    if (ring_open(self, &opened) < 0)
        return NULL;
    PyObject *result = NULL;
    if (look_or_raise(self, &opened) == 0) {
        uint32_t count = (size_t)most < self->seen ? (uint32_t)most : self->seen;
        result = PyBytes_FromStringAndSize(NULL, (Py_ssize_t)count);
        if (result != NULL && count > 0)
            move(self, &opened, PyBytes_AsString(result), count);
    }
    ring_close(self, &opened);
    return result;
}

/* read into, or written from, a buffer: how many bytes. */
static PyObject *
ring_transfer(PyObject *object, PyObject *argument)
{
    Ring *self = (Ring *)object;
    Py_buffer memory;
    if (PyObject_GetBuffer(argument, &memory, self->writes ? PyBUF_SIMPLE : PyBUF_WRITABLE) < 0)
        return NULL;
    PyObject *result = NULL;
    Opened opened;
    if (ring_open(self, &opened) < 0)
        goto done;
    if (look_or_raise(self, &opened) == 0) {
        uint32_t count = (size_t)memory.len < self->seen ? (uint32_t)memory.len : self->seen;
        if (count > 0)
            move(self, &opened, memory.buf, count);
        result = PyLong_FromUnsignedLong(count);
    }
    ring_close(self, &opened);
done:
    PyBuffer_Release(&memory);
    return result;
}

/* Where the bytes lie that may be read, or written, up to the ring's end. */
static PyObject *
ring_piece(PyObject *object, PyObject *Py_UNUSED(ignored))
{
    Ring *self = (Ring *)object;
    Opened opened;
    if (ring_open(self, &opened) < 0)
        return NULL;
    PyObject *result = NULL;
    if (look_or_raise(self, &opened) == 0) {
        uint32_t at = self->own & (self->size - 1);
        uint32_t length = self->seen < self->size - at ? self->seen : self->size - at;
        result = Py_BuildValue("nI", self->start + (Py_ssize_t)at, (unsigned int)length);
    }
    ring_close(self, &opened);
    return result;
}

static PyObject *
ring_advance(PyObject *object, PyObject *argument)
{
    Ring *self = (Ring *)object;
    Py_ssize_t count = PyNumber_AsSsize_t(argument, NULL);
    if (count == -1 && PyErr_Occurred())
        return NULL;
    Opened opened;
    if (ring_open(self, &opened) < 0)
        return NULL;
    int within = count >= 0 && (size_t)count <= self->seen;
    uint32_t seen = self->seen;
    if (within && count > 0) {
        publish(self, &opened, (uint32_t)count);
        tell(self, &opened);
    }
    ring_close(self, &opened);
    if (within)
        Py_RETURN_NONE;
    return PyErr_Format(PyExc_ValueError, "cannot %s %zd bytes: %u were seen %s", self->writes ? "commit" : "consume",
                        count, seen, self->writes ? "free" : "ready");
}

/* ---- Waiting ------------------------------------------------------------------------------------------- */

typedef enum { READY, PEER_GONE, LATE, WOKEN, SILENT, LIE, PAUSED } Outcome;

/* Whether so many bytes are there. A lie counts too: `look` refuses it. */
static int
is_there(const Ring *self, const Opened *opened, uint32_t wanted)
{
    uint32_t peer = __atomic_load_n((uint32_t *)((char *)opened->indices.buf + self->peer_at), __ATOMIC_ACQUIRE);
    uint32_t own = __atomic_load_n(&self->own, __ATOMIC_RELAXED);
    uint32_t apart = self->writes ? own - peer : peer - own;
    return apart > self->size || (self->writes ? self->size - apart : apart) >= wanted;
}

static int
peer_is_gone(const Ring *self, const Opened *opened)
{
    return self->live_at >= 0 && __atomic_load_n((uint8_t *)opened->indices.buf + self->live_at, __ATOMIC_ACQUIRE) == 0;
}

static int
is_woken(const Ring *self)
{
    return __atomic_load_n(&self->doorbell->wakes, __ATOMIC_SEQ_CST) != self->wakes ||
           __atomic_load_n(&self->doorbell->stopped, __ATOMIC_SEQ_CST) != 0;
}

static int
spin(const Ring *self, const Opened *opened, uint32_t wanted, uint64_t deadline)
{
    uint64_t end = monotonic_now() + self->poll;
    if (deadline < end)
        end = deadline;
    do {
        for (int i = 0; i < 32; i++) {
            if (is_there(self, opened, wanted))
                return 1;
#if defined(__x86_64__) || defined(__i386__)
            __builtin_ia32_pause();
#elif defined(__aarch64__)
            __asm__ volatile("yield");
#endif
        }
    } while (monotonic_now() < end && !is_woken(self) && !peer_is_gone(self, opened));
    return 0;
}

/* Without the GIL: waits until the bytes are there, asking the peer to tell and looking again afterwards, so that no
 * event is lost; or until there may be a signal to look after. */
static Outcome
await_bytes(Ring *self, const Opened *opened, uint32_t wanted, uint64_t deadline)
{
    if (is_there(self, opened, wanted) || (self->poll != 0 && spin(self, opened, wanted, deadline)))
        return READY;
    uint8_t *ask = (uint8_t *)opened->indices.buf + self->ask_at;
    uint32_t seen = __atomic_load_n(&self->doorbell->changes, __ATOMIC_SEQ_CST);
    __atomic_fetch_or(ask, self->writes ? NOTIFY_READ : NOTIFY_WRITE, __ATOMIC_SEQ_CST);
    __atomic_thread_fence(__ATOMIC_SEQ_CST);
    if (is_there(self, opened, wanted))
        return READY;
    /* What the peer wrote before it went is there by now. */
    if (peer_is_gone(self, opened))
        return is_there(self, opened, wanted) ? READY : PEER_GONE;
    if (is_woken(self)) {
        self->wakes = __atomic_load_n(&self->doorbell->wakes, __ATOMIC_SEQ_CST);
        return WOKEN;
    }
    Waited waited = wait_for_change(self->doorbell, seen, deadline);
    /* Before it is asked for again. */
    if (is_there(self, opened, wanted))
        return READY;
    if (waited == TIMED_OUT || (deadline != NEVER && monotonic_now() >= deadline)) /* whatever events come */
        return LATE;
    return waited == SILENCED ? SILENT : PAUSED; /* with an event a signal may have come */
}

/* Without the GIL: moves up to `length` bytes, and waits until `least` of them were; or all at once. */
static Outcome
pump(Ring *self, const Opened *opened, char *memory, size_t length, size_t least, int whole, uint64_t deadline,
     size_t *moved)
{
    for (uint32_t promised = 0;;) {
        if (self->writes && peer_is_gone(self, opened))
            return PEER_GONE;
        size_t rest = length - *moved;
        occupy_without_gil(self);
        int looked = look_again(self, opened, promised);
        uint32_t count = rest < self->seen ? (uint32_t)rest : self->seen;
        if (looked < 0 || (whole && count < rest))
            count = 0;
        if (count > 0) {
            copy(self, opened, memory + *moved, count);
            publish(self, opened, count);
        }
        vacate(self);
        if (looked < 0)
            return LIE;
        if (count > 0)
            tell(self, opened);
        *moved += count;
        if (*moved >= least)
            return READY;
        promised = whole ? (uint32_t)length : 1;
        Outcome outcome = await_bytes(self, opened, promised, deadline);
        if (outcome != READY)
            return outcome;
    }
}

/* What cannot be waited for: 0, or -1 and an error is set. */
static int
check_waiting(const Ring *self, size_t length, int whole)
{
    if (self->doorbell == NULL)
        PyErr_SetString(PyExc_ValueError, "this end of a ring has no doorbell to wait on: bind() it");
    else if (whole && length > self->size)
        PyErr_Format(PyExc_ValueError, "%zu bytes at once do not fit in a ring of %u bytes", length, self->size);
    else
        return 0;
    return -1;
}

/* Lets signal handlers run, with no buffer held, since one may close what is waited on. Then 0, or -1 and an error is
 * set, and the buffers are released. */
static int
handle_signals(Ring *self, Opened *opened)
{
    release_buffers(opened);
    return PyErr_CheckSignals() < 0 ? -1 : take_buffers(self, opened);
}

/* 0, or -1 where an error is set. The buffers are released. */
static int
finish(Ring *self, Opened *opened, Outcome outcome)
{
    if (outcome == LIE)
        refuse(self);
    release_buffers(opened);
    return outcome == LIE ? -1 : 0;
}

/* As await_bytes, with the GIL, and signals handled. -1 where an error is set and the buffers are released. */
static int
await_with_signals(Ring *self, Opened *opened, uint32_t wanted, uint64_t deadline, Outcome *outcome)
{
    for (;;) {
        Py_BEGIN_ALLOW_THREADS
        *outcome = await_bytes(self, opened, wanted, deadline);
        Py_END_ALLOW_THREADS
        if (*outcome != PAUSED)
            return 0;
        if (handle_signals(self, opened) < 0)
            return -1;
    }
}

/* Moves what can be moved at once; whether that is enough. With the GIL. */
static int
move_at_once(Ring *self, const Opened *opened, char *memory, size_t length, size_t least, int whole, size_t *moved,
             Outcome *outcome)
{
    if (self->writes && peer_is_gone(self, opened))
        return 0;
    occupy(self);
    uint32_t count = 0;
    if (look(self, opened) < 0)
        *outcome = LIE;
    else {
        count = length < self->seen ? (uint32_t)length : self->seen;
        if (count < least && (whole || count >= WITHOUT_GIL))
            count = 0;
        if (count > 0)
            move(self, opened, memory, count);
    }
    vacate(self);
    *moved = count;
    return *outcome == LIE || count >= least;
}

PyObject *
pump_buffer(Ring *self, PyObject *buffer, Py_ssize_t start, size_t least, int whole, uint64_t deadline)
{
    Py_buffer memory;
    if (PyObject_GetBuffer(buffer, &memory, self->writes ? PyBUF_SIMPLE : PyBUF_WRITABLE) < 0)
        return NULL;
    if (start < 0 || start > memory.len) {
        PyErr_Format(PyExc_ValueError, "byte %zd lies outside %zd bytes", start, memory.len);
        PyBuffer_Release(&memory);
        return NULL;
    }
    size_t length = (size_t)(memory.len - start);
    PyObject *result = NULL;
    Opened opened;
    if (check_waiting(self, length, whole) == 0 && take_buffers(self, &opened) == 0) {
        Outcome outcome = READY;
        size_t moved = 0; /* this call's own: a signal handler may use the same end */
        if (least > length)
            least = length;
        int failed = 0;
        if (!move_at_once(self, &opened, (char *)memory.buf + start, length, least, whole, &moved, &outcome)) {
            do {
                Py_BEGIN_ALLOW_THREADS
                outcome = pump(self, &opened, (char *)memory.buf + start, length, least, whole, deadline, &moved);
                Py_END_ALLOW_THREADS
                failed = outcome == PAUSED && handle_signals(self, &opened) < 0;
            } while (outcome == PAUSED && !failed);
        }
        if (!failed && finish(self, &opened, outcome) == 0)
            result = outcome == READY ? PyLong_FromSize_t(moved) : Py_BuildValue("ni", (Py_ssize_t)moved, (int)outcome);
    }
    PyBuffer_Release(&memory);
    return result;
}

static PyObject *
writer_send(PyObject *object, PyObject *const *args, Py_ssize_t nargs)
{
    uint64_t deadline;
    Py_ssize_t start;
    if (check_count("send", nargs, 4) < 0 || parse_offset(args[1], &start) < 0 || parse_timeout(args[3], &deadline) < 0)
        return NULL;
    int whole = PyObject_IsTrue(args[2]);
    return whole < 0 ? NULL : pump_buffer((Ring *)object, args[0], start, SIZE_MAX, whole, deadline);
}

static PyObject *
reader_receive_into(PyObject *object, PyObject *const *args, Py_ssize_t nargs)
{
    uint64_t deadline;
    if (check_count("receive_into", nargs, 2) < 0 || parse_timeout(args[1], &deadline) < 0)
        return NULL;
    return pump_buffer((Ring *)object, args[0], 0, 1, 0, deadline);
}

PyObject *
receive_bytes(Ring *self, Py_ssize_t most, int whole, uint64_t deadline)
{
    if (most < 0)
        return PyErr_Format(PyExc_ValueError, "cannot read %zd bytes", most);
    Opened opened;
    if (check_waiting(self, (size_t)most, whole) < 0 || take_buffers(self, &opened) < 0)
        return NULL;
    uint32_t wanted = whole ? (uint32_t)most : most > 0;
    Outcome outcome = READY;
    if (!is_there(self, &opened, wanted) && await_with_signals(self, &opened, wanted, deadline, &outcome) < 0)
        return NULL;
    PyObject *result = NULL;
    if (outcome == READY) {
        occupy(self);
        if (look_again(self, &opened, wanted) < 0)
            outcome = LIE;
        else {
            uint32_t count = (size_t)most < self->seen ? (uint32_t)most : self->seen;
            result = PyBytes_FromStringAndSize(NULL, (Py_ssize_t)count);
            if (result != NULL && count > 0)
                move(self, &opened, PyBytes_AsString(result), count);
        }
        vacate(self);
    }
    if (finish(self, &opened, outcome) < 0)
        return NULL;
    return outcome == READY ? result : PyLong_FromLong(outcome);
}

static PyObject *
reader_receive(PyObject *object, PyObject *const *args, Py_ssize_t nargs)
{
    uint64_t deadline;
    Py_ssize_t most;
    if (check_count("receive", nargs, 3) < 0 || parse_offset(args[0], &most) < 0 || parse_timeout(args[2], &deadline) < 0)
        return NULL;
    int whole = PyObject_IsTrue(args[1]);
    return whole < 0 ? NULL : receive_bytes((Ring *)object, most, whole, deadline);
}

static PyObject *
ring_wait(PyObject *object, PyObject *const *args, Py_ssize_t nargs)
{
    Ring *self = (Ring *)object;
    uint32_t wanted;
    uint64_t deadline;
    if (check_count("wait", nargs, 2) < 0 || parse_value(args[0], 32, &wanted) < 0 || parse_timeout(args[1], &deadline) < 0)
        return NULL;
    Opened opened;
    if (check_waiting(self, wanted, 1) < 0 || take_buffers(self, &opened) < 0)
        return NULL;
    Outcome outcome;
    if (await_with_signals(self, &opened, wanted, deadline, &outcome) < 0)
        return NULL;
    if (outcome == READY) {
        occupy(self);
        if (look_again(self, &opened, wanted) < 0)
            outcome = LIE;
        vacate(self);
    }
    return finish(self, &opened, outcome) < 0 ? NULL : PyLong_FromLong(outcome);
}

static PyObject *
ring_bind(PyObject *object, PyTypeObject *type, PyObject *const *args, Py_ssize_t nargs, PyObject *names)
{
    Ring *self = (Ring *)object;
    State *state = PyType_GetModuleState(type);
    Py_ssize_t live, ask, asked;
    double poll;
    if (names != NULL && PyTuple_Size(names) != 0) {
        PyErr_SetString(PyExc_TypeError, "bind() takes no keyword arguments");
        return NULL;
    }
    if (check_count("bind", nargs, 5) < 0 || parse_offset(args[1], &live) < 0 || parse_offset(args[2], &ask) < 0 ||
        parse_offset(args[3], &asked) < 0)
        return NULL;
    poll = PyFloat_AsDouble(args[4]);
    if (poll == -1.0 && PyErr_Occurred())
        return NULL;
    if (!PyObject_TypeCheck(args[0], state->doorbell))
        return PyErr_Format(PyExc_TypeError, "%R is no Doorbell", args[0]);
    if (!(poll >= 0 && poll <= 10))
        return PyErr_Format(PyExc_ValueError, "poll is a number of seconds up to 10, not %R", args[4]);
    Opened opened;
    if (ring_open(self, &opened) < 0)
        return NULL;
    Py_ssize_t length = opened.indices.len;
    int within = live < length && ask >= 0 && ask < length && asked >= 0 && asked < length;
    PyObject *before = NULL;
    if (within) {
        before = (PyObject *)self->doorbell;
        self->doorbell = (Doorbell *)Py_NewRef(args[0]);
        self->wakes = __atomic_load_n(&self->doorbell->wakes, __ATOMIC_SEQ_CST);
        self->live_at = live;
        self->ask_at = ask;
        self->asked_at = asked;
        self->poll = (uint64_t)(poll * 1e9);
    }
    ring_close(self, &opened);
    Py_XDECREF(before);
    if (within)
        Py_RETURN_NONE;
    PyErr_SetString(PyExc_IndexError, "a byte to look at lies outside the buffer");
    return NULL;
}

static PyObject *
ring_enter(PyObject *object, PyObject *Py_UNUSED(ignored))
{
    return take_turn(&((Ring *)object)->turn, NEVER) < 0 ? NULL : Py_NewRef(object);
}

static PyObject *
ring_exit(PyObject *object, PyObject *Py_UNUSED(args))
{
    end_turn(&((Ring *)object)->turn);
    Py_RETURN_NONE;
}

static PyObject *
ring_get_size(PyObject *object, void *Py_UNUSED(closure))
{
    return PyLong_FromUnsignedLong(((Ring *)object)->size);
}

static PyObject *
ring_get_own(PyObject *object, void *Py_UNUSED(closure))
{
    return PyLong_FromUnsignedLong(__atomic_load_n(&((Ring *)object)->own, __ATOMIC_RELAXED));
}

#define WAITING                                                                                              \
    {"bind", METHOD(ring_bind),                                                                              \
     "bind($self, doorbell, live, ask, asked, poll, /)\n--\n\n"                                              \
     "Make this a vchan's end: it tells the peer of what that asked for in the byte at `asked` in `indices`, and waits\n" \
     "on the doorbell, having looked for `poll` seconds and asked to be told in the byte at `ask`, until the byte at\n" \
     "`live` is 0 (-1: there is none). Before another thread uses it."},                                     \
    {"wait", (PyCFunction)(void (*)(void))ring_wait, METH_FASTCALL,                                          \
     "wait($self, wanted, timeout, /)\n--\n\n"                                                              \
     "Wait until so many bytes are there. Returns how it ended: 0 they are, 1 the peer is gone, 2 the time was out, 3 the\n" \
     "doorbell was woken, 4 no event can come any more."},                    \
    {"__enter__", ring_enter, METH_NOARGS,                                                                   \
     "__enter__($self, /)\n--\n\nHave a turn: other threads that want one wait for its end. They nest."},     \
    {"__exit__", ring_exit, METH_VARARGS, "__exit__($self, exc_type, exc, traceback, /)\n--\n\nEnd the turn."}

static PyMethodDef reader_methods[] = {
    {"read", reader_read, METH_O, "read($self, most, /)\n--\n\nTake what is ready, at most that many bytes; b\"\" for none."},
    {"readinto", ring_transfer, METH_O,
     "readinto($self, buffer, /)\n--\n\nTake what is ready and fits: how many bytes, 0 for none."},
    {"peek", ring_piece, METH_NOARGS,
     "peek($self, /)\n--\n\nOffset in `data` and length of the bytes that are ready, up to the ring's end."},
    {"consume", ring_advance, METH_O,
     "consume($self, count, /)\n--\n\nGive the peer the room of the next bytes. ValueError for more than were seen ready."},
    {"receive", (PyCFunction)(void (*)(void))reader_receive, METH_FASTCALL,
     "receive($self, most, whole, timeout, /)\n--\n\n"
     "Take what is ready, at most that many bytes, or all of them, waiting for it;\n"
     "or how the wait for them ended, as `wait` has it."},
    {"receive_into", (PyCFunction)(void (*)(void))reader_receive_into, METH_FASTCALL,
     "receive_into($self, buffer, timeout, /)\n--\n\n"
     "Take what is ready and fits, waiting for a byte: how many; or 0 and how\n"
     "the wait ended, as `wait` has it."},
    WAITING,
    {NULL, NULL, 0, NULL},
};

static PyMethodDef writer_methods[] = {
    {"write", ring_transfer, METH_O, "write($self, buffer, /)\n--\n\nWrite what fits: how many bytes, 0 for none."},
    {"reserve", ring_piece, METH_NOARGS,
     "reserve($self, /)\n--\n\nOffset in `data` and length of the room that is free, up to the ring's end."},
    {"commit", ring_advance, METH_O,
     "commit($self, count, /)\n--\n\nShow the peer the next bytes. ValueError for more than were seen free."},
    {"send", (PyCFunction)(void (*)(void))writer_send, METH_FASTCALL,
     "send($self, buffer, start, whole, timeout, /)\n--\n\n"
     "Write the bytes from `start` on, at once where `whole`, waiting for room: how many; or, where\n"
     "that was not all, how many and how the wait ended, as `wait` has it."},
    WAITING,
    {NULL, NULL, 0, NULL},
};

static PyGetSetDef reader_getset[] = {
    {"ready", ring_get_available, NULL, "Bytes that can be read now; the peer's index is loaded once.", NULL},
    {"size", ring_get_size, NULL, "The ring's bytes.", NULL},
    {"cons", ring_get_own, NULL, "This end's own index, modulo 2**32.", NULL},
    {NULL, NULL, NULL, NULL, NULL},
};

static PyGetSetDef writer_getset[] = {
    {"space", ring_get_available, NULL, "Bytes that can be written now; the peer's index is loaded once.", NULL},
    {"size", ring_get_size, NULL, "The ring's bytes.", NULL},
    {"prod", ring_get_own, NULL, "This end's own index, modulo 2**32.", NULL},
    {NULL, NULL, NULL, NULL, NULL},
};

#define RING_DOC(NAME, WHAT)                                                                                 \
    #NAME "(indices, cons, prod, data, start, size, /)\n--\n\n"                                              \
    WHAT " end of a ring of `size` bytes, a power of two, at byte `start` of `data`; `cons` and `prod` are the byte\n" \
    "offsets of its indices in `indices`. It goes on from where they are. Every call but size and the own index may\n" \
    "raise ProtocolError: the peer's index ran backwards, or beyond the ring.\n\n"                           \
    "Threads: any call from any thread; of those that wait one at a time. The two ends are independent of each other."

static PyType_Slot reader_slots[] = {
    {Py_tp_doc, RING_DOC(RingReader, "The consuming")},
    {Py_tp_new, reader_new},
    {Py_tp_dealloc, ring_dealloc},
    {Py_tp_traverse, ring_traverse},
    {Py_tp_methods, reader_methods},
    {Py_tp_getset, reader_getset},
    {0, NULL},
};

static PyType_Slot writer_slots[] = {
    {Py_tp_doc, RING_DOC(RingWriter, "The producing")},
    {Py_tp_new, writer_new},
    {Py_tp_dealloc, ring_dealloc},
    {Py_tp_traverse, ring_traverse},
    {Py_tp_methods, writer_methods},
    {Py_tp_getset, writer_getset},
    {0, NULL},
};

PyType_Spec reader_spec = {
    .name = "xengrant._native.RingReader",
    .basicsize = sizeof(Ring),
    .flags = Py_TPFLAGS_DEFAULT | Py_TPFLAGS_HAVE_GC | Py_TPFLAGS_IMMUTABLETYPE,
    .slots = reader_slots,
};

PyType_Spec writer_spec = {
    .name = "xengrant._native.RingWriter",
    .basicsize = sizeof(Ring),
    .flags = Py_TPFLAGS_DEFAULT | Py_TPFLAGS_HAVE_GC | Py_TPFLAGS_IMMUTABLETYPE,
    .slots = writer_slots,
};

/* ---- Who wants to be told ------------------------------------------------------------------------------ */

static int
notify_arguments(const char *name, PyObject *const *args, Py_ssize_t nargs, Py_buffer *view, uint8_t **byte, uint8_t *bits)
{
    Py_ssize_t at;
    uint32_t value;
    if (check_count(name, nargs, 3) < 0 || parse_offset(args[1], &at) < 0 || parse_value(args[2], 8, &value) < 0 ||
        PyObject_GetBuffer(args[0], view, PyBUF_WRITABLE) < 0)
        return -1;
    if (at < 0 || at >= view->len) {
        PyErr_Format(PyExc_IndexError, "offset %zd: not within the buffer's %zd bytes", at, view->len);
        PyBuffer_Release(view);
        return -1;
    }
    *byte = (uint8_t *)view->buf + at;
    *bits = (uint8_t)value;
    return 0;
}

PyObject *
ask_notify(PyObject *Py_UNUSED(module), PyObject *const *args, Py_ssize_t nargs)
{
    Py_buffer view;
    uint8_t *byte, bits;
    if (notify_arguments("ask_notify", args, nargs, &view, &byte, &bits) < 0)
        return NULL;
    __atomic_fetch_or(byte, bits, __ATOMIC_SEQ_CST);
    __atomic_thread_fence(__ATOMIC_SEQ_CST);
    PyBuffer_Release(&view);
    Py_RETURN_NONE;
}

PyObject *
take_notify(PyObject *Py_UNUSED(module), PyObject *const *args, Py_ssize_t nargs)
{
    Py_buffer view;
    uint8_t *byte, bits;
    if (notify_arguments("take_notify", args, nargs, &view, &byte, &bits) < 0)
        return NULL;
    __atomic_thread_fence(__ATOMIC_SEQ_CST);
    int asked = (__atomic_load_n(byte, __ATOMIC_RELAXED) & bits) != 0; /* where nobody asks, the peer keeps the line */
    if (asked)
        asked = (__atomic_fetch_and(byte, (uint8_t)~bits, __ATOMIC_SEQ_CST) & bits) != 0;
    PyBuffer_Release(&view);
    return PyBool_FromLong(asked);
}
