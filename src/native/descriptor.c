/* Descriptor: an open file of /dev/xen, which is closed once no call uses it, with the two sequences that programs do
 * again and again, sharing pages and mapping grants, in one call each.
 */

#include "native.h"

#include <errno.h>
#include <sys/ioctl.h>
#include <unistd.h>

typedef uint32_t grant_ref_t; /* which gntdev.h uses and does not define */
typedef uint16_t domid_t;
#include <xen/gntalloc.h>
#include <xen/gntdev.h>

/* Xen public/xen.h: ids from here on mean something else. */
#define FIRST_RESERVED_DOMID 0x7FF0

/* What one call of Descriptor's takes at most. */
#define MAX_PAGES 65536

/* ---- The calls under way ------------------------------------------------------------------------------- */

/* Begins a call: the file's number, or -1 where it is closed. */
int HOT
hold_descriptor(Descriptor *self)
{
    uint32_t state = __atomic_load_n(&self->state, __ATOMIC_ACQUIRE);
    do {
        if (state & CLOSED)
            return -1;
    } while (!__atomic_compare_exchange_n(&self->state, &state, state + 1, 1, __ATOMIC_ACQ_REL, __ATOMIC_ACQUIRE));
    return self->fd;
}

/* Ends a call; 0, and nothing is done, where none is under way. The call that an abandoned file was in ends too. */
int HOT
drop_descriptor(Descriptor *self)
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

/* ---- Share and map ------------------------------------------------------------------------------------- */

static uint32_t
pages_of(Mapping *self)
{
    return (uint32_t)(self->length / page_size);
}

/* Tells gntdev that a map is gone: HVM and PVH domains release the grants only then. Where it is closed, the last
 * munmap was the file's release. There is no error to tell: it knows the map, since nobody else ends it. */
void
end_grants(Mapping *self)
{
    struct ioctl_gntdev_unmap_grant_ref request = {.index = self->index, .count = pages_of(self)};
    int fd = hold_descriptor(self->granted);
    if (fd >= 0) {
        ioctl(fd, IOCTL_GNTDEV_UNMAP_GRANT_REF, &request);
        drop_descriptor(self->granted);
    }
}

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
        uint32_t number = request->gref_ids[i]; /* PyLong_FromLong is the one that has a short way */
        PyObject *ref = sizeof(long) > sizeof number ? PyLong_FromLong((long)number) : PyLong_FromUnsignedLong(number);
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

/* The pages, shared and mapped, or NULL, and then an error is set. */
static PyObject *
share_pages(int fd, struct ioctl_gntalloc_alloc_gref *request, State *state, PyTypeObject *made, PyObject *domid)
{
    Mapping *mapping = allocate_mapping(state->mapping, (Py_ssize_t)request->count * page_size, 1);
    if (mapping == NULL)
        return NULL;
    int error;
    Py_BEGIN_ALLOW_THREADS
    error = allocate_and_map(fd, request, mapping);
    Py_END_ALLOW_THREADS
    PyObject *refs = opened(mapping, error) == NULL ? NULL : refs_of(request);
    PyObject *share = NULL;
    if (refs != NULL) {
        share = make_held(made, domid, refs, mapping, request->flags == GNTALLOC_FLAG_WRITABLE);
        Py_DECREF(refs);
    }
    Py_DECREF((PyObject *)mapping);
    return share;
}

static PyObject *
descriptor_share(PyObject *object, PyTypeObject *type, PyObject *const *args, Py_ssize_t nargs,
                 PyObject *Py_UNUSED(names))
{
    if (check_count("share", nargs, 4) < 0)
        return NULL;
    Descriptor *device = (Descriptor *)object;
    State *state = PyType_GetModuleState(type);
    long long domid = usual_number(args[0], 0, FIRST_RESERVED_DOMID - 1);
    long long count = usual_number(args[1], 1, MAX_PAGES);
    int writable = PyObject_IsTrue(args[2]);
    if (writable < 0 || check_held_type(state, args[3]) < 0)
        return NULL;
    int fd = domid < 0 || count < 0 ? -1 : hold_descriptor(device);
    if (fd < 0)
        Py_RETURN_NONE;
    /* The kernel copies sizeof(*request) back, which has room for two refs. */
    struct ioctl_gntalloc_alloc_gref *request = PyMem_Calloc(1, sizeof(*request) + (size_t)count * sizeof(uint32_t));
    PyObject *share = NULL;
    if (request == NULL) {
        PyErr_NoMemory();
    } else {
        request->domid = (uint16_t)domid;
        request->flags = writable ? GNTALLOC_FLAG_WRITABLE : 0;
        request->count = (uint32_t)count;
        share = share_pages(fd, request, state, (PyTypeObject *)args[3], args[0]);
    }
    PyMem_Free(request);
    drop_descriptor(device);
    return share;
}

/* One grant or several as a tuple, None where they are neither, or NULL, and then an error is set. */
static PyObject *
as_tuple(PyObject *grants, PyObject *kind)
{
    if ((PyObject *)Py_TYPE(grants) == kind)
        return PyTuple_Pack(1, grants);
    if (PyList_CheckExact(grants))
        return PyList_AsTuple(grants);
    return Py_NewRef(PyTuple_CheckExact(grants) ? grants : Py_None);
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

/* MAP_GRANT_REF's argument as a bytes; None for what is unusual, or NULL, and then an error is set. */
static PyObject *
pack_grants(PyObject *grants, PyObject *kind)
{
    Py_ssize_t count = grants == Py_None ? 0 : PyTuple_Size(grants);
    if (count < 1 || count > MAX_PAGES)
        Py_RETURN_NONE;
    struct ioctl_gntdev_map_grant_ref *request;
    Py_ssize_t size = (Py_ssize_t)offsetof(struct ioctl_gntdev_map_grant_ref, refs) +
                      count * (Py_ssize_t)sizeof(request->refs[0]);
    PyObject *bytes = PyBytes_FromStringAndSize(NULL, size);
    if (bytes == NULL)
        return NULL;
    request = (void *)PyBytes_AsString(bytes);
    request->count = (uint32_t)count;
    request->pad = 0;
    request->index = 0;
    if (fill_grants(request, grants, kind))
        return bytes;
    Py_DECREF(bytes);
    Py_RETURN_NONE;
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

/* The grants of a request, mapped; None where the kernel refuses, or NULL, and then an error is set. The request, which
 * is a bytes, is what names them afterwards. */
static PyObject *
map_grants(Descriptor *device, int fd, PyObject *names, State *state, PyTypeObject *made, PyObject *whose, int writable)
{
    struct ioctl_gntdev_map_grant_ref *request = (void *)PyBytes_AsString(names);
    Mapping *mapping = allocate_mapping(state->mapping, (Py_ssize_t)request->count * page_size, writable);
    if (mapping == NULL)
        return NULL;
    PyObject *mapped = make_held(made, whose, names, mapping, writable);
    Py_DECREF((PyObject *)mapping);
    if (mapped == NULL)
        return NULL;
    int error;
    Py_BEGIN_ALLOW_THREADS
    error = take_and_map(fd, request, mapping);
    Py_END_ALLOW_THREADS
    if (error != 0) {
        Py_DECREF(mapped);
        Py_RETURN_NONE;
    }
    mapping->index = request->index;
    mapping->granted = (Descriptor *)Py_NewRef((PyObject *)device);
    opened(mapping, 0);
    return mapped;
}

static PyObject *
descriptor_map(PyObject *object, PyTypeObject *type, PyObject *const *args, Py_ssize_t nargs,
               PyObject *Py_UNUSED(names))
{
    if (check_count("map", nargs, 5) < 0)
        return NULL;
    Descriptor *device = (Descriptor *)object;
    State *state = PyType_GetModuleState(type);
    int writable = PyObject_IsTrue(args[2]);
    if (writable < 0 || check_held_type(state, args[3]) < 0)
        return NULL;
    PyObject *grants = as_tuple(args[0], args[1]);
    if (grants == NULL)
        return NULL;
    PyObject *request = pack_grants(grants, args[1]);
    Py_DECREF(grants);
    int fd = request == NULL || request == Py_None ? -1 : hold_descriptor(device);
    if (fd < 0) {
        Py_XDECREF(request);
        return request == NULL ? NULL : Py_NewRef(Py_None);
    }
    PyObject *mapped = map_grants(device, fd, request, state, (PyTypeObject *)args[3], args[4], writable);
    drop_descriptor(device);
    Py_DECREF(request);
    return mapped;
}

/* ---- The type ------------------------------------------------------------------------------------------ */

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
    return PyLong_FromLong(hold_descriptor((Descriptor *)object));
}

static PyObject *
descriptor_drop(PyObject *object, PyObject *Py_UNUSED(ignored))
{
    if (!drop_descriptor((Descriptor *)object)) {
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

static PyMethodDef descriptor_methods[] = {
    {"share", METHOD(descriptor_share),
     "share($self, domid, count, writable, made, /)\n--\n\n"
     "Of a gntalloc: allocate and map pages, a `made` of the domid and the refs. OSError if there are none; None, and\n"
     "nothing is done, for arguments that are not plain numbers in range, and where the file is closed."},
    {"map", METHOD(descriptor_map),
     "map($self, grants, kind, writable, made, whose, /)\n--\n\n"
     "Of a gntdev: map grants, a `kind` of a domid and a ref or a tuple or list of them, a `made` of `whose` and\n"
     "MAP_GRANT_REF's argument. None, and nothing is done, if that is not what they are, where the file is closed, and\n"
     "where the kernel refuses."},
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

PyType_Spec descriptor_spec = {
    .name = "xengrant._native.Descriptor",
    .basicsize = sizeof(Descriptor),
    .flags = Py_TPFLAGS_DEFAULT | Py_TPFLAGS_IMMUTABLETYPE,
    .slots = descriptor_slots,
};
