/* Who uses a Mapping's memory, which stays mapped for as long: one atomic word (native.h). */

#include "mapping.h"

#include <errno.h>

void
set_closed_error(uint32_t state)
{
    PyObject *error = our_error("InterfaceClosed");
    if (error != NULL)
        PyErr_SetString(error, state & FORKED ? "mapping belongs to the parent process: map the pages again in this one"
                                              : "mapping is closed");
    Py_XDECREF(error);
}

int
check_open(Mapping *self)
{
    uint32_t state = state_of(self);
    if (state & CLOSED) {
        set_closed_error(state);
        return -1;
    }
    return 0;
}

int HOT
begin_export(Mapping *self)
{
    uint32_t state = state_of(self);
    do {
        if (state & CLOSED) {
            set_closed_error(state);
            return -1;
        }
        if ((state & EXPORTS) == EXPORTS) {
            PyErr_SetString(PyExc_BufferError, "too many views of this mapping");
            return -1;
        }
    } while (!__atomic_compare_exchange_n(&self->state, &state, state + 1, 1, __ATOMIC_ACQ_REL, __ATOMIC_ACQUIRE));
    return 0;
}

int
unmap(Mapping *self)
{
    int error;
    Py_BEGIN_ALLOW_THREADS
    error = unmap_memory(self);
    if (error == 0 && self->granted != NULL)
        end_grants(self);
    Py_END_ALLOW_THREADS
    if (error != 0) {
        __atomic_fetch_and(&self->state, ~CLOSED, __ATOMIC_ACQ_REL);
        errno = error;
        PyErr_SetFromErrno(PyExc_OSError);
        return -1;
    }
    __atomic_store_n(&self->address, NULL, __ATOMIC_RELAXED); /* `address` is read without an export */
    PyObject *unmapped = self->unmapped;
    self->unmapped = NULL;
    if (unmapped == NULL)
        return 0;
    PyObject *result = PyObject_CallNoArgs(unmapped);
    Py_DECREF(unmapped);
    Py_XDECREF(result);
    return result == NULL ? -1 : 0;
}

void
unmap_unraisable(Mapping *self)
{
    PyObject *type, *value, *traceback;
    PyErr_Fetch(&type, &value, &traceback);
    if (unmap(self) < 0)
        PyErr_WriteUnraisable((PyObject *)self);
    PyErr_Restore(type, value, traceback);
}

void HOT
end_export(Mapping *self)
{
    if (__atomic_sub_fetch(&self->state, 1, __ATOMIC_ACQ_REL) == CLOSED)
        unmap_unraisable(self);
}

uint32_t
refuse_exports(Mapping *self)
{
    return __atomic_fetch_or(&self->state, CLOSED, __ATOMIC_ACQ_REL);
}
