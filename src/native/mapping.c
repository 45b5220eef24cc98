/* Mapping: pages mapped from descriptors, exported through the buffer protocol, which cannot be unmapped under a view.
 * It is the object behind xengrant.memory. With it come the fork handlers, which keep its memory from children.
 */

#include "native.h"

#include <errno.h>
#include <pthread.h>
#include <string.h>
#include <sys/mman.h>
#include <unistd.h>

#ifndef MAP_FIXED_NOREPLACE
#define MAP_FIXED_NOREPLACE 0x100000
#endif

/* ---- Its state ----------------------------------------------------------------------------------------- */

Py_ssize_t page_size;

/* Every Mapping whose memory is this process's, for a fork. The lock is held from mmap until the mapping is in the
 * list, so that no fork copies pages in between, and from munmap until it is out of it, since a fork keeps what it
 * finds at a listed address from the child. Nobody waits for the GIL while holding it. */
static Mapping *mapped;
static pthread_mutex_t mapped_lock = PTHREAD_MUTEX_INITIALIZER;

/* Where small mappings go: a piece of address space of 2 MiB, what one page table covers, whose first page is reserved
 * for ever. Linux frees a page table with the last area that it serves, so where it chooses the place itself, a mapping
 * that comes to lie alone in its 2 MiB, as a quarter of those of 128 pages partly do, has one made and freed each time.
 * In a PV domain Xen has to be asked for both: a cycle of 128 pages took 1300 us instead of 1100 (map), 1700 instead of
 * 1450 (share), for the life of the process. The place is only asked for: where something lies there, Linux chooses. */
#define SHELTER ((size_t)2 << 20)
#define SHELTER_BELOW ((size_t)1 << 30) /* lower than what Linux fills first, so that nothing else settles there */

static char *shelter; /* its second page; NULL until the first mapping, or where there is none */
static char *next_place;

static void
reserve_shelter(void)
{
    static int tried;
    if (tried)
        return;
    tried = 1;
    char *low = mmap(NULL, SHELTER_BELOW, PROT_NONE, MAP_PRIVATE | MAP_ANONYMOUS | MAP_NORESERVE, -1, 0);
    if (low == MAP_FAILED)
        return;
    char *first = (char *)(((uintptr_t)low + SHELTER - 1) & ~(SHELTER - 1));
    if (first > low)
        munmap(low, (size_t)(first - low));
    munmap(first + page_size, (size_t)(low + SHELTER_BELOW - first - page_size));
    next_place = shelter = first + page_size;
}

/* An address to ask for, with the lock held; NULL for a mapping that has page tables of its own anyway. */
static char *
place(size_t length)
{
    reserve_shelter();
    if (shelter == NULL || length > SHELTER - (size_t)page_size)
        return NULL;
    if (length > (size_t)(shelter - page_size + SHELTER - next_place))
        next_place = shelter;
    char *address = next_place;
    next_place += length;
    return address;
}

static void
link_mapped(Mapping *self)
{
    self->previous = NULL;
    self->next = mapped;
    if (mapped != NULL)
        mapped->previous = self;
    mapped = self;
}

static void
unlink_mapped(Mapping *self)
{
    if (self->next != NULL)
        self->next->previous = self->previous;
    if (self->previous != NULL)
        self->previous->next = self->next;
    else if (mapped == self)
        mapped = self->next;
    self->next = self->previous = NULL;
    if (self->address + self->length == next_place)
        next_place = self->address;
}

static uint32_t
state_of(Mapping *self)
{
    return __atomic_load_n(&self->state, __ATOMIC_ACQUIRE);
}

static void
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

/* Unmaps and calls `unmapped`. For the one thread that brought the state to CLOSED with no exports. When
 * munmap fails (no room to split a merged area, a sealed one) the mapping is open again, so close() can be
 * repeated. */
static int
unmap(Mapping *self)
{
    int error = 0;
    Py_BEGIN_ALLOW_THREADS
    pthread_mutex_lock(&mapped_lock);
    if (munmap(self->address, (size_t)self->length) < 0)
        error = errno;
    else
        unlink_mapped(self);
    pthread_mutex_unlock(&mapped_lock);
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

/* The same where no caller can be told: an error becomes an unraisable one, the error in flight stays. */
static void
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

/* Refuses new exports. Returns the state before: the caller unmaps if it was 0. */
static uint32_t
refuse_exports(Mapping *self)
{
    return __atomic_fetch_or(&self->state, CLOSED, __ATOMIC_ACQ_REL);
}

/* ---- Made and destroyed -------------------------------------------------------------------------------- */

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

/* Runs without the GIL, with the lock. Returns 0 or an errno, and then nothing stays mapped. */
static int
map_parts(Mapping *self, const Part *parts, Py_ssize_t count)
{
    size_t total = (size_t)self->length;
    int protection = self->writable ? PROT_READ | PROT_WRITE : PROT_READ;
    char *address;
    int error;

    if (count == 1) {
        address = mmap(place(total), total, protection, MAP_SHARED, parts[0].fd, parts[0].offset);
        if (address == MAP_FAILED)
            return errno;
    } else {
        address = mmap(NULL, total, PROT_NONE, MAP_PRIVATE | MAP_ANONYMOUS | MAP_NORESERVE, -1, 0);
        if (address == MAP_FAILED)
            return errno;
        char *at = address;
        for (Py_ssize_t i = 0; i < count; at += parts[i].length, i++)
            if (mmap(at, parts[i].length, protection, MAP_SHARED | MAP_FIXED, parts[i].fd, parts[i].offset) ==
                MAP_FAILED)
                goto undo;
    }
    self->address = address;
    return 0;
undo:
    error = errno;
    munmap(address, total);
    return error;
}

/* The same, seen by forks. */
int
map_and_link(Mapping *self, const Part *parts, Py_ssize_t count)
{
    pthread_mutex_lock(&mapped_lock);
    int error = map_parts(self, parts, count);
    if (error == 0)
        link_mapped(self);
    pthread_mutex_unlock(&mapped_lock);
    return error;
}

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

static PyObject *
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
        pthread_mutex_lock(&mapped_lock);
        munmap(self->address, (size_t)self->length);
        unlink_mapped(self);
        pthread_mutex_unlock(&mapped_lock);
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

/* ---- The buffer and sequence protocols ----------------------------------------------------------------- */

static int
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

static void
mapping_releasebuffer(PyObject *object, Py_buffer *Py_UNUSED(view))
{
    end_export((Mapping *)object);
}

static Py_ssize_t
mapping_length(PyObject *object)
{
    Mapping *self = (Mapping *)object;
    return check_open(self) < 0 ? -1 : self->length;
}

static PyObject *
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

static PyObject *
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

static int
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
    if (args[1] == Py_None || state & CLOSED || (state & EXPORTS) == 0)
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

/* ---- Fork ------------------------------------------------------------------------------------------------
 *
 * Handlers of libc's, not os.register_at_fork's: the child's runs before any Python does, its other hooks
 * and the garbage collector included, and whoever forks. The first fork that a mapping sees asks for MADV_DONTFORK:
 * most see none, and are spared the system call.
 */

static void
before_fork(void)
{
    watchdog_before_fork();
    pthread_mutex_lock(&mapped_lock);
    for (Mapping *self = mapped; self != NULL; self = self->next)
        if (!self->kept_from_children)
            self->kept_from_children = madvise(self->address, (size_t)self->length, MADV_DONTFORK) == 0;
}

static void
after_fork_in_parent(void)
{
    pthread_mutex_unlock(&mapped_lock);
    watchdog_after_fork(0);
}

/* MADV_DONTFORK left a hole where each mapping was. Filled with what faults, before something else of the
 * child comes to lie there and a view from before the fork reads and writes it. Where madvise failed, the
 * pages came along and are replaced. */
static void
after_fork_in_child(void)
{
    fork_generation++;
    while (mapped != NULL) {
        Mapping *self = mapped;
        mmap(self->address, (size_t)self->length, PROT_NONE,
             MAP_PRIVATE | MAP_ANONYMOUS | MAP_NORESERVE |
                 (self->kept_from_children ? MAP_FIXED_NOREPLACE : MAP_FIXED), -1, 0);
        __atomic_fetch_or(&self->state, CLOSED | FORKED, __ATOMIC_ACQ_REL);
        unlink_mapped(self);
    }
    pthread_mutex_unlock(&mapped_lock);
    watchdog_after_fork(1);
}

uint32_t fork_generation;

static int at_fork_error;

static void
register_once(void)
{
    at_fork_error = pthread_atfork(before_fork, after_fork_in_parent, after_fork_in_child);
}

int
register_at_fork(void)
{
    static pthread_once_t once = PTHREAD_ONCE_INIT;
    pthread_once(&once, register_once);
    return at_fork_error;
}
