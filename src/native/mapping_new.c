/* Mapping(parts, writable, unmapped): its arguments, and the object made of them. */

#include "mapping.h"

#include <errno.h>
#include <limits.h>

static int
parse_numbers(PyObject *fd_object, PyObject *offset_object, PyObject *length_object, Part *part)
{
    long fd = PyLong_AsLong(fd_object);
    if (fd == -1 && PyErr_Occurred())
        return -1;
    long long offset = PyLong_AsLongLong(offset_object);
    if (offset == -1 && PyErr_Occurred())
        return -1;
    Py_ssize_t length = PyLong_AsSsize_t(length_object);
    if (length == -1 && PyErr_Occurred())
        return -1;
    if (fd < 0 || fd > INT_MAX) {
        PyErr_Format(PyExc_ValueError, "%ld is not a file descriptor", fd);
        return -1;
    }
    if (offset < 0 || offset % page_size != 0) {
        PyErr_Format(PyExc_ValueError, "offset %lld is not a multiple of the page size, %zd bytes", offset, page_size);
        return -1;
    }
    if (length <= 0 || length % page_size != 0) {
        PyErr_Format(PyExc_ValueError, "length %zd is not a positive multiple of the page size, %zd bytes", length,
                     page_size);
        return -1;
    }
    part->fd = (int)fd;
    part->offset = (off_t)offset;
    part->length = (size_t)length;
    return 0;
}

static int
parse_part(PyObject *object, Part *part)
{
    PyObject *triple = PySequence_Tuple(object); /* a tuple is itself */
    if (triple == NULL)
        return -1;
    int result = -1;
    if (PyTuple_Size(triple) == 3)
        result = parse_numbers(PyTuple_GetItem(triple, 0), PyTuple_GetItem(triple, 1), PyTuple_GetItem(triple, 2), part);
    else
        PyErr_Format(PyExc_ValueError, "a part is (fd, offset, length), not %zd items", PyTuple_Size(triple));
    Py_DECREF(triple);
    return result;
}

typedef struct {
    PyObject *parts;
    PyObject *writable;
    PyObject *unmapped;
} Arguments; /* borrowed */

static int
take_keyword(Arguments *arguments, PyObject *key, PyObject *value)
{
    PyObject **slot = PyUnicode_CompareWithASCIIString(key, "writable") == 0   ? &arguments->writable
                      : PyUnicode_CompareWithASCIIString(key, "unmapped") == 0 ? &arguments->unmapped
                      : PyUnicode_CompareWithASCIIString(key, "parts") == 0    ? &arguments->parts
                                                                               : NULL;
    if (slot == NULL || *slot != NULL) {
        PyErr_Format(PyExc_TypeError, "Mapping() got an unexpected or repeated argument %R", key);
        return -1;
    }
    *slot = value;
    return 0;
}

static PyObject *
map_new(PyTypeObject *type, const Part *parts, Py_ssize_t count, Py_ssize_t length, const Arguments *arguments)
{
    int writable = PyObject_IsTrue(arguments->writable);
    if (writable < 0)
        return NULL;
    PyObject *unmapped = arguments->unmapped == Py_None ? NULL : arguments->unmapped;
    if (unmapped != NULL && !PyCallable_Check(unmapped)) {
        PyErr_Format(PyExc_TypeError, "unmapped is to be called without arguments; %R is not callable", unmapped);
        return NULL;
    }
    Mapping *self = allocate_mapping(type, length, writable);
    if (self == NULL)
        return NULL;
    int error;
    Py_BEGIN_ALLOW_THREADS
    error = map_and_link(self, parts, count);
    Py_END_ALLOW_THREADS
    if (error != 0) {
        Py_DECREF(self);
        errno = error;
        return PyErr_SetFromErrno(PyExc_OSError);
    }
    self->unmapped = Py_XNewRef(unmapped);
    __atomic_store_n(&self->state, 0, __ATOMIC_RELEASE);
    return (PyObject *)self;
}

static PyObject *
map_sequence(PyTypeObject *type, const Arguments *arguments)
{
    PyObject *self = NULL;
    PyObject *parts = PySequence_Tuple(arguments->parts);
    if (parts == NULL)
        return NULL;
    Py_ssize_t count = PyTuple_Size(parts);
    Part *all = PyMem_Calloc((size_t)count, sizeof(Part));
    if (all == NULL) {
        PyErr_NoMemory();
        goto done;
    }
    if (count == 0) {
        PyErr_SetString(PyExc_ValueError, "a mapping has at least one part");
        goto done;
    }
    Py_ssize_t length = 0;
    for (Py_ssize_t i = 0; i < count; i++) {
        if (parse_part(PyTuple_GetItem(parts, i), &all[i]) < 0)
            goto done;
        if ((Py_ssize_t)all[i].length > PY_SSIZE_T_MAX - length) {
            PyErr_SetString(PyExc_OverflowError, "the parts are longer than the address space");
            goto done;
        }
        length += (Py_ssize_t)all[i].length;
    }
    self = map_new(type, all, count, length, arguments);
done:
    PyMem_Free(all);
    Py_DECREF(parts);
    return self;
}
PyObject *
mapping_new(PyTypeObject *type, PyObject *args, PyObject *kwargs)
{
    Arguments arguments = {0};
    if (PyTuple_Size(args) > 1) {
        PyErr_Format(PyExc_TypeError, "Mapping() takes 1 positional argument (%zd given)", PyTuple_Size(args));
        return NULL;
    }
    if (PyTuple_Size(args) == 1)
        arguments.parts = PyTuple_GetItem(args, 0);
    PyObject *key, *value;
    Py_ssize_t position = 0;
    while (kwargs != NULL && PyDict_Next(kwargs, &position, &key, &value))
        if (take_keyword(&arguments, key, value) < 0)
            return NULL;
    if (arguments.parts == NULL || arguments.writable == NULL) {
        PyErr_Format(PyExc_TypeError, "Mapping() misses the argument '%s'",
                     arguments.parts == NULL ? "parts" : "writable");
        return NULL;
    }
    return map_sequence(type, &arguments);
}
