/* What the files of Mapping share: mapping.c, the type; mapping_new.c, its arguments; mapping_memory.c, where the memory
 * comes from and goes; mapping_exports.c, who uses it meanwhile; and mapping_bytes.c, access to it.
 */

#ifndef XENGRANT_MAPPING_H
#define XENGRANT_MAPPING_H

#include "native.h"

/* ---- The state ------------------------------------------------------------------------------------------ */

static inline uint32_t
state_of(const Mapping *self)
{
    return __atomic_load_n(&self->state, __ATOMIC_ACQUIRE);
}

/* InterfaceClosed, for a state with CLOSED. */
void set_closed_error(uint32_t state);

/* Refuses new exports. Returns the state before: the caller unmaps if it was 0. */
uint32_t refuse_exports(Mapping *self);

/* Unmaps and calls `unmapped`: 0, or -1 and an error is set. For the one thread that brought the state to CLOSED with
 * no exports. When munmap fails (no room to split a merged area, a sealed one) the mapping is open again, so close()
 * can be repeated. */
int unmap(Mapping *self);

/* The same where no caller can be told: an error becomes an unraisable one, the error in flight stays. */
void unmap_unraisable(Mapping *self);

/* ---- The memory, without a look at the state ---------------------------------------------------------------- */

/* munmap: 0, or an errno, and then it stays. */
int unmap_memory(Mapping *self);

/* The same as a Mapping is destroyed: whatever stays is nobody's. */
void abandon_memory(Mapping *self);

/* ---- Slots of the type ------------------------------------------------------------------------------------- */

PyObject *mapping_new(PyTypeObject *type, PyObject *args, PyObject *kwargs);

int mapping_getbuffer(PyObject *object, Py_buffer *view, int flags);
void mapping_releasebuffer(PyObject *object, Py_buffer *view);
Py_ssize_t mapping_length(PyObject *object);
PyObject *mapping_item(PyObject *object, Py_ssize_t index);
PyObject *mapping_subscript(PyObject *object, PyObject *key);
int mapping_ass_subscript(PyObject *object, PyObject *key, PyObject *value);

#endif
