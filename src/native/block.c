/* BlockServer: the usual requests of a block device's ring, done on a file and answered, in one call that waits for more
 * and gives up the GIL (Xen public/io/blkif.h).
 *
 * Usual is a read, write or flush that is right, whose pages are kept mapped, on a file that does it. Whatever else there
 * is on the ring ends the call, with everything before it answered, and is its caller's: a request that is wrong or asks
 * for a page that is not kept, a file that fails, an index that cannot be. So nothing here explains anything to anybody.
 *
 * The front end writes ring and pages while we look: a slot, and a table of segments, is copied once and then checked.
 * Data moves by preadv and pwritev, which fail where memory is gone; a file that is mapped would be a signal where it
 * has become shorter, or its disk full.
 */

#include "block.h"

/* ---- Made and destroyed -------------------------------------------------------------------------------- */

static PyObject *
block_new(PyTypeObject *type, PyObject *args, PyObject *kwargs)
{
    PyObject *memory, *doorbell, *file;
    unsigned int entry_size, tail, entries;
    if (kwargs != NULL && PyDict_Size(kwargs) != 0) {
        PyErr_SetString(PyExc_TypeError, "BlockServer() takes no keyword arguments");
        return NULL;
    }
    if (!PyArg_ParseTuple(args, "OIIIOO:BlockServer", &memory, &entries, &entry_size, &tail, &doorbell, &file))
        return NULL;
    State *state = PyType_GetModuleState(type);
    if (!PyObject_TypeCheck(doorbell, state->doorbell) || !PyObject_TypeCheck(file, state->descriptor)) {
        PyErr_SetString(PyExc_TypeError, "a BlockServer is made of a ring, a Doorbell and a Descriptor");
        return NULL;
    }
    if (entry_size > LONGEST_ENTRY || tail < LEAST_TAIL || tail + MOST_DIRECT * SEGMENT_SIZE > entry_size ||
        entries == 0 || (entries & (entries - 1)) != 0 || entries > 65536) {
        PyErr_SetString(PyExc_ValueError, "no ring of a block device has such entries");
        return NULL;
    }
    BlockServer *self = (BlockServer *)PyType_GenericAlloc(type, 0);
    if (self == NULL)
        return NULL;
    self->memory = Py_NewRef(memory);
    self->mapping = is_mapping(memory) ? (Mapping *)memory : NULL;
    self->doorbell = (Doorbell *)Py_NewRef(doorbell);
    self->file = (Descriptor *)Py_NewRef(file);
    self->entries = entries;
    self->entry_size = entry_size;
    self->tail = tail;
    return (PyObject *)self;
}

/* There is no tp_clear, as in held.c. */
static int
block_traverse(PyObject *object, visitproc visit, void *arg)
{
    BlockServer *self = (BlockServer *)object;
    Py_VISIT(Py_TYPE(object));
    Py_VISIT(self->memory);
    for (Group *group = self->groups; group != NULL; group = group->next)
        Py_VISIT(group->pages.obj);
    return 0;
}

static void
block_dealloc(PyObject *object)
{
    BlockServer *self = (BlockServer *)object;
    PyTypeObject *type = Py_TYPE(object);
    PyObject_GC_UnTrack(object);
    forget_all(self);
    Py_XDECREF((PyObject *)self->doorbell);
    Py_XDECREF((PyObject *)self->file);
    Py_XDECREF(self->memory);
    PyObject_GC_Del(object);
    Py_DECREF(type);
}

/* ---- Methods ------------------------------------------------------------------------------------------- */

/* One call at a time: 0, or -1 and an error is set. */
static int
enter(BlockServer *self)
{
    if (take_word(&self->busy))
        return 0;
    PyErr_SetString(PyExc_RuntimeError, "another thread is in a call of this BlockServer");
    return -1;
}

static void
leave(BlockServer *self)
{
    __atomic_store_n(&self->busy, 0, __ATOMIC_RELEASE);
}

static PyObject *
block_keep(PyObject *object, PyObject *const *args, Py_ssize_t nargs)
{
    BlockServer *self = (BlockServer *)object;
    if (check_count("keep", nargs, 2) < 0)
        return NULL;
    if (!PyTuple_Check(args[0])) {
        PyErr_SetString(PyExc_TypeError, "refs are a tuple");
        return NULL;
    }
    Group *group = PyMem_Malloc(sizeof(Group));
    if (group == NULL)
        return PyErr_NoMemory();
    if (PyObject_GetBuffer(args[1], &group->pages, PyBUF_WRITABLE) < 0)
        goto free;
    if (enter(self) < 0)
        goto release;
    int kept = keep_group(self, args[0], group);
    if (kept == 0) {
        group->next = self->groups;
        self->groups = group;
    }
    leave(self);
    if (kept == 0)
        Py_RETURN_NONE;
release:
    PyBuffer_Release(&group->pages);
free:
    PyMem_Free(group);
    return NULL;
}

static PyObject *
block_forget(PyObject *object, PyObject *Py_UNUSED(ignored))
{
    BlockServer *self = (BlockServer *)object;
    if (enter(self) < 0)
        return NULL;
    forget_all(self);
    leave(self);
    Py_RETURN_NONE;
}

static PyObject *
serve_on(BlockServer *self, const Limits *limits, Place *place, uint32_t wakes)
{
    Region region;
    if (take_region(self->memory, self->mapping, 1, &region) < 0)
        return NULL;
    PyObject *result = NULL;
    if ((size_t)region.length < HEADER_SIZE + (size_t)(self->entries - 1) * self->entry_size + LONGEST_ENTRY ||
        (uintptr_t)region.at % sizeof(uint32_t) != 0)
        PyErr_SetString(PyExc_ValueError, "the ring does not lie in its memory, or is not aligned");
    else {
        int more;
        place->ring = region.at;
        Py_BEGIN_ALLOW_THREADS
        more = serve_ring(self, limits, place, wakes);
        __atomic_store_n(&self->depth, 0, __ATOMIC_RELAXED);
        Py_END_ALLOW_THREADS
        result = Py_BuildValue("IIIO", place->prod, place->seen, place->told, more ? Py_True : Py_False);
    }
    release_region(&region);
    return result;
}

static PyObject *
block_serve(PyObject *object, PyObject *args)
{
    BlockServer *self = (BlockServer *)object;
    Place place;
    Limits limits;
    unsigned long long sectors;
    unsigned int sector_size, wakes;
    if (!PyArg_ParseTuple(args, "(III)IKIpI:serve", &place.prod, &place.seen, &place.told, &wakes, &sectors, &sector_size,
                          &limits.writable, &limits.most))
        return NULL;
    limits.unit = sector_size / SECTOR_SIZE;
    limits.sectors = sectors;
    if (sector_size % SECTOR_SIZE != 0 || limits.unit == 0 || SECTORS_PER_PAGE % limits.unit != 0 ||
        sectors > INT64_MAX / SECTOR_SIZE) {
        PyErr_SetString(PyExc_ValueError, "no disk has such sectors");
        return NULL;
    }
    if (limits.most > MOST_PIECES)
        limits.most = MOST_PIECES;
    if (enter(self) < 0)
        return NULL;
    PyObject *result = serve_on(self, &limits, &place, wakes);
    leave(self);
    return result;
}

static PyObject *
block_get_counts(PyObject *object, void *Py_UNUSED(closure))
{
    BlockServer *self = (BlockServer *)object;
    return Py_BuildValue("KKKKKKI", __atomic_load_n(&self->reads, __ATOMIC_RELAXED),
                         __atomic_load_n(&self->writes, __ATOMIC_RELAXED),
                         __atomic_load_n(&self->flushes, __ATOMIC_RELAXED),
                         __atomic_load_n(&self->errors, __ATOMIC_RELAXED),
                         __atomic_load_n(&self->read_bytes, __ATOMIC_RELAXED),
                         __atomic_load_n(&self->written_bytes, __ATOMIC_RELAXED),
                         __atomic_load_n(&self->depth, __ATOMIC_RELAXED));
}

PyDoc_STRVAR(block_doc,
"BlockServer(ring, entries, entry_size, tail, doorbell, file, /)\n--\n\n"
"Does the usual requests of a block device's ring on the file of a Descriptor: reads, writes and flushes that are right,\n"
"whose pages are kept. `entries` and `tail` are the ring's and its layout's: how many, and where segments begin.\n\n"
"Threads: one at a time, RuntimeError for another; `counts` any.");

static PyMethodDef block_methods[] = {
    {"keep", (PyCFunction)(void (*)(void))block_keep, METH_FASTCALL,
     "keep($self, refs, pages, /)\n--\n\n"
     "Serve requests for the pages of these refs, a tuple, from now on. The memory is held until `forget`."},
    {"forget", block_forget, METH_NOARGS, "forget($self, /)\n--\n\nKeep no page any more, and let go of their memory."},
    {"serve", block_serve, METH_VARARGS,
     "serve($self, place, wakes, sectors, sector_size, writable, max_segments, /)\n--\n\n"
     "Do and answer requests, and wait for more, until one is not usual, the front end's index is a lie, or the\n"
     "doorbell's `wakes` is another. `place` is (prod, seen, told): answered, seen of the front end, and told to it.\n"
     "The same again, and False where no event can come any more."},
    {NULL, NULL, 0, NULL},
};

static PyGetSetDef block_getset[] = {
    {"counts", block_get_counts, NULL,
     "What was done: reads, writes, flushes, failed flushes, bytes read, bytes written; and how many requests were seen\n"
     "and are not answered.",
     NULL},
    {NULL, NULL, NULL, NULL, NULL},
};

static PyType_Slot block_slots[] = {
    {Py_tp_doc, (void *)block_doc},
    {Py_tp_new, block_new},
    {Py_tp_dealloc, block_dealloc},
    {Py_tp_traverse, block_traverse},
    {Py_tp_methods, block_methods},
    {Py_tp_getset, block_getset},
    {0, NULL},
};

PyType_Spec block_spec = {
    .name = "xengrant._native.BlockServer",
    .basicsize = sizeof(BlockServer),
    .flags = Py_TPFLAGS_DEFAULT | Py_TPFLAGS_HAVE_GC | Py_TPFLAGS_IMMUTABLETYPE,
    .slots = block_slots,
};
