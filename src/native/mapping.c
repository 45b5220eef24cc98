/* Mapping: pages mapped from descriptors, exported through the buffer protocol, which cannot be unmapped under a view.
 * It is the object behind xengrant.memory. This is the type, with what Python sees of it; mapping.h lists the rest.
 */

#include "mapping.h"

Py_ssize_t page_size;

/* ---- Made and destroyed -------------------------------------------------------------------------------- */

Mapping *
allocate_mapping(PyTypeObject *type, Py_ssize_t length, int writable)
{
    Mapping *self = (Mapping *)PyType_GenericAlloc(type, 0);
    if (self != NULL) {
        self->state = CLOSED; /* until there is something to unmap */
        self->length = length;
        self->writable = (char)writable;
    }
    return self;
}

/* Unmaps what was not closed. Views still live are then garbage too, and the collector releases them later,
 * when it has begun to take objects apart. So that `unmapped` is whole when the last view calls it, the
 * collector is shown no more that it is ours: what it reaches survives. (One that reaches the mapping or a
 * view keeps all of it alive for ever: after the warning.) */
static void
mapping_finalize(PyObject *object)
{
    Mapping *self = (Mapping *)object;
    if (state_of(self) == CLOSED)
        return;
    PyObject *type, *value, *traceback;
    PyErr_Fetch(&type, &value, &traceback);
    if (!(state_of(self) & CLOSED) && PyErr_ResourceWarning(object, 1, "unclosed %R", object) < 0)
        PyErr_WriteUnraisable(object);
    uint32_t before = refuse_exports(self);
    if (before == 0)
        unmap_unraisable(self);
    else if (before & EXPORTS)
        self->escaped = 1;
    PyErr_Restore(type, value, traceback);
}

static int
memory_traverse(PyObject *object, visitproc visit, void *arg)
{
    Mapping *self = (Mapping *)object;
    Py_VISIT(Py_TYPE(object));
    if (!self->escaped)
        Py_VISIT(self->unmapped);
    return 0;
}

static int
memory_clear(PyObject *object)
{
    Mapping *self = (Mapping *)object;
    if (!self->escaped)
        Py_CLEAR(self->unmapped);
    return 0;
}

static void
memory_dealloc(PyObject *object)
{
    Mapping *self = (Mapping *)object;
    PyTypeObject *type = Py_TYPE(object);
    PyObject_GC_UnTrack(object);
    if (self->weakrefs != NULL)
        PyObject_ClearWeakRefs(object);
    if (self->address != NULL && !(state_of(self) & FORKED)) {
        /* A subclass's __del__ did not call ours, or munmap failed there. Nobody is left to be told. */
        abandon_memory(self);
    }
    Py_XDECREF(self->unmapped);
    Py_XDECREF((PyObject *)self->granted);
    PyObject_GC_Del(object);
    Py_DECREF(type);
}

/* Whether it is one, or of a subclass. Any Python class, of which no module state is known, may be asked about. */
int
is_mapping(PyObject *object)
{
    PyTypeObject *type = Py_TYPE(object);
    while (type != NULL && PyType_GetSlot(type, Py_tp_finalize) != (void *)mapping_finalize)
        type = PyType_GetSlot(type, Py_tp_base);
    return type != NULL;
}

/* ---- Methods and attributes ---------------------------------------------------------------------------- */

static PyObject *
mapping_repr(PyObject *object)
{
    Mapping *self = (Mapping *)object;
    uint32_t state = state_of(self);
    PyObject *name = PyType_GetName(Py_TYPE(object));
    if (name == NULL)
        return NULL;
    PyObject *repr;
    Py_ssize_t pages = self->length / page_size;
    unsigned long exports = state & EXPORTS;
    if (state & FORKED)
        repr = PyUnicode_FromFormat("<%U of the parent process>", name);
    else if (state & CLOSED && exports != 0)
        repr = PyUnicode_FromFormat("<%U closed, %lu view%s alive>", name, exports, exports == 1 ? "" : "s");
    else if (state & CLOSED)
        repr = PyUnicode_FromFormat("<%U closed>", name);
    else
        repr = PyUnicode_FromFormat("<%U %zd page%s at %p %s>", name, pages, pages == 1 ? "" : "s",
                                    __atomic_load_n(&self->address, __ATOMIC_RELAXED),
                                    self->writable ? "writable" : "read-only");
    Py_DECREF(name);
    return repr;
}

PyObject *
mapping_close(PyObject *object, PyObject *Py_UNUSED(ignored))
{
    Mapping *self = (Mapping *)object;
    uint32_t state = 0;
    if (__atomic_compare_exchange_n(&self->state, &state, CLOSED, 0, __ATOMIC_ACQ_REL, __ATOMIC_ACQUIRE)) {
        if (unmap(self) < 0)
            return NULL;
    } else if (!(state & CLOSED)) {
        if (state == 1)
            PyErr_SetString(PyExc_BufferError, "1 view of this mapping is still alive; release it first");
        else
            PyErr_Format(PyExc_BufferError, "%lu views of this mapping are still alive; release them first",
                         (unsigned long)state);
        return NULL;
    }
    Py_RETURN_NONE;
}

static PyObject *
mapping_close_on_release(PyObject *object, PyObject *Py_UNUSED(ignored))
{
    Mapping *self = (Mapping *)object;
    if (refuse_exports(self) == 0 && unmap(self) < 0)
        return NULL;
    Py_RETURN_NONE;
}

static PyObject *
mapping_enter(PyObject *object, PyObject *Py_UNUSED(ignored))
{
    return check_open((Mapping *)object) < 0 ? NULL : Py_NewRef(object);
}

static int
add_note(PyObject *error, const char *format, PyObject *object, uint32_t exports)
{
    PyObject *note = PyUnicode_FromFormat(format, object, (unsigned long)exports, exports == 1 ? "" : "s");
    if (note == NULL)
        return -1;
    PyObject *result = PyObject_CallMethod(error, "add_note", "O", note);
    Py_DECREF(note);
    Py_XDECREF(result);
    return result == NULL ? -1 : 0;
}

PyObject *
mapping_exit(PyObject *object, PyObject *const *args, Py_ssize_t nargs)
{
    Mapping *self = (Mapping *)object;
    if (check_count("__exit__", nargs, 3) < 0)
        return NULL;
    uint32_t state = state_of(self);
    if (!PyExceptionInstance_Check(args[1]) || state & CLOSED || (state & EXPORTS) == 0)
        return mapping_close(object, NULL);
    if (add_note(args[1], "%R is unmapped later: %lu view%s of it still alive", object, state & EXPORTS) < 0)
        PyErr_WriteUnraisable(object);
    return mapping_close_on_release(object, NULL);
}

static PyObject *
mapping_page(PyObject *object, PyObject *argument)
{
    Mapping *self = (Mapping *)object;
    Py_ssize_t page = PyNumber_AsSsize_t(argument, PyExc_IndexError);
    if ((page == -1 && PyErr_Occurred()) || check_open(self) < 0)
        return NULL;
    Py_ssize_t pages = self->length / page_size;
    if (page < -pages || page >= pages) {
        PyErr_Format(PyExc_IndexError, "page %zd of a mapping of %zd", page, pages);
        return NULL;
    }
    if (page < 0)
        page += pages;
    PyObject *whole = PyMemoryView_FromObject(object);
    if (whole == NULL)
        return NULL;
    PyObject *view = PySequence_GetSlice(whole, page * page_size, (page + 1) * page_size);
    Py_DECREF(whole);
    return view;
}

static PyObject *
mapping_get_pages(PyObject *object, void *Py_UNUSED(closure))
{
    Mapping *self = (Mapping *)object;
    return check_open(self) < 0 ? NULL : PyLong_FromSsize_t(self->length / page_size);
}

static PyObject *
mapping_get_address(PyObject *object, void *Py_UNUSED(closure))
{
    Mapping *self = (Mapping *)object;
    char *address = __atomic_load_n(&self->address, __ATOMIC_RELAXED);
    if (address == NULL)
        set_closed_error(CLOSED);
    return address == NULL || check_open(self) < 0 ? NULL : PyLong_FromVoidPtr(address);
}

static PyObject *
mapping_get_writable(PyObject *object, void *Py_UNUSED(closure))
{
    Mapping *self = (Mapping *)object;
    return check_open(self) < 0 ? NULL : PyBool_FromLong(self->writable);
}

PyObject *
mapping_get_closed(PyObject *object, void *Py_UNUSED(closure))
{
    return PyBool_FromLong((state_of((Mapping *)object) & CLOSED) != 0);
}

static PyObject *
mapping_get_exports(PyObject *object, void *Py_UNUSED(closure))
{
    return PyLong_FromUnsignedLong(state_of((Mapping *)object) & EXPORTS);
}

static int
mapping_bool(PyObject *object)
{
    return (state_of((Mapping *)object) & CLOSED) == 0;
}

PyDoc_STRVAR(mapping_doc,
"Mapping(parts, *, writable, unmapped=None)\n--\n\n"
"Pages mapped from file descriptors, as one buffer.\n\n"
"`parts` is a sequence of (fd, offset, length), in bytes and whole pages, mapped side by side in that\n"
"order, all or none (OSError). The descriptors may be closed afterwards. `unmapped` is called without\n"
"arguments, once, when the memory has really been unmapped, and never in a forked child; an exception\n"
"from it leaves close() and is reported as unraisable elsewhere. It must not refer to the mapping: an\n"
"unclosed mapping with live views that such a callback reaches is warned about but not unmapped.\n\n"
"memoryview(m), m.page(i) and whatever else takes the buffer (numpy.frombuffer) read and write the\n"
"shared pages, and pin them: close() raises BufferError while one is alive and changes nothing.\n"
"Slices of one memoryview count as one view. m[a:b] is a copy, as bytes; m[a:b] = data copies in;\n"
"storing into a read-only mapping is a TypeError. After close() every use is a ValueError; bool(m) is\n"
"false then. Dropped unclosed, it warns (ResourceWarning) and is unmapped.\n\n"
"Threads: any thread may call any method, and view, at any time; close() may then find another\n"
"thread's operation to be a live view. The bytes themselves are nobody's: order them with the\n"
"atomic functions. Fork: the child does not get the pages. There the mapping is closed without being\n"
"unmapped, and touching a view made before the fork ends the child with SIGSEGV.");

static PyMethodDef mapping_methods[] = {
    {"close", mapping_close, METH_NOARGS,
     "close($self, /)\n--\n\n"
     "Unmap the pages. BufferError with the number of views while one is alive; twice is fine."},
    {"close_on_release", mapping_close_on_release, METH_NOARGS,
     "close_on_release($self, /)\n--\n\n"
     "Allow no new views, and unmap when the last one is released: now if there is none."},
    {"page", mapping_page, METH_O,
     "page($self, index, /)\n--\n\n"
     "A memoryview of one page; negative indices count from the end."},
    {"__enter__", mapping_enter, METH_NOARGS, "__enter__($self, /)\n--\n\n"},
    {"__exit__", (PyCFunction)(void (*)(void))mapping_exit, METH_FASTCALL,
     "__exit__($self, exc_type, exc, traceback, /)\n--\n\n"
     "close(). With an error in flight, live views are noted on it and the last one unmaps."},
    {NULL, NULL, 0, NULL},
};

static PyGetSetDef mapping_getset[] = {
    {"pages", mapping_get_pages, NULL, "How many pages.", NULL},
    {"address", mapping_get_address, NULL, "Where the first byte is in this process.", NULL},
    {"writable", mapping_get_writable, NULL, "Whether it may be stored into.", NULL},
    {"closed", mapping_get_closed, NULL, "Whether new views are refused: closed, closing, or the parent process's.", NULL},
    {"exports", mapping_get_exports, NULL, "How many views are alive.", NULL},
    {NULL, NULL, NULL, NULL, NULL},
};

static PyType_Slot mapping_slots[] = {
    {Py_tp_doc, (void *)mapping_doc},
    {Py_tp_new, mapping_new},
    {Py_tp_finalize, mapping_finalize},
    {Py_tp_repr, mapping_repr},
    {Py_tp_iter, PySeqIter_New},
    {Py_tp_methods, mapping_methods},
    {Py_tp_getset, mapping_getset},
    {Py_bf_getbuffer, mapping_getbuffer},
    {Py_bf_releasebuffer, mapping_releasebuffer},
    {Py_mp_length, mapping_length},
    {Py_mp_subscript, mapping_subscript},
    {Py_mp_ass_subscript, mapping_ass_subscript},
    {Py_sq_length, mapping_length},
    {Py_sq_item, mapping_item},
    {Py_nb_bool, mapping_bool},
    {0, NULL},
};

/* No dealloc here: the heap types' own then runs the finalizer, which the limited API gives no other way to
 * do, and continues with the base's. That one works whatever a subclass's __del__ left undone. */
PyType_Spec mapping_spec = {
    .name = "xengrant.memory.Mapping",
    .basicsize = sizeof(Mapping),
    .flags = Py_TPFLAGS_DEFAULT | Py_TPFLAGS_BASETYPE | Py_TPFLAGS_IMMUTABLETYPE,
    .slots = mapping_slots,
};

static PyMemberDef memory_members[] = {
    {"__weaklistoffset__", T_PYSSIZET, offsetof(Mapping, weakrefs), READONLY, NULL},
    {NULL, 0, 0, 0, NULL},
};

static PyType_Slot memory_slots[] = {
    {Py_tp_doc, "What a Mapping is made of; not to be used itself."},
    {Py_tp_dealloc, memory_dealloc},
    {Py_tp_traverse, memory_traverse},
    {Py_tp_clear, memory_clear},
    {Py_tp_members, memory_members},
    {0, NULL},
};

PyType_Spec memory_spec = {
    .name = "xengrant._native._Memory",
    .basicsize = sizeof(Mapping),
    .flags = Py_TPFLAGS_DEFAULT | Py_TPFLAGS_BASETYPE | Py_TPFLAGS_HAVE_GC | Py_TPFLAGS_IMMUTABLETYPE |
             Py_TPFLAGS_DISALLOW_INSTANTIATION,
    .slots = memory_slots,
};
