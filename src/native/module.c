/* xengrant._native: what Python cannot do itself with memory that another domain shares.
 *
 * Atomic loads, stores and read-modify-writes on words of any buffer, and a full fence: struct.pack_into on a
 * shared page writes a transient 0, and plain stores may be overtaken by later loads even on x86. Memory that is
 * exported through the buffer protocol, which cannot be unmapped under a view. And what must have no Python between
 * two system calls, since there Python costs more than the calls themselves: sharing pages and mapping grants, rings
 * of bytes with their waits, and serving the ring of a block device.
 *
 * Each subject has a file, or several that begin with its name and share a header (mapping.h, ring.h, block.h):
 * words.c; mapping.c; descriptor.c; held.c; grants.c, which decodes whole grant tables; ring.c, the two ends of a ring
 * of bytes, with their waits, and stream.c, both ends of a vchan together; doorbell.c, the port that they wait on,
 * watchdog.c, the end of waits that have none, polling.c, looking before they begin, and turn.c, one thread after the
 * other; block.c, which serves the ring of a block device; region.c, a buffer that is held for a call; and fork.c, what a
 * fork does to all this. native.h is what the files share, and this one makes the module of them: a function of the module
 * is declared there, and has its entry in the table here.
 *
 * Called by the package's modules that touch shared memory or devices; calls libc only. Written for CPython's limited API
 * of 3.11; free-threaded builds compile the same source against their full API.
 */

#include "native.h"

#include <errno.h>
#include <unistd.h>

#define LOAD(BITS) FASTCALL(load##BITS, "buffer, offset", "Load " #BITS " bits at a byte offset; acquire.")
#define STORE(BITS)                                                                                          \
    FASTCALL(store##BITS, "buffer, offset, value", "Store " #BITS " bits at a byte offset, in one store; release.")
#define FETCH_OR(BITS)                                                                                       \
    FASTCALL(fetch_or##BITS, "buffer, offset, value", "Set bits and return the old value; sequentially consistent.")
#define FETCH_AND(BITS)                                                                                      \
    FASTCALL(fetch_and##BITS, "buffer, offset, value", "Keep only these bits and return the old value; "     \
                                                       "sequentially consistent.")
#define COMPARE_EXCHANGE(BITS)                                                                               \
    FASTCALL(compare_exchange##BITS, "buffer, offset, expected, desired",                                    \
             "Store desired if expected is there; return what was there. Sequentially consistent.")

PyObject *
our_error(const char *name)
{
    PyObject *errors = PyImport_ImportModule("xengrant.errors");
    PyObject *error = errors == NULL ? NULL : PyObject_GetAttrString(errors, name);
    Py_XDECREF(errors);
    return error;
}

static PyMethodDef native_methods[] = {
    LOAD(8),
    LOAD(16),
    LOAD(32),
    STORE(8),
    STORE(16),
    STORE(32),
    FETCH_OR(8),
    FETCH_OR(32),
    FETCH_AND(8),
    FETCH_AND(32),
    COMPARE_EXCHANGE(16),
    COMPARE_EXCHANGE(32),
    {"fence", fence, METH_NOARGS, "fence($module, /)\n--\n\nA full fence: xen_mb()."},
    {"copy_entries", copy_entries, METH_VARARGS,
     "copy_entries($module, source, copy, at, size, /)\n--\n\n"
     "Copy grant entries of 8 or 16 bytes, which others may be writing, to byte `at` of `copy`, each word loaded once.\n"
     "Whether anything differed from what was there."},
    {"decode_grants", decode_grants, METH_VARARGS,
     "decode_grants($module, version, frames, status, /)\n--\n\n"
     "The entries in use of a private copy: refs (u32), flags with the status (u16), domids (u16), frames (u64), as bytes."},
    {"tally_grants", tally_grants, METH_VARARGS,
     "tally_grants($module, version, frames, status, /)\n--\n\n"
     "Entries in use of a private copy by peer: (domid, granted, read-only, mapped, mapped for writing), by domid."},
    {NULL, NULL, 0, NULL},
};

/* `kept`, where there is one, holds a reference too. */
static int
add_type(PyObject *module, const char *name, PyType_Spec *spec, PyTypeObject **kept)
{
    PyObject *type = PyType_FromModuleAndSpec(module, spec, NULL);
    int result = type == NULL ? -1 : PyModule_AddObjectRef(module, name, type);
    if (kept != NULL)
        *kept = (PyTypeObject *)Py_XNewRef(type);
    Py_XDECREF(type);
    return result;
}

static int
native_exec(PyObject *module)
{
    int error = register_at_fork();
    if (error != 0) {
        errno = error;
        PyErr_SetFromErrno(PyExc_OSError);
        return -1;
    }
    page_size = (Py_ssize_t)sysconf(_SC_PAGESIZE);

    PyObject *memory = PyType_FromModuleAndSpec(module, &memory_spec, NULL);
    if (memory == NULL)
        return -1;
    PyObject *mapping = PyType_FromModuleAndSpec(module, &mapping_spec, memory);
    Py_DECREF(memory);
    if (mapping == NULL)
        return -1;
    ((State *)PyModule_GetState(module))->mapping = (PyTypeObject *)mapping;
    PyObject *held = PyType_FromModuleAndSpec(module, &held_spec, NULL);
    if (held == NULL)
        return -1;
    ((State *)PyModule_GetState(module))->held = (PyTypeObject *)held;
    State *state = PyModule_GetState(module);
    if (add_type(module, "Descriptor", &descriptor_spec, &state->descriptor) < 0 ||
        add_type(module, "Doorbell", &doorbell_spec, &state->doorbell) < 0 ||
        add_type(module, "RingReader", &reader_spec, &state->reader) < 0 ||
        add_type(module, "RingWriter", &writer_spec, &state->writer) < 0 ||
        add_type(module, "RingTurn", &ring_turn_spec, &state->ring_turn) < 0 ||
        add_type(module, "Stream", &stream_spec, NULL) < 0 ||
        add_type(module, "BlockServer", &block_spec, NULL) < 0 ||
        PyModule_AddObjectRef(module, "Held", held) < 0)
        return -1;
    return PyModule_AddObjectRef(module, "Mapping", mapping);
}

static int
native_traverse(PyObject *module, visitproc visit, void *arg)
{
    State *state = PyModule_GetState(module);
    Py_VISIT(state->mapping);
    Py_VISIT(state->held);
    Py_VISIT(state->descriptor);
    Py_VISIT(state->doorbell);
    Py_VISIT(state->reader);
    Py_VISIT(state->writer);
    Py_VISIT(state->ring_turn);
    return 0;
}

static int
native_clear(PyObject *module)
{
    State *state = PyModule_GetState(module);
    Py_CLEAR(state->mapping);
    Py_CLEAR(state->held);
    Py_CLEAR(state->descriptor);
    Py_CLEAR(state->doorbell);
    Py_CLEAR(state->reader);
    Py_CLEAR(state->writer);
    Py_CLEAR(state->ring_turn);
    return 0;
}

static PyModuleDef_Slot native_slots[] = {
    {Py_mod_exec, native_exec},
#ifdef Py_GIL_DISABLED
    {Py_mod_gil, Py_MOD_GIL_NOT_USED},
#endif
    {0, NULL},
};

static struct PyModuleDef native_module = {
    PyModuleDef_HEAD_INIT,
    .m_name = "xengrant._native",
    .m_doc = "What Python cannot do itself with memory that another domain shares; each name says what it is.",
    .m_size = sizeof(State),
    .m_methods = native_methods,
    .m_slots = native_slots,
    .m_traverse = native_traverse,
    .m_clear = native_clear,
};

PyMODINIT_FUNC
PyInit__native(void)
{
    return PyModuleDef_Init(&native_module);
}
