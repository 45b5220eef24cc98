/* Stream: both ends of a vchan together, as a class's base that moves bytes with nothing of Python between the caller and
 * the ring. What is unusual (the peer went, the time is out, a signal came, somebody woke us) goes to methods of the
 * subclass, which goes on, or raises.
 */

#include "native.h"

typedef struct {
    PyObject_HEAD
    Ring *incoming;
    Ring *outgoing;
    char ended; /* by the subclass, whose `_check_open` then says so */
} Stream;

/* ---- Made and destroyed -------------------------------------------------------------------------------- */

/* What __new__ is given is for the subclass's __init__. */
static PyObject *
stream_new(PyTypeObject *type, PyObject *Py_UNUSED(args), PyObject *Py_UNUSED(kwargs))
{
    return PyType_GenericAlloc(type, 0);
}

static int
stream_init(PyObject *object, PyObject *args, PyObject *Py_UNUSED(kwargs))
{
    Stream *self = (Stream *)object;
    PyObject *incoming, *outgoing;
    if (!PyArg_ParseTuple(args, "OO:Stream", &incoming, &outgoing))
        return -1;
    Ring *none = NULL;
    if (!is_ring(incoming, 0) || !is_ring(outgoing, 1) ||
        !__atomic_compare_exchange_n(&self->outgoing, &none, (Ring *)outgoing, 0, __ATOMIC_RELAXED, __ATOMIC_RELAXED)) {
        PyErr_SetString(PyExc_TypeError, "a Stream is made of a RingReader and a RingWriter, once");
        return -1;
    }
    Py_INCREF(outgoing);
    __atomic_store_n(&self->incoming, (Ring *)Py_NewRef(incoming), __ATOMIC_RELEASE); /* whoever sees it has both */
    return 0;
}

/* There is no tp_clear, as in held.c. */
static int
stream_traverse(PyObject *object, visitproc visit, void *arg)
{
    Stream *self = (Stream *)object;
    Py_VISIT(Py_TYPE(object));
    Py_VISIT((PyObject *)self->incoming);
    Py_VISIT((PyObject *)self->outgoing);
    return 0;
}

static void
stream_dealloc(PyObject *object)
{
    Stream *self = (Stream *)object;
    PyTypeObject *type = Py_TYPE(object);
    PyObject_GC_UnTrack(object);
    Py_XDECREF((PyObject *)self->incoming);
    Py_XDECREF((PyObject *)self->outgoing);
    PyObject_GC_Del(object);
    Py_DECREF(type);
}

/* ---- Calls --------------------------------------------------------------------------------------------- */

typedef struct {
    PyObject *subject; /* NULL where it was left out */
    uint64_t deadline;
} Call;

/* (subject, timeout=None), each by position or by name. */
static int HOT
parse_call(Stream *self, const char *const names[2], PyObject *const *args, Py_ssize_t nargs, PyObject *keywords,
           Call *call)
{
    PyObject *given[2] = {NULL, NULL};
    Py_ssize_t named = keywords == NULL ? 0 : PyTuple_Size(keywords);
    if (nargs + named > 2) {
        PyErr_SetString(PyExc_TypeError, "too many arguments");
        return -1;
    }
    for (Py_ssize_t i = 0; i < nargs; i++)
        given[i] = args[i];
    for (Py_ssize_t i = 0; i < named; i++) {
        PyObject *name = PyTuple_GetItem(keywords, i);
        int which = PyUnicode_CompareWithASCIIString(name, names[0]) == 0   ? 0
                    : PyUnicode_CompareWithASCIIString(name, names[1]) == 0 ? 1
                                                                            : -1;
        if (which < 0 || given[which] != NULL) {
            PyErr_Format(PyExc_TypeError, "unexpected keyword argument '%U'", name);
            return -1;
        }
        given[which] = args[nargs + i];
    }
    if (__atomic_load_n(&self->incoming, __ATOMIC_ACQUIRE) == NULL) {
        PyErr_SetString(PyExc_TypeError, "this Stream was not initialised");
        return -1;
    }
    if (__atomic_load_n(&self->ended, __ATOMIC_RELAXED)) {
        PyObject *open = PyObject_CallMethod((PyObject *)self, "_check_open", NULL);
        if (open == NULL)
            return -1;
        Py_DECREF(open);
    }
    call->subject = given[0];
    return parse_timeout(given[1] == NULL ? Py_None : given[1], &call->deadline);
}

static int HOT
check_subject(const Call *call, const char *name)
{
    if (call->subject != NULL)
        return 0;
    PyErr_Format(PyExc_TypeError, "missing required argument '%s'", name);
    return -1;
}

/* As time.monotonic() has it, or None. */
static PyObject *
deadline_object(const Call *call)
{
    return call->deadline == NEVER ? Py_NewRef(Py_None) : PyFloat_FromDouble((double)call->deadline / 1e9);
}

/* Has the subclass go on from (how many, why not all, how many the same call moved of earlier buffers). */
static PyObject *
go_on(Stream *self, const char *method, const Call *call, int whole, size_t moved, int outcome, Py_ssize_t earlier)
{
    PyObject *deadline = deadline_object(call);
    if (deadline == NULL)
        return NULL;
    PyObject *result = PyObject_CallMethod((PyObject *)self, method, "OOO(nin)", call->subject, whole ? Py_True : Py_False,
                                           deadline, (Py_ssize_t)moved, outcome, earlier);
    Py_DECREF(deadline);
    return result;
}

/* What `write` returns; for `send`, which is whole, None. */
static PyObject * HOT
write_all(Stream *self, const Call *call, int whole)
{
    if (take_turn(&self->outgoing->turn, call->deadline) < 0)
        return NULL;
    size_t moved;
    int outcome = pump_buffer(self->outgoing, call->subject, 0, SIZE_MAX, whole, call->deadline, &moved);
    PyObject *result = NULL;
    if (outcome == READY)
        result = whole ? Py_NewRef(Py_None) : PyLong_FromLong((long)moved);
    else if (outcome > READY) {
        result = go_on(self, "_send_on", call, whole, moved, outcome, 0);
        if (result != NULL && whole) {
            Py_DECREF(result);
            result = Py_NewRef(Py_None);
        }
    }
    end_turn(&self->outgoing->turn);
    return result;
}

/* Writes what is left of the line in which a wait came to an end by more than an event, `earlier` bytes after the first.
 * How many of its bytes were written in all, or -1 and an error is set. */
static Py_ssize_t
write_on(Stream *self, PyObject *line, uint64_t deadline, size_t moved, int outcome, Py_ssize_t earlier)
{
    const Call call = {line, deadline};
    PyObject *result = go_on(self, "_send_on", &call, 0, moved, outcome, earlier);
    Py_ssize_t done = result == NULL ? -1 : PyLong_AsSsize_t(result);
    Py_XDECREF(result);
    return done;
}

/* How many bytes of all lines: fewer where the time was out; or -1 and an error is set. In one's turn. */
static Py_ssize_t
write_lines(Stream *self, PyObject *lines, uint64_t deadline)
{
    Py_ssize_t count = PyTuple_Size(lines), next = 0, total = 0;
    while (next < count) {
        Progress progress;
        Py_ssize_t some = count - next < LINES_AT_ONCE ? count - next : LINES_AT_ONCE;
        int outcome = pump_lines(self->outgoing, lines, next, some, deadline, &progress);
        if (outcome < 0)
            return -1;
        total += (Py_ssize_t)progress.bytes;
        next += progress.whole;
        if (outcome == READY) {
            if (next < count && PyErr_CheckSignals() < 0)
                return -1;
            continue;
        }
        PyObject *line = PyTuple_GetItem(lines, next++);
        Py_ssize_t done = write_on(self, line, deadline, progress.part, outcome, total);
        if (done < 0)
            return -1;
        total += done;
        if ((size_t)done < progress.length)
            return total;
    }
    return total;
}

static const char *const data_names[] = {"data", "timeout"};
static const char *const lines_names[] = {"lines", "timeout"};
static const char *const size_names[] = {"size", "timeout"};
static const char *const most_names[] = {"most", "timeout"};
static const char *const buffer_names[] = {"buffer", "timeout"};

static PyObject * HOT
stream_send(PyObject *object, PyObject *const *args, Py_ssize_t nargs, PyObject *keywords)
{
    Call call;
    if (parse_call((Stream *)object, data_names, args, nargs, keywords, &call) < 0 || check_subject(&call, "data") < 0)
        return NULL;
    return write_all((Stream *)object, &call, 1);
}

static PyObject * HOT
stream_write(PyObject *object, PyObject *const *args, Py_ssize_t nargs, PyObject *keywords)
{
    Call call;
    if (parse_call((Stream *)object, data_names, args, nargs, keywords, &call) < 0 || check_subject(&call, "data") < 0)
        return NULL;
    return write_all((Stream *)object, &call, 0);
}

static PyObject *
stream_writelines(PyObject *object, PyObject *const *args, Py_ssize_t nargs, PyObject *keywords)
{
    Stream *self = (Stream *)object;
    Call call;
    if (parse_call(self, lines_names, args, nargs, keywords, &call) < 0 || check_subject(&call, "lines") < 0)
        return NULL;
    PyObject *lines = PySequence_Tuple(call.subject);
    if (lines == NULL)
        return NULL;
    Py_ssize_t total = -1;
    if (take_turn(&self->outgoing->turn, call.deadline) == 0) {
        total = write_lines(self, lines, call.deadline);
        end_turn(&self->outgoing->turn);
    }
    Py_DECREF(lines);
    return total < 0 ? NULL : PyLong_FromSsize_t(total);
}

static PyObject * HOT
read_bytes(Stream *self, const Call *call, Py_ssize_t most, int whole)
{
    if (take_turn(&self->incoming->turn, call->deadline) < 0)
        return NULL;
    Outcome outcome;
    PyObject *result = receive_bytes(self->incoming, most, whole, call->deadline, &outcome);
    if (result == NULL && outcome != READY && outcome != LIE) {
        PyObject *deadline = deadline_object(call);
        result = deadline == NULL ? NULL
                                  : PyObject_CallMethod((PyObject *)self, "_receive_on", "nOOi", most,
                                                        whole ? Py_True : Py_False, deadline, (int)outcome);
        Py_XDECREF(deadline);
    }
    end_turn(&self->incoming->turn);
    return result;
}

static PyObject * HOT
stream_recv(PyObject *object, PyObject *const *args, Py_ssize_t nargs, PyObject *keywords)
{
    Call call;
    Py_ssize_t size;
    if (parse_call((Stream *)object, size_names, args, nargs, keywords, &call) < 0 ||
        check_subject(&call, "size") < 0 || parse_offset(call.subject, &size) < 0)
        return NULL;
    return read_bytes((Stream *)object, &call, size, 1);
}

static PyObject * HOT
stream_read(PyObject *object, PyObject *const *args, Py_ssize_t nargs, PyObject *keywords)
{
    Call call;
    Py_ssize_t most = 65536;
    if (parse_call((Stream *)object, most_names, args, nargs, keywords, &call) < 0 ||
        (call.subject != NULL && parse_offset(call.subject, &most) < 0))
        return NULL;
    return read_bytes((Stream *)object, &call, most, 0);
}

static PyObject * HOT
read_into(Stream *self, const Call *call, int full)
{
    if (take_turn(&self->incoming->turn, call->deadline) < 0)
        return NULL;
    size_t moved;
    int outcome = pump_buffer(self->incoming, call->subject, 0, full ? SIZE_MAX : 1, 0, call->deadline, &moved);
    PyObject *result = NULL;
    if (outcome == READY)
        result = PyLong_FromLong((long)moved);
    else if (outcome > READY)
        result = go_on(self, "_receive_into_on", call, full, moved, outcome, 0);
    end_turn(&self->incoming->turn);
    return result;
}

static PyObject * HOT
stream_readinto(PyObject *object, PyObject *const *args, Py_ssize_t nargs, PyObject *keywords)
{
    Call call;
    if (parse_call((Stream *)object, buffer_names, args, nargs, keywords, &call) < 0 ||
        check_subject(&call, "buffer") < 0)
        return NULL;
    return read_into((Stream *)object, &call, 0);
}

static PyObject * HOT
stream_fill(PyObject *object, PyObject *const *args, Py_ssize_t nargs, PyObject *keywords)
{
    Call call;
    if (parse_call((Stream *)object, buffer_names, args, nargs, keywords, &call) < 0 ||
        check_subject(&call, "buffer") < 0)
        return NULL;
    return read_into((Stream *)object, &call, 1);
}

PyDoc_STRVAR(stream_doc,
"Stream(incoming, outgoing, /)\n--\n\n"
"Both ends of a vchan: moves bytes, and waits for them, in one call each. Whatever keeps it from that, and the end of\n"
"the doorbell's patience, goes to the subclass's `_send_on(data, whole, deadline, progress)`,\n"
"`_receive_on(most, whole, deadline, outcome)` or `_receive_into_on(buffer, full, deadline, progress)`, which return what\n"
"the call is to return.");

static PyObject *stream_init_subclass(PyObject *type, PyObject *args, PyObject *kwargs);

#define CALL(NAME, FUNCTION, SIGNATURE, DOC)                                                                 \
    {NAME, (PyCFunction)(void (*)(void))FUNCTION, METH_FASTCALL | METH_KEYWORDS, NAME "($self, " SIGNATURE ")\n--\n\n" DOC}

static PyMethodDef stream_methods[] = {
    CALL("send", stream_send, "data, timeout=None",
         "Write all of `data` at once, when there is room for it. ValueError where the ring is smaller.\n\n"
         "PeerClosed where the peer has closed. A TimeoutError means that nothing was written."),
    CALL("recv", stream_recv, "size, timeout=None",
         "Read exactly `size` bytes, when they are there. ValueError where the ring is smaller.\n\n"
         "PeerClosed where the peer has closed and left fewer; `read` still gives those."),
    CALL("write", stream_write, "data, timeout=None",
         "Write all of `data`; less only where the time was out, and then how many bytes: at least 1.\n\n"
         "PeerClosed where the peer has closed."),
    CALL("writelines", stream_writelines, "lines, timeout=None",
         "Write all of several buffers one after the other, as `write` does each, in one call: how many bytes."),
    CALL("read", stream_read, "most=65536, timeout=None",
         "Read what is there, at most `most` bytes, waiting for one at least; b\"\" where the peer has closed."),
    CALL("readinto", stream_readinto, "buffer, timeout=None",
         "As `read`, into a buffer: how many bytes, 0 where the peer has closed."),
    CALL("fill", stream_fill, "buffer, timeout=None",
         "Read until `buffer` is full, of any size: how many bytes; less only where the peer has closed, or the time was out\n"
         "with at least one read."),
    {"__init_subclass__", (PyCFunction)(void (*)(void))stream_init_subclass, METH_CLASS | METH_VARARGS | METH_KEYWORDS, NULL},
    {NULL, NULL, 0, NULL},
};

static PyMemberDef stream_members[] = {
    {"_ended", T_BOOL, offsetof(Stream, ended), 0, "Whether it is closed, or being closed."},
    {NULL, 0, 0, 0, NULL},
};

/* Gives the subclass the calls as methods of its own, where it has none: CPython has a short way to call those of an
 * object's own type, not to inherited ones. */
static PyObject *
stream_init_subclass(PyObject *type, PyObject *Py_UNUSED(args), PyObject *Py_UNUSED(kwargs))
{
    PyTypeObject *subclass = (PyTypeObject *)type, *base = PyType_GetSlot(subclass, Py_tp_base);
    if (PyType_GetSlot(base, Py_tp_new) != (void *)stream_new || PyType_GetSlot(base, Py_tp_dealloc) != (void *)stream_dealloc)
        Py_RETURN_NONE; /* a subclass's subclass, which may inherit other methods */
    PyObject *own = PyObject_GetAttrString(type, "__dict__");
    for (PyMethodDef *method = stream_methods; own != NULL && method->ml_flags == (METH_FASTCALL | METH_KEYWORDS); method++) {
        if (PyMapping_HasKeyString(own, method->ml_name))
            continue;
        PyObject *descriptor = PyDescr_NewMethod(subclass, method);
        if (descriptor == NULL || PyObject_SetAttrString(type, method->ml_name, descriptor) < 0)
            Py_CLEAR(own);
        Py_XDECREF(descriptor);
    }
    if (own == NULL)
        return NULL;
    Py_DECREF(own);
    Py_RETURN_NONE;
}

static PyType_Slot stream_slots[] = {
    {Py_tp_doc, (void *)stream_doc},
    {Py_tp_new, stream_new},
    {Py_tp_init, stream_init},
    {Py_tp_dealloc, stream_dealloc},
    {Py_tp_traverse, stream_traverse},
    {Py_tp_methods, stream_methods},
    {Py_tp_members, stream_members},
    {0, NULL},
};

PyType_Spec stream_spec = {
    .name = "xengrant._native.Stream",
    .basicsize = sizeof(Stream),
    .flags = Py_TPFLAGS_DEFAULT | Py_TPFLAGS_BASETYPE | Py_TPFLAGS_HAVE_GC | Py_TPFLAGS_IMMUTABLETYPE,
    .slots = stream_slots,
};
