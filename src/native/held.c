/* Held: pages that a program holds, with what they are called by: what a Share and a Mapped are made of. Here, since
 * a Descriptor makes them: Python code that runs between two system calls is dear, and this leaves it none.
 */

#include "native.h"

/* ---- Made and destroyed -------------------------------------------------------------------------------- */

int
check_held_type(State *state, PyObject *type)
{
    if (PyType_Check(type) && PyType_IsSubtype((PyTypeObject *)type, state->held))
        return 0;
    PyErr_Format(PyExc_TypeError, "%R is no subclass of Held", type);
    return -1;
}

PyObject *
make_held(PyTypeObject *type, PyObject *whose, PyObject *names, Mapping *mapping, int writable)
{
    Held *self = (Held *)PyType_GenericAlloc(type, 0);
    if (self != NULL) {
        self->whose = Py_NewRef(whose);
        self->names = Py_NewRef(names);
        self->mapping = (Mapping *)Py_NewRef((PyObject *)mapping);
        self->writable = (char)writable;
    }
    return (PyObject *)self;
}

static PyObject *
held_new(PyTypeObject *type, PyObject *args, PyObject *kwargs)
{
    PyObject *whose, *names, *mapping;
    int writable;
    if (kwargs != NULL && PyDict_Size(kwargs) != 0) {
        PyErr_SetString(PyExc_TypeError, "Held() takes no keyword arguments");
        return NULL;
    }
    if (!PyArg_ParseTuple(args, "OOOp:Held", &whose, &names, &mapping, &writable))
        return NULL;
    if (!is_mapping(mapping)) {
        PyErr_Format(PyExc_TypeError, "%R is no Mapping", mapping);
        return NULL;
    }
    return make_held(type, whose, names, (Mapping *)mapping, writable);
}

/* There is no tp_clear: like a tuple it never changes, so whatever cycle it is in has somewhere else to be broken, and
 * no method finds it without its mapping. */
static int
held_traverse(PyObject *object, visitproc visit, void *arg)
{
    Held *self = (Held *)object;
    Py_VISIT(Py_TYPE(object));
    Py_VISIT(self->whose);
    Py_VISIT(self->names);
    Py_VISIT((PyObject *)self->mapping);
    return 0;
}

static void
held_dealloc(PyObject *object)
{
    Held *self = (Held *)object;
    PyTypeObject *type = Py_TYPE(object);
    PyObject_GC_UnTrack(object);
    Py_XDECREF((PyObject *)self->mapping);
    Py_XDECREF(self->names);
    Py_XDECREF(self->whose);
    PyObject_GC_Del(object);
    Py_DECREF(type);
}

/* ---- Methods and attributes ---------------------------------------------------------------------------- */

static PyObject *
held_close(PyObject *object, PyObject *Py_UNUSED(ignored))
{
    return mapping_close((PyObject *)((Held *)object)->mapping, NULL);
}

static PyObject *
held_enter(PyObject *object, PyObject *Py_UNUSED(ignored))
{
    return check_open(((Held *)object)->mapping) < 0 ? NULL : Py_NewRef(object);
}

static PyObject *
held_exit(PyObject *object, PyObject *const *args, Py_ssize_t nargs)
{
    return mapping_exit((PyObject *)((Held *)object)->mapping, args, nargs);
}

static PyObject *
held_get_closed(PyObject *object, void *closure)
{
    return mapping_get_closed((PyObject *)((Held *)object)->mapping, closure);
}

PyDoc_STRVAR(held_doc,
"Held(whose, names, mapping, writable, /)\n--\n\n"
"Pages that are held until close(). Whose they are and their names mean what a subclass says; Descriptor.share() and\n"
"map() make one without calling __new__ or __init__. It never changes.\n\n"
"Threads: any call from any thread.");

static PyMethodDef held_methods[] = {
    {"close", held_close, METH_NOARGS,
     "close($self, /)\n--\n\n"
     "Unmap the pages; a second time does nothing. BufferError while views are alive, and then nothing changes."},
    {"__enter__", held_enter, METH_NOARGS, "__enter__($self, /)\n--\n\n"},
    {"__exit__", (PyCFunction)(void (*)(void))held_exit, METH_FASTCALL,
     "__exit__($self, exc_type, exc, traceback, /)\n--\n\nAs the mapping's."},
    {NULL, NULL, 0, NULL},
};

static PyMemberDef held_members[] = {
    {"_whose", T_OBJECT_EX, offsetof(Held, whose), READONLY, NULL},
    {"_names", T_OBJECT_EX, offsetof(Held, names), READONLY, NULL},
    {"mapping", T_OBJECT_EX, offsetof(Held, mapping), READONLY, "The pages' memory."},
    {"writable", T_BOOL, offsetof(Held, writable), READONLY, "Whether who maps them may write."},
    {NULL, 0, 0, 0, NULL},
};

static PyGetSetDef held_getset[] = {
    {"closed", held_get_closed, NULL, "Whether the mapping refuses new views.", NULL},
    {NULL, NULL, NULL, NULL, NULL},
};

static PyType_Slot held_slots[] = {
    {Py_tp_doc, (void *)held_doc},
    {Py_tp_new, held_new},
    {Py_tp_dealloc, held_dealloc},
    {Py_tp_traverse, held_traverse},
    {Py_tp_methods, held_methods},
    {Py_tp_members, held_members},
    {Py_tp_getset, held_getset},
    {0, NULL},
};

PyType_Spec held_spec = {
    .name = "xengrant._native.Held",
    .basicsize = sizeof(Held),
    .flags = Py_TPFLAGS_DEFAULT | Py_TPFLAGS_BASETYPE | Py_TPFLAGS_HAVE_GC | Py_TPFLAGS_IMMUTABLETYPE,
    .slots = held_slots,
};
