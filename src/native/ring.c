/* Rings of bytes: RingReader and RingWriter, the two ends of a ring as the console, xenstore and vchan have it: two free
 * running indices of 32 bits, and a power of two of bytes, in memory that the peer writes too (Xen public/io/ring.h,
 * "xen_mb(); ... ; prod += n"). And ask_notify and take_notify, a vchan's bytes of who wants to be told.
 *
 * An end's own index is a private variable; what it says in shared memory is for the peer only. The peer's is loaded
 * once in each call and then checked: it may not run backwards, nor further than the ring has bytes. Whatever the peer
 * writes, no byte outside the ring is touched, and no call loops on what it writes but `wait`, which has a timeout.
 */

#include "native.h"

#include <sched.h>
#include <string.h>

typedef struct {
    PyObject_HEAD
    PyObject *indices; /* the buffers' owners; each call takes their buffers anew, so that they can be closed between */
    PyObject *data;
    Py_ssize_t own_at;
    Py_ssize_t peer_at;
    Py_ssize_t start;
    uint32_t size;
    uint32_t own;
    uint32_t seen; /* bytes that may be read, or written, when the peer's index was last loaded, less what was since */
    uint32_t busy; /* 1 while a call uses the above */
    char writes;
} Ring;

/* Copies shorter than this keep the GIL: giving it up can cost a wait for another thread's turn, 5 ms. */
#define WITHOUT_GIL 16384

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

/* One call at a time: another waits, and leaves the first the GIL, which that may need to finish. */
static int
ring_open(Ring *self, Opened *opened)
{
    while (__atomic_exchange_n(&self->busy, 1, __ATOMIC_ACQUIRE)) {
        Py_BEGIN_ALLOW_THREADS
        sched_yield();
        Py_END_ALLOW_THREADS
    }
    if (take_buffers(self, opened) == 0)
        return 0;
    __atomic_store_n(&self->busy, 0, __ATOMIC_RELEASE);
    return -1;
}

static void
ring_close(Ring *self, Opened *opened)
{
    release_buffers(opened);
    __atomic_store_n(&self->busy, 0, __ATOMIC_RELEASE);
}

static void
refuse(const Ring *self, uint32_t peer)
{
    PyObject *errors = PyImport_ImportModule("xengrant.errors");
    PyObject *error = errors == NULL ? NULL : PyObject_GetAttrString(errors, "ProtocolError");
    Py_XDECREF(errors);
    if (error == NULL)
        return;
    PyErr_Format(error, "the peer's %s index of a ring of %u bytes is %u, where ours is %u: that cannot be",
                 self->writes ? "consumer" : "producer", self->size, peer, self->own);
    Py_DECREF(error);
}

/* How many bytes may be read, or written, now. */
static int
look(Ring *self, const Opened *opened)
{
    uint32_t peer = __atomic_load_n((uint32_t *)((char *)opened->indices.buf + self->peer_at), __ATOMIC_ACQUIRE);
    uint32_t apart = self->writes ? self->own - peer : peer - self->own;
    uint32_t may = self->writes ? self->size - apart : apart;
    if (apart > self->size || may < self->seen) {
        refuse(self, peer);
        return -1;
    }
    self->seen = may;
    return 0;
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

static void
copy_and_publish(Ring *self, const Opened *opened, char *memory, uint32_t count)
{
    if (count >= WITHOUT_GIL) {
        Py_BEGIN_ALLOW_THREADS
        copy(self, opened, memory, count);
        Py_END_ALLOW_THREADS
    } else
        copy(self, opened, memory, count);
    publish(self, opened, count);
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
    Opened opened;
    if (ring_open(self, &opened) < 0) {
        Py_DECREF(self);
        return NULL;
    }
    self->own = __atomic_load_n((uint32_t *)((char *)opened.indices.buf + self->own_at), __ATOMIC_ACQUIRE);
    int looked = look(self, &opened);
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
    Py_XDECREF(self->indices);
    Py_XDECREF(self->data);
    PyObject_GC_Del(object);
    Py_DECREF(type);
}

/* ---- Methods and attributes ---------------------------------------------------------------------------- */

static PyObject *
ring_get_available(PyObject *object, void *Py_UNUSED(closure))
{
    Ring *self = (Ring *)object;
    Opened opened;
    if (ring_open(self, &opened) < 0)
        return NULL;
    int looked = look(self, &opened);
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
    if (look(self, &opened) == 0) {
        uint32_t count = (size_t)most < self->seen ? (uint32_t)most : self->seen;
        result = PyBytes_FromStringAndSize(NULL, (Py_ssize_t)count);
        if (result != NULL && count > 0)
            copy_and_publish(self, &opened, PyBytes_AsString(result), count);
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
    if (look(self, &opened) == 0) {
        uint32_t count = (size_t)memory.len < self->seen ? (uint32_t)memory.len : self->seen;
        if (count > 0)
            copy_and_publish(self, &opened, memory.buf, count);
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
    if (look(self, &opened) == 0) {
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
    if (within)
        publish(self, &opened, (uint32_t)count);
    ring_close(self, &opened);
    if (within)
        Py_RETURN_NONE;
    return PyErr_Format(PyExc_ValueError, "cannot %s %zd bytes: %u were seen %s", self->writes ? "commit" : "consume",
                        count, seen, self->writes ? "free" : "ready");
}

/* ---- Waiting ------------------------------------------------------------------------------------------- */

typedef struct {
    uint32_t *peer;
    uint8_t *live;  /* not 0 while the peer is there, or NULL */
    uint8_t *asked; /* where to ask the peer to tell */
    uint8_t bit;
    uint32_t wanted;
    uint64_t poll;
    uint64_t deadline;
} Awaited;

typedef enum { READY, PEER_GONE, LATE, WOKEN, SILENT } Outcome;

/* Whether so many bytes are there. A lie counts too: the call that follows refuses it. */
static int
is_ready(const Ring *self, const Awaited *awaited)
{
    uint32_t peer = __atomic_load_n(awaited->peer, __ATOMIC_ACQUIRE);
    uint32_t own = __atomic_load_n(&self->own, __ATOMIC_RELAXED);
    uint32_t apart = self->writes ? own - peer : peer - own;
    return apart > self->size || (self->writes ? self->size - apart : apart) >= awaited->wanted;
}

static int
spin(const Ring *self, const Awaited *awaited)
{
    uint64_t end = monotonic_now() + awaited->poll;
    do {
        for (int i = 0; i < 32; i++) {
            if (is_ready(self, awaited))
                return 1;
#if defined(__x86_64__) || defined(__i386__)
            __builtin_ia32_pause();
#elif defined(__aarch64__)
            __asm__ volatile("yield");
#endif
        }
    } while (monotonic_now() < end);
    return 0;
}

/* Waits until the bytes are there, asking the peer to tell and looking again afterwards: no event is lost. */
static Outcome
await_bytes(const Ring *self, const Awaited *awaited, Doorbell *doorbell, uint32_t wakes, int *interrupted)
{
    if (is_ready(self, awaited) || (awaited->poll != 0 && spin(self, awaited)))
        return READY;
    for (;;) {
        uint32_t seen = __atomic_load_n(&doorbell->changes, __ATOMIC_SEQ_CST);
        __atomic_fetch_or(awaited->asked, awaited->bit, __ATOMIC_SEQ_CST);
        __atomic_thread_fence(__ATOMIC_SEQ_CST);
        if (is_ready(self, awaited))
            return READY;
        /* What the peer wrote before it went is there by now. */
        if (awaited->live != NULL && __atomic_load_n(awaited->live, __ATOMIC_ACQUIRE) == 0)
            return is_ready(self, awaited) ? READY : PEER_GONE;
        if (__atomic_load_n(&doorbell->wakes, __ATOMIC_SEQ_CST) != wakes)
            return WOKEN;
        switch (wait_for_change(doorbell, seen, awaited->deadline)) {
        case CHANGED:
            break;
        case TIMED_OUT:
            return is_ready(self, awaited) ? READY : LATE;
        case SILENCED:
            return is_ready(self, awaited) ? READY : SILENT;
        case INTERRUPTED:
            *interrupted = 1;
            return WOKEN;
        }
    }
}

static PyObject *
ring_wait(PyObject *object, PyTypeObject *type, PyObject *const *args, Py_ssize_t nargs, PyObject *names)
{
    Ring *self = (Ring *)object;
    State *state = PyType_GetModuleState(type);
    Awaited awaited;
    uint32_t bit, wakes, poll;
    Py_ssize_t live, asked;
    if (names != NULL && PyTuple_Size(names) != 0) {
        PyErr_SetString(PyExc_TypeError, "wait() takes no keyword arguments");
        return NULL;
    }
    if (check_count("wait", nargs, 8) < 0 || parse_value(args[0], 32, &awaited.wanted) < 0 ||
        parse_offset(args[2], &live) < 0 || parse_offset(args[3], &asked) < 0 || parse_value(args[4], 8, &bit) < 0 ||
        parse_value(args[5], 32, &wakes) < 0 || parse_value(args[6], 32, &poll) < 0 ||
        parse_timeout(args[7], &awaited.deadline) < 0)
        return NULL;
    if (!PyObject_TypeCheck(args[1], state->doorbell)) {
        PyErr_Format(PyExc_TypeError, "%R is no Doorbell", args[1]);
        return NULL;
    }
    Doorbell *doorbell = (Doorbell *)args[1];
    Opened opened;
    if (take_buffers(self, &opened) < 0)
        return NULL;
    Outcome outcome = WOKEN;
    int interrupted = 0;
    if (live >= opened.indices.len || asked < 0 || asked >= opened.indices.len) {
        PyErr_SetString(PyExc_IndexError, "a byte to look at lies outside the buffer");
        interrupted = -1;
    } else {
        char *page = opened.indices.buf;
        awaited.peer = (uint32_t *)(page + self->peer_at);
        awaited.live = live < 0 ? NULL : (uint8_t *)page + live;
        awaited.asked = (uint8_t *)page + asked;
        awaited.bit = (uint8_t)bit;
        awaited.poll = poll;
        Py_BEGIN_ALLOW_THREADS
        outcome = await_bytes(self, &awaited, doorbell, wakes, &interrupted);
        Py_END_ALLOW_THREADS
    }
    release_buffers(&opened);
    /* A handler may close what was waited on: the caller looks. */
    if (interrupted < 0 || (interrupted && PyErr_CheckSignals() < 0))
        return NULL;
    return PyLong_FromLong(outcome);
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

#define WAIT                                                                                                 \
    {"wait", METHOD(ring_wait),                                                                              \
     "wait($self, wanted, doorbell, live, asked, bit, wakes, poll, timeout, /)\n--\n\n"                      \
     "Wait until `wanted` bytes are there (0), the peer's byte at `live` in `indices` is 0 (1; -1 for no such byte),\n"  \
     "`timeout` seconds have passed (2), the doorbell's `wakes` is another or a signal came (3), or no event can come any more (4).\n"   \
     "Looks again and again for `poll` nanoseconds, then sets `bit` in the byte at `asked`, looks, and sleeps."}

static PyMethodDef reader_methods[] = {
    {"read", reader_read, METH_O, "read($self, most, /)\n--\n\nTake what is ready, at most that many bytes; b\"\" for none."},
    {"readinto", ring_transfer, METH_O,
     "readinto($self, buffer, /)\n--\n\nTake what is ready and fits: how many bytes, 0 for none."},
    {"peek", ring_piece, METH_NOARGS,
     "peek($self, /)\n--\n\nOffset in `data` and length of the bytes that are ready, up to the ring's end."},
    {"consume", ring_advance, METH_O,
     "consume($self, count, /)\n--\n\nGive the peer the room of the next bytes. ValueError for more than were seen ready."},
    WAIT,
    {NULL, NULL, 0, NULL},
};

static PyMethodDef writer_methods[] = {
    {"write", ring_transfer, METH_O, "write($self, buffer, /)\n--\n\nWrite what fits: how many bytes, 0 for none."},
    {"reserve", ring_piece, METH_NOARGS,
     "reserve($self, /)\n--\n\nOffset in `data` and length of the room that is free, up to the ring's end."},
    {"commit", ring_advance, METH_O,
     "commit($self, count, /)\n--\n\nShow the peer the next bytes. ValueError for more than were seen free."},
    WAIT,
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
    "Threads: any call from any thread, one after the other; `wait` beside others. The two ends are independent."

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
