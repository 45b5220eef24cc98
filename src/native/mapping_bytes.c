/* A Mapping's bytes: the buffer, sequence and mapping protocols. An index or a slice is a use of the memory like a view,
 * for as long as it takes; one byte is one load or store.
 */

#include "mapping.h"

#include <string.h>

int
mapping_getbuffer(PyObject *object, Py_buffer *view, int flags)
{
    Mapping *self = (Mapping *)object;
    view->obj = NULL;
    if (begin_export(self) < 0)
        return -1;
    if (PyBuffer_FillInfo(view, object, self->address, self->length, !self->writable, flags) < 0) {
        end_export(self);
        return -1;
    }
    return 0;
}

void
mapping_releasebuffer(PyObject *object, Py_buffer *Py_UNUSED(view))
{
    end_export((Mapping *)object);
}

Py_ssize_t
mapping_length(PyObject *object)
{
    Mapping *self = (Mapping *)object;
    return check_open(self) < 0 ? -1 : self->length;
}

PyObject *
mapping_item(PyObject *object, Py_ssize_t index)
{
    Mapping *self = (Mapping *)object;
    if (begin_export(self) < 0)
        return NULL;
    PyObject *result = NULL;
    if (index < 0 || index >= self->length)
        PyErr_SetString(PyExc_IndexError, "mapping index out of range");
    else
        result = PyLong_FromLong(__atomic_load_n((uint8_t *)self->address + index, __ATOMIC_ACQUIRE));
    end_export(self);
    return result;
}

static int
parse_index(Mapping *self, PyObject *key, Py_ssize_t *index)
{
    *index = PyNumber_AsSsize_t(key, PyExc_IndexError);
    if (*index == -1 && PyErr_Occurred())
        return -1;
    if (*index < 0)
        *index += self->length;
    return 0;
}

static PyObject *
copy_out(Mapping *self, Py_ssize_t start, Py_ssize_t step, Py_ssize_t count)
{
    if (step == 1)
        return PyBytes_FromStringAndSize(self->address + start, count);
    PyObject *bytes = PyBytes_FromStringAndSize(NULL, count);
    if (bytes != NULL) {
        char *to = PyBytes_AsString(bytes);
        for (Py_ssize_t i = 0; i < count; i++)
            to[i] = self->address[start + i * step];
    }
    return bytes;
}

PyObject *
mapping_subscript(PyObject *object, PyObject *key)
{
    Mapping *self = (Mapping *)object;
    if (check_open(self) < 0)
        return NULL;
    if (PyIndex_Check(key)) {
        Py_ssize_t index;
        return parse_index(self, key, &index) < 0 ? NULL : mapping_item(object, index);
    }
    if (!PySlice_Check(key)) {
        PyErr_SetString(PyExc_TypeError, "mapping indices must be integers or slices");
        return NULL;
    }
    Py_ssize_t start, stop, step;
    if (PySlice_Unpack(key, &start, &stop, &step) < 0)
        return NULL;
    Py_ssize_t count = PySlice_AdjustIndices(self->length, &start, &stop, step);
    if (begin_export(self) < 0)
        return NULL;
    PyObject *bytes = copy_out(self, start, step, count);
    end_export(self);
    return bytes;
}

/* One store when the caller means one byte; else one memmove, since the source may be this mapping. */
static void
copy_in(Mapping *self, Py_ssize_t start, Py_ssize_t step, Py_ssize_t count, const char *from)
{
    if (count == 1)
        __atomic_store_n(self->address + start, *from, __ATOMIC_RELEASE);
    else if (step == 1)
        memmove(self->address + start, from, (size_t)count);
    else
        for (Py_ssize_t i = 0; i < count; i++)
            self->address[start + i * step] = from[i];
}

static int
assign_slice(Mapping *self, PyObject *key, PyObject *value)
{
    Py_ssize_t start, stop, step;
    if (PySlice_Unpack(key, &start, &stop, &step) < 0)
        return -1;
    Py_ssize_t count = PySlice_AdjustIndices(self->length, &start, &stop, step);
    Py_buffer from;
    if (PyObject_GetBuffer(value, &from, PyBUF_SIMPLE) < 0)
        return -1;
    int result = -1;
    if (from.len != count) {
        PyErr_Format(PyExc_IndexError, "%zd bytes assigned to a slice of %zd", from.len, count);
    } else if (begin_export(self) == 0) {
        copy_in(self, start, step, count, from.buf);
        end_export(self);
        result = 0;
    }
    PyBuffer_Release(&from);
    return result;
}

static int
assign_item(Mapping *self, PyObject *key, PyObject *value)
{
    Py_ssize_t index;
    if (parse_index(self, key, &index) < 0)
        return -1;
    if (index < 0 || index >= self->length) {
        PyErr_SetString(PyExc_IndexError, "mapping index out of range");
        return -1;
    }
    Py_ssize_t byte = PyNumber_AsSsize_t(value, NULL);
    if (byte == -1 && PyErr_Occurred())
        return -1;
    if (byte < 0 || byte > UINT8_MAX) {
        PyErr_SetString(PyExc_ValueError, "mapping item value must be in range(0, 256)");
        return -1;
    }
    if (begin_export(self) < 0)
        return -1;
    __atomic_store_n((uint8_t *)self->address + index, (uint8_t)byte, __ATOMIC_RELEASE);
    end_export(self);
    return 0;
}

int
mapping_ass_subscript(PyObject *object, PyObject *key, PyObject *value)
{
    Mapping *self = (Mapping *)object;
    if (check_open(self) < 0)
        return -1;
    if (value == NULL)
        PyErr_SetString(PyExc_TypeError, "mapping does not support item deletion");
    else if (!self->writable)
        PyErr_SetString(PyExc_TypeError, "storing into a read-only mapping");
    else if (PyIndex_Check(key))
        return assign_item(self, key, value);
    else if (PySlice_Check(key))
        return assign_slice(self, key, value);
    else
        PyErr_SetString(PyExc_TypeError, "mapping indices must be integers or slices");
    return -1;
}
