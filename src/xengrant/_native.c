/* xengrant._native: what Python cannot do itself with memory that another domain shares.
 *
 * Three things live here. Atomic loads, stores and read-modify-writes on words of any buffer, and a full
 * fence: struct.pack_into on a shared page writes a transient 0, and plain stores may be overtaken by
 * later loads even on x86. Mapping, the object behind xengrant.memory: pages mapped from descriptors,
 * exported through the buffer protocol, which cannot be unmapped under a view. And Descriptor, an open file
 * of /dev/xen, with the two sequences that programs do again and again, sharing pages and mapping grants, in
 * one call each: between system calls Python costs more than the calls themselves.
 *
 * Called by xengrant.memory, the devices and the rings; calls libc only. Written for CPython's limited API
 * of 3.11; free-threaded builds compile the same source against their full API.
 */

#include <Python.h>
#include <structmember.h>

#include <errno.h>
#include <pthread.h>
#include <stdint.h>
#include <string.h>
#include <sys/ioctl.h>
#include <sys/mman.h>
#include <unistd.h>

typedef uint32_t grant_ref_t; /* which gntdev.h uses and does not define */
typedef uint16_t domid_t;
#include <xen/gntalloc.h>
#include <xen/gntdev.h>

#ifndef MAP_FIXED_NOREPLACE
#define MAP_FIXED_NOREPLACE 0x100000
#endif

/* ---- Words: atomic access to 8, 16 and 32 bits of a buffer ------------------------------------------- */

typedef struct {
    Py_buffer view;
    void *at;
} Word;

/* The offset and the values are converted before the buffer is taken, since __index__ may run any code. */
static int
parse_offset(PyObject *offset, Py_ssize_t *at)
{
    *at = PyNumber_AsSsize_t(offset, NULL); /* clips: the check against the length then refuses it */
    return *at == -1 && PyErr_Occurred() ? -1 : 0;
}

static int
parse_value(PyObject *argument, unsigned int bits, uint32_t *value)
{
    PyObject *number = PyNumber_Index(argument);
    if (number == NULL)
        return -1;
    unsigned long parsed = PyLong_AsUnsignedLong(number);
    int failed = parsed == (unsigned long)-1 && PyErr_Occurred();
    if (failed && !PyErr_ExceptionMatches(PyExc_OverflowError)) {
        Py_DECREF(number);
        return -1;
    }
    if (failed || parsed > UINT32_MAX >> (32 - bits)) {
        PyErr_Clear();
        PyErr_Format(PyExc_OverflowError, "%R does not fit in %u unsigned bits", number, bits);
        Py_DECREF(number);
        return -1;
    }
    Py_DECREF(number);
    *value = (uint32_t)parsed;
    return 0;
}

static int
check_count(const char *name, Py_ssize_t given, Py_ssize_t wanted)
{
    if (given == wanted)
        return 0;
    PyErr_Format(PyExc_TypeError, "%s() takes exactly %zd arguments (%zd given)", name, wanted, given);
    return -1;
}

static int
open_word(Word *word, PyObject *buffer, PyObject *offset, Py_ssize_t at, unsigned int bits, int storing)
{
    Py_ssize_t width = bits / 8;
    if (PyObject_GetBuffer(buffer, &word->view, PyBUF_SIMPLE) < 0)
        return -1;
    if (at < 0 || at > word->view.len - width) {
        PyErr_Format(PyExc_IndexError, "offset %R: a word of %zd bytes is not within the buffer's %zd bytes",
                     offset, width, word->view.len);
        goto refused;
    }
    word->at = (char *)word->view.buf + at;
    if ((uintptr_t)word->at % (uintptr_t)width != 0)
        PyErr_Format(PyExc_ValueError,
                     "offset %zd: a word of %zd bytes at address %p is not aligned (buffer of %zd bytes)", at,
                     width, word->at, word->view.len);
    else if (storing && word->view.readonly)
        PyErr_Format(PyExc_TypeError, "storing into a read-only buffer (offset %zd, %zd bytes)", at, width);
    else
        return 0;
refused:
    PyBuffer_Release(&word->view);
    return -1;
}

static PyObject *
close_word(Word *word, uint32_t value)
{
    PyBuffer_Release(&word->view);
    return PyLong_FromUnsignedLong(value);
}

#define DEFINE_LOAD(BITS)                                                                                    \
    static PyObject *load##BITS(PyObject *Py_UNUSED(module), PyObject *const *args, Py_ssize_t nargs)        \
    {                                                                                                        \
        Word word;                                                                                           \
        Py_ssize_t at;                                                                                       \
        if (check_count("load" #BITS, nargs, 2) < 0 || parse_offset(args[1], &at) < 0 ||                     \
            open_word(&word, args[0], args[1], at, BITS, 0) < 0)                                             \
            return NULL;                                                                                     \
        return close_word(&word, __atomic_load_n((uint##BITS##_t *)word.at, __ATOMIC_ACQUIRE));              \
    }

#define DEFINE_STORE(BITS)                                                                                   \
    static PyObject *store##BITS(PyObject *Py_UNUSED(module), PyObject *const *args, Py_ssize_t nargs)       \
    {                                                                                                        \
        Word word;                                                                                           \
        Py_ssize_t at;                                                                                       \
        uint32_t value;                                                                                      \
        if (check_count("store" #BITS, nargs, 3) < 0 || parse_offset(args[1], &at) < 0 ||                    \
            parse_value(args[2], BITS, &value) < 0 || open_word(&word, args[0], args[1], at, BITS, 1) < 0)   \
            return NULL;                                                                                     \
        __atomic_store_n((uint##BITS##_t *)word.at, (uint##BITS##_t)value, __ATOMIC_RELEASE);                \
        PyBuffer_Release(&word.view);                                                                        \
        Py_RETURN_NONE;                                                                                      \
    }

#define DEFINE_FETCH(OPERATION, BITS)                                                                        \
    static PyObject *fetch_##OPERATION##BITS(PyObject *Py_UNUSED(module), PyObject *const *args,             \
                                             Py_ssize_t nargs)                                               \
    {                                                                                                        \
        Word word;                                                                                           \
        Py_ssize_t at;                                                                                       \
        uint32_t value;                                                                                      \
        if (check_count("fetch_" #OPERATION #BITS, nargs, 3) < 0 || parse_offset(args[1], &at) < 0 ||        \
            parse_value(args[2], BITS, &value) < 0 || open_word(&word, args[0], args[1], at, BITS, 1) < 0)   \
            return NULL;                                                                                     \
        return close_word(&word, __atomic_fetch_##OPERATION((uint##BITS##_t *)word.at,                       \
                                                            (uint##BITS##_t)value, __ATOMIC_SEQ_CST));       \
    }

#define DEFINE_COMPARE_EXCHANGE(BITS)                                                                        \
    static PyObject *compare_exchange##BITS(PyObject *Py_UNUSED(module), PyObject *const *args,              \
                                            Py_ssize_t nargs)                                                \
    {                                                                                                        \
        Word word;                                                                                           \
        Py_ssize_t at;                                                                                       \
        uint32_t expected, desired;                                                                          \
        if (check_count("compare_exchange" #BITS, nargs, 4) < 0 || parse_offset(args[1], &at) < 0 ||         \
            parse_value(args[2], BITS, &expected) < 0 || parse_value(args[3], BITS, &desired) < 0 ||         \
            open_word(&word, args[0], args[1], at, BITS, 1) < 0)                                             \
            return NULL;                                                                                     \
        uint##BITS##_t seen = (uint##BITS##_t)expected;                                                      \
        __atomic_compare_exchange_n((uint##BITS##_t *)word.at, &seen, (uint##BITS##_t)desired, 0,            \
                                    __ATOMIC_SEQ_CST, __ATOMIC_SEQ_CST);                                     \
        return close_word(&word, seen);                                                                      \
    }

DEFINE_LOAD(8)
DEFINE_LOAD(16)
DEFINE_LOAD(32)
DEFINE_STORE(8)
DEFINE_STORE(16)
DEFINE_STORE(32)
DEFINE_FETCH(or, 8)
DEFINE_FETCH(or, 32)
DEFINE_FETCH(and, 8)
DEFINE_FETCH(and, 32)
DEFINE_COMPARE_EXCHANGE(16)
DEFINE_COMPARE_EXCHANGE(32)

static PyObject *
fence(PyObject *Py_UNUSED(module), PyObject *Py_UNUSED(ignored))
{
    __atomic_thread_fence(__ATOMIC_SEQ_CST);
    Py_RETURN_NONE;
}

/* ---- Descriptor: an open file that is closed once no call uses it ------------------------------------------ */

#define CLOSED ((uint32_t)1 << 31)

/* The state is one atomic word: how many calls are under way, and CLOSED, which refuses new ones. Who ends the last
 * call after it was set, or sets it while there is none, closes the file: no call ever meets another file under the
 * same number. ABANDONED is all there is to the state of a file that abandon() closed, whatever was under way. */
#define ABANDONED (CLOSED | (uint32_t)1 << 30)

typedef struct {
    PyObject_HEAD
    int fd;
    uint32_t state;
} Descriptor;

/* Begins a call: the file's number, or -1 where it is closed. */
static int
hold(Descriptor *self)
{
    uint32_t state = __atomic_load_n(&self->state, __ATOMIC_ACQUIRE);
    do {
        if (state & CLOSED)
            return -1;
    } while (!__atomic_compare_exchange_n(&self->state, &state, state + 1, 1, __ATOMIC_ACQ_REL, __ATOMIC_ACQUIRE));
    return self->fd;
}

/* Ends a call; 0, and nothing is done, where none is under way. The call that an abandoned file was in ends too. */
static int
drop(Descriptor *self)
{
    uint32_t state = __atomic_load_n(&self->state, __ATOMIC_ACQUIRE);
    do {
        if (state == ABANDONED)
            return 1;
        if ((state & ~CLOSED) == 0)
            return 0;
    } while (!__atomic_compare_exchange_n(&self->state, &state, state - 1, 1, __ATOMIC_ACQ_REL, __ATOMIC_ACQUIRE));
    if (state - 1 == CLOSED)
        close(self->fd);
    return 1;
}

/* Whether the file of a descriptor in this state is closed. */
static int
is_gone(uint32_t state)
{
    return state == CLOSED || state == ABANDONED;
}

/* ---- Mapping: its state -------------------------------------------------------------------------------- */

/* The state is one atomic word: how many exports (buffers and operations under way) are live, and two flags.
 * CLOSED refuses new exports; who sets it with no export live, or who ends the last export after it was set,
 * is the only one to unmap. FORKED, always with CLOSED, says the memory is the parent process's. */
#define FORKED ((uint32_t)1 << 30)
#define EXPORTS (FORKED - 1)

typedef struct Mapping Mapping;

struct Mapping {
    PyObject_HEAD
    PyObject *weakrefs;
    char *address; /* NULL until mapped */
    Py_ssize_t length;
    uint32_t state;
    char writable;
    char kept_from_children; /* madvise(MADV_DONTFORK) was done */
    char escaped;       /* the garbage collector no longer sees `unmapped`: see mapping_finalize */
    PyObject *unmapped; /* what to call once the memory is unmapped, or NULL */
    Descriptor *granted; /* the gntdev that mapped it, to be told when it is unmapped, or NULL */
    uint64_t index;      /* what gntdev knows it by */
    Mapping *next;
    Mapping *previous;
};

static Py_ssize_t page_size;

/* Xen public/xen.h: ids from here on mean something else. */
#define FIRST_RESERVED_DOMID 0x7FF0

/* What one call of Descriptor's takes at most. */
#define MAX_PAGES 65536

/* Every Mapping whose memory is this process's, for a fork. The lock is held from mmap until the mapping is in the
 * list, so that no fork copies pages in between, and from munmap until it is out of it, since a fork keeps what it
 * finds at a listed address from the child. Nobody waits for the GIL while holding it. */
static Mapping *mapped;
static pthread_mutex_t mapped_lock = PTHREAD_MUTEX_INITIALIZER;

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
}

static uint32_t
state_of(Mapping *self)
{
    return __atomic_load_n(&self->state, __ATOMIC_ACQUIRE);
}

static void
set_closed_error(uint32_t state)
{
    PyErr_SetString(PyExc_ValueError,
                    state & FORKED ? "mapping belongs to the parent process: map the pages again in this one"
                                   : "mapping is closed");
}

static int
check_open(Mapping *self)
{
    uint32_t state = state_of(self);
    if (state & CLOSED) {
        set_closed_error(state);
        return -1;
    }
    return 0;
}

static int
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

static uint32_t
pages_of(Mapping *self)
{
    return (uint32_t)(self->length / page_size);
}

/* Tells gntdev that a map is gone: HVM and PVH domains release the grants only then. Where it is closed, the last
 * munmap was the file's release. There is no error to tell: it knows the map, since nobody else ends it. */
static void
end_grants(Mapping *self)
{
    struct ioctl_gntdev_unmap_grant_ref request = {.index = self->index, .count = pages_of(self)};
    int fd = hold(self->granted);
    if (fd >= 0) {
        ioctl(fd, IOCTL_GNTDEV_UNMAP_GRANT_REF, &request);
        drop(self->granted);
    }
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
    self->address = NULL;
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

static void
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

/* ---- Mapping: made and destroyed ----------------------------------------------------------------------- */

typedef struct {
    int fd;
    off_t offset;
    size_t length;
} Part;

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

/* Runs without the GIL. Returns 0 or an errno, and then nothing stays mapped. */
static int
map_parts(Mapping *self, const Part *parts, Py_ssize_t count)
{
    size_t total = (size_t)self->length;
    int protection = self->writable ? PROT_READ | PROT_WRITE : PROT_READ;
    char *address;
    int error;

    if (count == 1) {
        address = mmap(NULL, total, protection, MAP_SHARED, parts[0].fd, parts[0].offset);
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
static int
map_and_link(Mapping *self, const Part *parts, Py_ssize_t count)
{
    pthread_mutex_lock(&mapped_lock);
    int error = map_parts(self, parts, count);
    if (error == 0)
        link_mapped(self);
    pthread_mutex_unlock(&mapped_lock);
    return error;
}

static Mapping *
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
    freefunc free_object = (freefunc)PyType_GetSlot(type, Py_tp_free);
    free_object(object);
    Py_DECREF(type);
}

/* ---- Mapping: the buffer and sequence protocols -------------------------------------------------------- */

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

/* ---- Mapping: methods and attributes ------------------------------------------------------------------- */

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
        repr = PyUnicode_FromFormat("<%U %zd page%s at %p %s>", name, pages, pages == 1 ? "" : "s", self->address,
                                    self->writable ? "writable" : "read-only");
    Py_DECREF(name);
    return repr;
}

static PyObject *
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

static PyObject *
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
    return check_open(self) < 0 ? NULL : PyLong_FromVoidPtr(self->address);
}

static PyObject *
mapping_get_writable(PyObject *object, void *Py_UNUSED(closure))
{
    Mapping *self = (Mapping *)object;
    return check_open(self) < 0 ? NULL : PyBool_FromLong(self->writable);
}

static PyObject *
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
static PyType_Spec mapping_spec = {
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

static PyType_Spec memory_spec = {
    .name = "xengrant._native._Memory",
    .basicsize = sizeof(Mapping),
    .flags = Py_TPFLAGS_DEFAULT | Py_TPFLAGS_BASETYPE | Py_TPFLAGS_HAVE_GC | Py_TPFLAGS_IMMUTABLETYPE |
             Py_TPFLAGS_DISALLOW_INSTANTIATION,
    .slots = memory_slots,
};

/* ---- Descriptor: its calls -------------------------------------------------------------------------------- */

typedef struct {
    PyTypeObject *mapping;
} State;

/* A number from `least` to `most`, or -1 for whatever else: the caller's caller then looks closer, and explains. */
static long long
usual_number(PyObject *object, long long least, long long most)
{
    if (!PyLong_CheckExact(object))
        return -1;
    int overflow;
    long long number = PyLong_AsLongLongAndOverflow(object, &overflow);
    return overflow != 0 || number < least || number > most ? -1 : number;
}

/* libxengnttab's order: once the pages are mapped, the mapping alone keeps them. Returns 0 or an errno. */
static int
allocate_and_map(int fd, struct ioctl_gntalloc_alloc_gref *request, Mapping *self)
{
    if (ioctl(fd, IOCTL_GNTALLOC_ALLOC_GREF, request) < 0)
        return errno;
    Part part = {fd, (off_t)request->index, (size_t)self->length};
    int error = map_and_link(self, &part, 1);
    struct ioctl_gntalloc_dealloc_gref release = {.index = request->index, .count = request->count};
    ioctl(fd, IOCTL_GNTALLOC_DEALLOC_GREF, &release);
    return error;
}

static PyObject *
refs_of(const struct ioctl_gntalloc_alloc_gref *request)
{
    PyObject *refs = PyTuple_New(request->count);
    for (uint32_t i = 0; refs != NULL && i < request->count; i++) {
        PyObject *ref = PyLong_FromUnsignedLong(request->gref_ids[i]);
        if (ref == NULL)
            Py_CLEAR(refs);
        else
            PyTuple_SetItem(refs, i, ref);
    }
    return refs;
}

/* What both calls end with: the mapping is open, or forgotten. Steals nothing. */
static PyObject *
opened(Mapping *self, int error)
{
    if (error != 0) {
        errno = error;
        return PyErr_SetFromErrno(PyExc_OSError);
    }
    __atomic_store_n(&self->state, 0, __ATOMIC_RELEASE);
    return (PyObject *)self;
}

static PyObject *
descriptor_share(PyObject *object, PyTypeObject *type, PyObject *const *args, Py_ssize_t nargs,
                 PyObject *Py_UNUSED(names))
{
    if (check_count("share", nargs, 3) < 0)
        return NULL;
    Descriptor *device = (Descriptor *)object;
    long long domid = usual_number(args[0], 0, FIRST_RESERVED_DOMID - 1);
    long long count = usual_number(args[1], 1, MAX_PAGES);
    int writable = PyObject_IsTrue(args[2]);
    if (writable < 0)
        return NULL;
    int fd = domid < 0 || count < 0 ? -1 : hold(device);
    if (fd < 0)
        Py_RETURN_NONE;
    /* The kernel copies sizeof(*request) back, which has room for two refs. */
    PyObject *result = NULL;
    struct ioctl_gntalloc_alloc_gref *request = PyMem_Calloc(1, sizeof(*request) + (size_t)count * sizeof(uint32_t));
    Mapping *self = allocate_mapping(((State *)PyType_GetModuleState(type))->mapping, (Py_ssize_t)count * page_size, 1);
    if (request == NULL)
        PyErr_NoMemory();
    if (request != NULL && self != NULL) {
        request->domid = (uint16_t)domid;
        request->flags = writable ? GNTALLOC_FLAG_WRITABLE : 0;
        request->count = (uint32_t)count;
        int error;
        Py_BEGIN_ALLOW_THREADS
        error = allocate_and_map(fd, request, self);
        Py_END_ALLOW_THREADS
        PyObject *refs = opened(self, error) == NULL ? NULL : refs_of(request);
        if (refs != NULL) {
            result = PyTuple_Pack(2, refs, self);
            Py_DECREF(refs);
        }
    }
    Py_XDECREF((PyObject *)self);
    PyMem_Free(request);
    drop(device);
    return result;
}

/* Whether the request could be filled with what is usual: a tuple of `kind`s, each a domid and a ref. Every call
 * into Python counts here, 128 times for 128 pages; neighbours mostly have the same domid, and it is one object. */
static int
fill_grants(struct ioctl_gntdev_map_grant_ref *request, PyObject *grants, PyObject *kind)
{
    if (!PyType_Check(kind) || !PyType_IsSubtype((PyTypeObject *)kind, &PyTuple_Type))
        return 0;
    PyObject *last = NULL;
    long long domid = -1;
    for (uint32_t i = 0; i < request->count; i++) {
        PyObject *grant = PyTuple_GetItem(grants, i);
        if ((PyObject *)Py_TYPE(grant) != kind || Py_SIZE(grant) != 2)
            return 0;
        PyObject *first = PyTuple_GetItem(grant, 0);
        if (first != last)
            domid = usual_number(first, 0, FIRST_RESERVED_DOMID - 1);
        last = first;
        long long ref = usual_number(PyTuple_GetItem(grant, 1), 0, UINT32_MAX);
        if (domid < 0 || ref < 0)
            return 0;
        request->refs[i].domid = (uint32_t)domid;
        request->refs[i].ref = (uint32_t)ref;
    }
    return 1;
}

static int
take_and_map(int fd, struct ioctl_gntdev_map_grant_ref *request, Mapping *self)
{
    if (ioctl(fd, IOCTL_GNTDEV_MAP_GRANT_REF, request) < 0)
        return errno;
    Part part = {fd, (off_t)request->index, (size_t)self->length};
    int error = map_and_link(self, &part, 1);
    if (error != 0) {
        struct ioctl_gntdev_unmap_grant_ref release = {.index = request->index, .count = request->count};
        ioctl(fd, IOCTL_GNTDEV_UNMAP_GRANT_REF, &release);
    }
    return error;
}

static PyObject *
descriptor_map(PyObject *object, PyTypeObject *type, PyObject *const *args, Py_ssize_t nargs,
               PyObject *Py_UNUSED(names))
{
    if (check_count("map", nargs, 3) < 0)
        return NULL;
    Descriptor *device = (Descriptor *)object;
    Py_ssize_t count = PyTuple_Check(args[0]) ? PyTuple_Size(args[0]) : 0;
    int writable = PyObject_IsTrue(args[2]);
    if (writable < 0)
        return NULL;
    if (count < 1 || count > MAX_PAGES)
        Py_RETURN_NONE;
    struct ioctl_gntdev_map_grant_ref *request =
        PyMem_Calloc(1, sizeof(*request) + (size_t)count * sizeof(request->refs[0]));
    if (request == NULL)
        return PyErr_NoMemory();
    request->count = (uint32_t)count;
    PyObject *result = Py_None;
    int fd = fill_grants(request, args[0], args[1]) ? hold(device) : -1;
    if (fd >= 0) {
        Mapping *self = allocate_mapping(((State *)PyType_GetModuleState(type))->mapping, count * page_size, writable);
        int error = 0;
        if (self != NULL) {
            Py_BEGIN_ALLOW_THREADS
            error = take_and_map(fd, request, self);
            Py_END_ALLOW_THREADS
            if (error == 0) {
                self->index = request->index;
                self->granted = (Descriptor *)Py_NewRef(object);
            }
        }
        result = self == NULL ? NULL : error != 0 ? Py_None : opened(self, 0);
        if (error != 0)
            Py_DECREF((PyObject *)self);
        drop(device);
    }
    PyMem_Free(request);
    return result == Py_None ? Py_NewRef(Py_None) : result;
}

static PyObject *
descriptor_new(PyTypeObject *type, PyObject *args, PyObject *kwargs)
{
    int fd;
    if (kwargs != NULL && PyDict_Size(kwargs) != 0) {
        PyErr_SetString(PyExc_TypeError, "Descriptor() takes no keyword arguments");
        return NULL;
    }
    if (!PyArg_ParseTuple(args, "i:Descriptor", &fd))
        return NULL;
    Descriptor *self = (Descriptor *)PyType_GenericAlloc(type, 0);
    if (self != NULL)
        self->fd = fd;
    return (PyObject *)self;
}

static PyObject *
descriptor_hold(PyObject *object, PyObject *Py_UNUSED(ignored))
{
    return PyLong_FromLong(hold((Descriptor *)object));
}

static PyObject *
descriptor_drop(PyObject *object, PyObject *Py_UNUSED(ignored))
{
    if (!drop((Descriptor *)object)) {
        PyErr_SetString(PyExc_RuntimeError, "drop() without a hold(): no call of this file is under way");
        return NULL;
    }
    Py_RETURN_NONE;
}

static PyObject *
descriptor_close(PyObject *object, PyObject *Py_UNUSED(ignored))
{
    Descriptor *self = (Descriptor *)object;
    if (__atomic_fetch_or(&self->state, CLOSED, __ATOMIC_ACQ_REL) == 0)
        close(self->fd);
    Py_RETURN_NONE;
}

static PyObject *
descriptor_abandon(PyObject *object, PyObject *Py_UNUSED(ignored))
{
    Descriptor *self = (Descriptor *)object;
    if (!is_gone(__atomic_exchange_n(&self->state, ABANDONED, __ATOMIC_ACQ_REL)))
        close(self->fd);
    Py_RETURN_NONE;
}

static void
descriptor_dealloc(PyObject *object)
{
    Descriptor *self = (Descriptor *)object;
    PyTypeObject *type = Py_TYPE(object);
    if (!is_gone(self->state))
        close(self->fd);
    freefunc free_object = (freefunc)PyType_GetSlot(type, Py_tp_free);
    free_object(object);
    Py_DECREF(type);
}

#define METHOD(FUNCTION) (PyCFunction)(void (*)(void))FUNCTION, METH_METHOD | METH_FASTCALL | METH_KEYWORDS

static PyMethodDef descriptor_methods[] = {
    {"share", METHOD(descriptor_share),
     "share($self, domid, count, writable, /)\n--\n\n"
     "Of a gntalloc: allocate and map pages, (refs, mapping). OSError if there are none; None, and nothing is done,\n"
     "for arguments that are not plain numbers in range, and where the file is closed."},
    {"map", METHOD(descriptor_map),
     "map($self, grants, kind, writable, /)\n--\n\n"
     "Of a gntdev: map grants, a tuple of `kind`s of a domid and a ref. None, and nothing is done, if that is not\n"
     "what they are, where the file is closed, and where the kernel refuses."},
    {"hold", descriptor_hold, METH_NOARGS,
     "hold($self, /)\n--\n\nBegin a call: the file's number, until drop(). -1 where it is closed."},
    {"drop", descriptor_drop, METH_NOARGS,
     "drop($self, /)\n--\n\nEnd a call that hold() began. RuntimeError where none is under way."},
    {"close", descriptor_close, METH_NOARGS,
     "close($self, /)\n--\n\nRefuse new calls, and close the file with the last one under way."},
    {"abandon", descriptor_abandon, METH_NOARGS,
     "abandon($self, /)\n--\n\nIn a forked child: close the file now. The calls are the parent's."},
    {NULL, NULL, 0, NULL},
};

PyDoc_STRVAR(descriptor_doc,
"Descriptor(fd, /)\n--\n\n"
"An open file of /dev/xen, which is closed when the last call under way has ended. share() and map() are what\n"
"libxengnttab does, in one call.\n\n"
"Threads: any call from any thread.");

static PyType_Slot descriptor_slots[] = {
    {Py_tp_doc, (void *)descriptor_doc},
    {Py_tp_new, descriptor_new},
    {Py_tp_dealloc, descriptor_dealloc},
    {Py_tp_methods, descriptor_methods},
    {0, NULL},
};

static PyType_Spec descriptor_spec = {
    .name = "xengrant._native.Descriptor",
    .basicsize = sizeof(Descriptor),
    .flags = Py_TPFLAGS_DEFAULT | Py_TPFLAGS_IMMUTABLETYPE,
    .slots = descriptor_slots,
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
    pthread_mutex_lock(&mapped_lock);
    for (Mapping *self = mapped; self != NULL; self = self->next)
        if (!self->kept_from_children)
            self->kept_from_children = madvise(self->address, (size_t)self->length, MADV_DONTFORK) == 0;
}

static void
after_fork_in_parent(void)
{
    pthread_mutex_unlock(&mapped_lock);
}

/* MADV_DONTFORK left a hole where each mapping was. Filled with what faults, before something else of the
 * child comes to lie there and a view from before the fork reads and writes it. Where madvise failed, the
 * pages came along and are replaced. */
static void
after_fork_in_child(void)
{
    while (mapped != NULL) {
        Mapping *self = mapped;
        mmap(self->address, (size_t)self->length, PROT_NONE,
             MAP_PRIVATE | MAP_ANONYMOUS | MAP_NORESERVE |
                 (self->kept_from_children ? MAP_FIXED_NOREPLACE : MAP_FIXED), -1, 0);
        __atomic_fetch_or(&self->state, CLOSED | FORKED, __ATOMIC_ACQ_REL);
        unlink_mapped(self);
    }
    pthread_mutex_unlock(&mapped_lock);
}

static int at_fork_error;

static void
register_at_fork(void)
{
    at_fork_error = pthread_atfork(before_fork, after_fork_in_parent, after_fork_in_child);
}

/* ---- The module ------------------------------------------------------------------------------------------ */

#define FASTCALL(NAME, SIGNATURE, DOC)                                                                       \
    {#NAME, (PyCFunction)(void (*)(void))NAME, METH_FASTCALL, #NAME "($module, " SIGNATURE ", /)\n--\n\n" DOC}
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
    {NULL, NULL, 0, NULL},
};

static int
native_exec(PyObject *module)
{
    static pthread_once_t once = PTHREAD_ONCE_INIT;
    pthread_once(&once, register_at_fork);
    if (at_fork_error != 0) {
        errno = at_fork_error;
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
    PyObject *descriptor = PyType_FromModuleAndSpec(module, &descriptor_spec, NULL);
    if (descriptor == NULL)
        return -1;
    int result = PyModule_AddObjectRef(module, "Descriptor", descriptor);
    Py_DECREF(descriptor);
    return result < 0 ? result : PyModule_AddObjectRef(module, "Mapping", mapping);
}

static int
native_traverse(PyObject *module, visitproc visit, void *arg)
{
    Py_VISIT(((State *)PyModule_GetState(module))->mapping);
    return 0;
}

static int
native_clear(PyObject *module)
{
    Py_CLEAR(((State *)PyModule_GetState(module))->mapping);
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
    .m_doc = "Atomic access to words of shared memory, Mapping, shared pages as a buffer, and Descriptor, an open file.",
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
