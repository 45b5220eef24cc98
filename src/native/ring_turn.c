/* A turn at an end of a ring: a `with` block that takes it, within a deadline, and ends it. */

#include "ring.h"

typedef struct {
    PyObject_HEAD
    Ring *ring;
    uint64_t deadline;
} RingTurn;

PyObject *
ring_turn(PyObject *object, PyTypeObject *type, PyObject *const *args, Py_ssize_t nargs, PyObject *names)
{
    State *state = PyType_GetModuleState(type);
    uint64_t deadline;
    if (names != NULL && PyTuple_Size(names) != 0) {
        PyErr_SetString(PyExc_TypeError, "turn() takes no keyword arguments");
        return NULL;
    }
    if (check_count("turn", nargs, 1) < 0 || parse_timeout(args[0], &deadline) < 0)
        return NULL;
    allocfunc allocate = (allocfunc)PyType_GetSlot(state->ring_turn, Py_tp_alloc);
    RingTurn *self = (RingTurn *)allocate(state->ring_turn, 0);
    if (self != NULL) {
        self->ring = (Ring *)Py_NewRef(object);
        self->deadline = deadline;
    }
    return (PyObject *)self;
}

static PyObject *
ring_turn_enter(PyObject *object, PyObject *Py_UNUSED(ignored))
{
    RingTurn *self = (RingTurn *)object;
    return take_turn(&self->ring->turn, self->deadline) < 0 ? NULL : Py_NewRef((PyObject *)self->ring);
}

static PyObject *
ring_turn_exit(PyObject *object, PyObject *Py_UNUSED(args))
{
    end_turn(&((RingTurn *)object)->ring->turn);
    Py_RETURN_NONE;
}

static void
ring_turn_dealloc(PyObject *object)
{
    PyTypeObject *type = Py_TYPE(object);
    Py_XDECREF((PyObject *)((RingTurn *)object)->ring);
    freefunc free_object = (freefunc)PyType_GetSlot(type, Py_tp_free);
    free_object(object);
    Py_DECREF(type);
}

static PyMethodDef ring_turn_methods[] = {
    {"__enter__", ring_turn_enter, METH_NOARGS, "__enter__($self, /)\n--\n\nTake the turn. TimeoutError where another thread has it for too long."},
    {"__exit__", ring_turn_exit, METH_VARARGS, "__exit__($self, exc_type, exc, traceback, /)\n--\n\nEnd it."},
    {NULL, NULL, 0, NULL},
};

PyDoc_STRVAR(ring_turn_doc, "What `turn` of a ring's end makes: a thread's turn there, for a with block.");

static PyType_Slot ring_turn_slots[] = {
    {Py_tp_doc, (void *)ring_turn_doc},
    {Py_tp_dealloc, ring_turn_dealloc},
    {Py_tp_methods, ring_turn_methods},
    {0, NULL},
};

PyType_Spec ring_turn_spec = {
    .name = "xengrant._native.RingTurn",
    .basicsize = sizeof(RingTurn),
    .flags = Py_TPFLAGS_DEFAULT | Py_TPFLAGS_IMMUTABLETYPE | Py_TPFLAGS_DISALLOW_INSTANTIATION,
    .slots = ring_turn_slots,
};
