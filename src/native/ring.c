/* Rings of bytes: RingReader and RingWriter, the two ends of a ring as the console, xenstore and vchan have it: two free
 * running indices of 32 bits, and a power of two of bytes, in memory that the peer writes too (Xen public/io/ring.h,
 * "xen_mb(); ... ; prod += n"). Here is what never waits; ring_wait.c waits.
 *
 * An end's own index is a private variable; what it says in shared memory is for the peer only. The peer's is loaded
 * once in each call and then checked: it may not run backwards, nor further than the ring has bytes. Whatever the peer
 * writes, no byte outside the ring is touched, and no call loops on what it writes but those that wait, which
 * have a timeout.
 */

#include "ring.h"

#include <sched.h>
#include <string.h>

/* ---- A call's view of the shared memory ---------------------------------------------------------------- */

int HOT
take_buffers(Ring *self, Opened *opened)
{
    if (take_region(self->indices, self->indices_mapping, 1, &opened->indices) < 0)
        return -1;
    if (take_region(self->data, self->data_mapping, self->writes, &opened->data) < 0)
        goto release;
    Py_ssize_t words = opened->indices.length - (Py_ssize_t)sizeof(uint32_t);
    if (self->own_at <= words && self->peer_at <= words &&
        self->start <= opened->data.length - (Py_ssize_t)self->size &&
        ((uintptr_t)opened->indices.at + (uintptr_t)self->own_at) % sizeof(uint32_t) == 0 &&
        ((uintptr_t)opened->indices.at + (uintptr_t)self->peer_at) % sizeof(uint32_t) == 0) {
        opened->bell = self->doorbell == NULL ? -1 : hold_descriptor(self->doorbell->bell);
        return 0;
    }
    PyErr_SetString(PyExc_ValueError, "the ring does not lie in its buffers, or its indices are not aligned");
    release_region(&opened->data);
release:
    release_region(&opened->indices);
    return -1;
}

void HOT
release_buffers(Ring *self, Opened *opened)
{
    if (opened->bell >= 0)
        drop_descriptor(self->doorbell->bell);
    release_region(&opened->data);
    release_region(&opened->indices);
}

/* One call at a time uses an end; another waits, without the GIL, which the first may need to finish. */
void HOT
occupy_without_gil(Ring *self)
{
    while (!take_word(&self->busy))
        sched_yield();
}

void HOT
occupy(Ring *self)
{
    if (!take_word(&self->busy)) {
        Py_BEGIN_ALLOW_THREADS
        occupy_without_gil(self);
        Py_END_ALLOW_THREADS
    }
}

void HOT
vacate(Ring *self)
{
    __atomic_store_n(&self->busy, 0, __ATOMIC_RELEASE);
}

int HOT
ring_open(Ring *self, Opened *opened)
{
    occupy(self);
    if (take_buffers(self, opened) == 0)
        return 0;
    vacate(self);
    return -1;
}

void
ring_close(Ring *self, Opened *opened)
{
    release_buffers(self, opened);
    vacate(self);
}

/* Loads the peer's index, once: how many bytes may be read, or written, now. 0, or -1 for a lie. */
int HOT
look(Ring *self, const Opened *opened)
{
    uint32_t peer = __atomic_load_n((uint32_t *)(opened->indices.at + self->peer_at), __ATOMIC_ACQUIRE);
    uint32_t apart = self->writes ? self->own - peer : peer - self->own;
    uint32_t may = self->writes ? self->size - apart : apart;
    if (apart > self->size || may < self->seen) {
        __atomic_store_n(&self->lie, peer, __ATOMIC_RELAXED); /* `refuse` reads it after vacate */
        return -1;
    }
    self->seen = may;
    return 0;
}

/* After `is_there` said that so many bytes are: an index that is behind that now, or was beyond the ring, is a lie. */
int HOT
look_again(Ring *self, const Opened *opened, uint32_t wanted)
{
    if (look(self, opened) < 0)
        return -1;
    if (self->seen >= wanted)
        return 0;
    uint32_t peer = self->writes ? self->own - (self->size - self->seen) : self->own + self->seen;
    __atomic_store_n(&self->lie, peer, __ATOMIC_RELAXED);
    return -1;
}

void
refuse(const Ring *self)
{
    PyObject *error = our_error("ProtocolError");
    if (error == NULL)
        return;
    PyErr_Format(error, "the peer's %s index of a ring of %u bytes is %u, where ours is %u: that cannot be",
                 self->writes ? "consumer" : "producer", self->size, __atomic_load_n(&self->lie, __ATOMIC_RELAXED),
                 __atomic_load_n(&self->own, __ATOMIC_RELAXED));
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
void HOT
publish(Ring *self, const Opened *opened, uint32_t count)
{
    uint32_t own = self->own + count;
    __atomic_store_n(&self->own, own, __ATOMIC_RELAXED); /* `wait` of another thread reads it */
    self->seen -= count;
    __atomic_store_n((uint32_t *)(opened->indices.at + self->own_at), own, __ATOMIC_RELEASE);
}

void HOT
copy(const Ring *self, const Opened *opened, char *memory, uint32_t count)
{
    char *ring = opened->data.at + self->start;
    uint32_t at = self->own & (self->size - 1);
    uint32_t first = count < self->size - at ? count : self->size - at;
    if (count == 1) { /* without a call of libc, whose page may be cold */
        char *to = self->writes ? ring + at : memory;
        *to = self->writes ? *memory : ring[at];
    } else {
        memcpy(self->writes ? ring + at : memory, self->writes ? memory : ring + at, first);
        if (count > first)
            memcpy(self->writes ? ring : memory + first, self->writes ? memory + first : ring, count - first);
    }
}

/* Once an index was stored: tells the peer, where this end can and that asked for it. */
void HOT
tell(Ring *self, const Opened *opened)
{
    if (opened->bell < 0)
        return;
    uint8_t *asked = (uint8_t *)opened->indices.at + self->asked_at;
    uint8_t bit = self->writes ? NOTIFY_WRITE : NOTIFY_READ;
    __atomic_thread_fence(__ATOMIC_SEQ_CST);
    if ((__atomic_load_n(asked, __ATOMIC_RELAXED) & bit) != 0 && /* where nobody asks, the peer keeps the line */
        (__atomic_fetch_and(asked, (uint8_t)~bit, __ATOMIC_SEQ_CST) & bit) != 0)
        ring_held_bell(self->doorbell, opened->bell); /* an error says that the port is closed: then nobody is to be told */
}

void HOT
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
    self->indices_mapping = is_mapping(indices) ? (Mapping *)indices : NULL;
    self->data_mapping = is_mapping(data) ? (Mapping *)data : NULL;
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
    self->own = __atomic_load_n((uint32_t *)(opened.indices.at + self->own_at), __ATOMIC_ACQUIRE);
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
     "bind($self, doorbell, live, ask, asked, /)\n--\n\n"                                                     \
     "Make this a vchan's end: it tells the peer of what that asked for in the byte at `asked` in `indices`, and waits\n" \
     "on the doorbell, having looked as long as that says and asked to be told in the byte at `ask`, until the byte at\n" \
     "`live` is 0 (-1: there is none). Before another thread uses it."},                                     \
    {"wait", (PyCFunction)(void (*)(void))ring_wait, METH_FASTCALL,                                          \
     "wait($self, wanted, timeout, /)\n--\n\n"                                                              \
     "Wait until so many bytes are there. Returns how it ended: 0 they are, 1 the peer is gone, 2 the time was out, 3 the\n" \
     "doorbell was woken, 4 no event can come any more."},                    \
    {"turn", METHOD(ring_turn),                                                                              \
     "turn($self, timeout, /)\n--\n\n"                                                                       \
     "For a with block: a turn, from now on within so many seconds. Other threads wait for its end. They nest."}

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
     "receive_into($self, buffer, start, full, timeout, /)\n--\n\n"
     "Take what is ready and fits from byte `start` on, waiting for a byte, or until the buffer is full: how many; or, where\n"
     "that was not so, how many and how the wait ended, as `wait` has it."},
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
