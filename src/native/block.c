/* BlockServer: the usual requests of a block device's ring, done on a file and answered, in one call that waits for more
 * and gives up the GIL (Xen public/io/blkif.h).
 *
 * Usual is a read, write or flush that is right, whose pages are kept mapped, on a file that does it. Whatever else there
 * is on the ring ends the call, with everything before it answered, and is its caller's: a request that is wrong or asks
 * for a page that is not kept, a file that fails, an index that cannot be. So nothing here explains anything to anybody.
 *
 * The front end writes ring and pages while we look: a slot, and a table of segments, is copied once and then checked.
 * Data moves by preadv and pwritev, which fail where memory is gone; a file that is mapped would be a signal where it
 * has become shorter, or its disk full. Answers are in the ring's order, each noted before it overwrites a slot
 * (xengrant.pv.block.ring).
 */

#include "ring.h"

#include <errno.h>
#include <string.h>
#include <sys/uio.h>
#include <unistd.h>

/* Xen public/io/ring.h */
enum { REQ_PROD = 0, REQ_EVENT = 4, RSP_PROD = 8, RSP_EVENT = 12, HEADER_SIZE = 64 };

/* xengrant.abi.blkif_note */
enum { NOTE_INDEX = 48, NOTE_RESPONSE = 52 };

/* Xen public/io/blkif.h */
enum { READ = 0, WRITE = 1, FLUSH_DISKCACHE = 3, INDIRECT = 6 };
enum { RSP_OKAY = 0, RSP_ERROR = -1 };
enum { SECTOR_SIZE = 512, SECTORS_PER_PAGE = 8, PAGE = 4096 };
enum { MOST_DIRECT = 11, SEGMENT_SIZE = 8, SEGMENTS_PER_PAGE = PAGE / SEGMENT_SIZE };
enum { LEAST_TAIL = 20, LONGEST_ENTRY = 112 };

enum {
    MOST_PIECES = 1024,     /* that preadv takes (IOV_MAX) */
    MOST_JOINED = 64,       /* requests that are done as one */
    MOST_KEPT = 1 << 20,    /* pages of one group */
    TOLD_AFTER = 1024 * 1024 /* bytes after which a front end that waits is told, though there is more to do */
};

typedef struct {
    uint32_t ref;
    char *page; /* NULL where the place is free */
} Kept;

/* Kept pages side by side, and what keeps their memory. */
typedef struct Group Group;

struct Group {
    Group *next;
    Py_buffer pages;
};

/* Of requests, as the disk has them: bytes 0 to 11 of an answer. */
typedef struct {
    uint64_t id;
    uint8_t operation;
    uint8_t unused;
    int16_t status;
} __attribute__((packed)) Answer;

typedef struct {
    PyObject_HEAD
    PyObject *memory; /* of the ring; each call takes its buffer anew */
    Mapping *mapping; /* the same, where it is one */
    Doorbell *doorbell;
    Descriptor *file;
    uint32_t entry_size;
    uint32_t tail;
    uint32_t entries;
    uint32_t busy; /* take_word */
    /* Kept pages by ref, with open addressing: 0 or a power of two of places, at most half of them taken. */
    Kept *kept;
    uint32_t places;
    uint32_t taken;
    Group *groups;
    /* What was done; read by other threads meanwhile. */
    uint64_t reads;
    uint64_t writes;
    uint64_t flushes;
    uint64_t errors;
    uint64_t read_bytes;
    uint64_t written_bytes;
    uint32_t depth;
    /* Of the requests that are done as one. */
    uint32_t joined;
    int pieces;
    uint8_t action;
    uint64_t start; /* bytes of the disk */
    uint64_t end;
    Answer answers[MOST_JOINED];
    struct iovec memories[MOST_PIECES];
    unsigned char segments[MOST_PIECES * SEGMENT_SIZE];
} BlockServer;

typedef struct {
    uint64_t sectors; /* of 512 bytes */
    uint32_t unit;    /* of the disk's, in those */
    uint32_t most;    /* segments of an indirect request */
    int writable;
} Limits;

/* Where we are on the ring: what is answered, which is all that was taken; the front end's index when it was looked at
 * last; and ours when it was told last. */
typedef struct {
    char *ring;
    uint32_t prod;
    uint32_t seen;
    uint32_t told;
} Place;

/* ---- Kept pages ---------------------------------------------------------------------------------------- */

/* Refs are mostly neighbours, and so are their places then. A front end that chooses others has its own ring slow. */
static Kept *HOT
find_place(Kept *kept, uint32_t places, uint32_t ref)
{
    uint32_t at = ref & (places - 1);
    while (kept[at].page != NULL && kept[at].ref != ref)
        at = (at + 1) & (places - 1);
    return &kept[at];
}

static inline char *
find_page(const BlockServer *self, uint32_t ref)
{
    return self->places == 0 ? NULL : find_place(self->kept, self->places, ref)->page;
}

static int
make_places(BlockServer *self, uint32_t more)
{
    uint32_t places = self->places == 0 ? 256 : self->places;
    while (places / 2 < self->taken + more)
        places *= 2;
    if (places == self->places)
        return 0;
    Kept *kept = PyMem_Calloc(places, sizeof(Kept));
    if (kept == NULL) {
        PyErr_NoMemory();
        return -1;
    }
    for (uint32_t i = 0; i < self->places; i++)
        if (self->kept[i].page != NULL)
            *find_place(kept, places, self->kept[i].ref) = self->kept[i];
    PyMem_Free(self->kept);
    self->kept = kept;
    self->places = places;
    return 0;
}

static void
forget_all(BlockServer *self)
{
    PyMem_Free(self->kept);
    self->kept = NULL;
    self->places = self->taken = 0;
    while (self->groups != NULL) {
        Group *group = self->groups;
        self->groups = group->next;
        PyBuffer_Release(&group->pages);
        PyMem_Free(group);
    }
}

/* ---- Requests ------------------------------------------------------------------------------------------ */

static inline uint16_t
u16(const unsigned char *at)
{
    uint16_t value;
    memcpy(&value, at, sizeof value);
    return value;
}

static inline uint32_t
u32(const unsigned char *at)
{
    uint32_t value;
    memcpy(&value, at, sizeof value);
    return value;
}

static inline uint64_t
u64(const unsigned char *at)
{
    uint64_t value;
    memcpy(&value, at, sizeof value);
    return value;
}

/* Copies what the front end may be changing; what is read afterwards is the copy. */
static inline void
copy_once(unsigned char *copy, const char *shared, size_t size)
{
    memcpy(copy, shared, size);
    __asm__ volatile("" : : "r"(copy) : "memory");
}

static int HOT
copy_tables(BlockServer *self, const unsigned char *refs, uint32_t count)
{
    for (uint32_t done = 0; done < count; done += SEGMENTS_PER_PAGE, refs += sizeof(uint32_t)) {
        uint32_t here = count - done < SEGMENTS_PER_PAGE ? count - done : SEGMENTS_PER_PAGE;
        char *table = find_page(self, u32(refs));
        if (table == NULL)
            return 0;
        copy_once(self->segments + done * SEGMENT_SIZE, table, here * SEGMENT_SIZE);
    }
    return 1;
}

/* Adds the memory of the segments to what is there: how many sectors they are, or 0 where something is unusual. */
static uint64_t HOT
add_segments(BlockServer *self, const unsigned char *segments, uint32_t count, uint32_t unit, int *pieces)
{
    uint64_t sectors = 0;
    int piece = *pieces;
    for (const unsigned char *segment = segments; count > 0; count--, segment += SEGMENT_SIZE) {
        uint32_t first = segment[4], last = segment[5];
        char *page = find_page(self, u32(segment));
        if (page == NULL || first > last || last >= SECTORS_PER_PAGE || (first | (last + 1)) % unit != 0)
            return 0;
        char *base = page + first * SECTOR_SIZE;
        size_t length = (last + 1 - first) * SECTOR_SIZE;
        struct iovec *next = &self->memories[piece];
        if (piece > 0 && (char *)next[-1].iov_base + next[-1].iov_len == base)
            next[-1].iov_len += length;
        else if (piece == MOST_PIECES)
            return 0;
        else {
            *next = (struct iovec){base, length};
            piece++;
        }
        sectors += last + 1 - first;
    }
    *pieces = piece;
    return sectors;
}

/* Joins the request in this slot to those that are to be done. 0, and then nothing is changed but memory that means
 * nothing, where it is not usual, or none of theirs. */
static int HOT
join(BlockServer *self, const Limits *limits, const char *slot)
{
    unsigned char entry[LONGEST_ENTRY];
    if (self->joined == MOST_JOINED)
        return 0;
    copy_once(entry, slot, LONGEST_ENTRY); /* of a shorter one, some of the next: it means nothing */
    const unsigned char *tail = entry + self->tail, *segments = tail;
    uint64_t sector = u64(tail - 8);
    uint8_t operation = entry[0];
    uint32_t count = entry[1];
    if (operation == INDIRECT) {
        operation = entry[1];
        count = u16(entry + 2);
        if (operation > WRITE || count == 0 || count > limits->most || !copy_tables(self, tail + 4, count))
            return 0;
        segments = self->segments;
    } else if (operation == FLUSH_DISKCACHE ? count > 0 || self->joined > 0
                                            : operation > WRITE || count == 0 || count > MOST_DIRECT)
        return 0;
    if (operation == FLUSH_DISKCACHE)
        self->start = self->end = 0;
    else {
        if (operation == WRITE && !limits->writable)
            return 0;
        if (self->joined > 0 && (operation != self->action || sector != self->end / SECTOR_SIZE))
            return 0;
        int pieces = self->joined > 0 ? self->pieces : 0;
        struct iovec last = pieces > 0 ? self->memories[pieces - 1] : (struct iovec){0};
        uint64_t sectors = add_segments(self, segments, count, limits->unit, &pieces);
        if (sectors == 0 || sector > limits->sectors || sectors > limits->sectors - sector || sector % limits->unit != 0) {
            if (last.iov_len > 0)
                self->memories[self->pieces - 1] = last;
            return 0;
        }
        if (self->joined == 0)
            self->start = sector * SECTOR_SIZE;
        self->end = (sector + sectors) * SECTOR_SIZE;
        self->pieces = pieces;
    }
    self->action = operation;
    self->answers[self->joined++] = (Answer){.id = u64(tail - 16), .operation = operation};
    return 1;
}

/* Does what was joined: whether it is to be answered. Whoever tried a read or write again would be told what is wrong;
 * Linux tells of what could not be written in one flush only. */
static int HOT
do_joined(BlockServer *self, int file)
{
    if (self->action == FLUSH_DISKCACHE) {
        self->answers[0].status = fdatasync(file) == 0 ? RSP_OKAY : RSP_ERROR;
        return 1;
    }
    ssize_t moved = self->action == READ ? preadv(file, self->memories, self->pieces, (off_t)self->start)
                                         : pwritev(file, self->memories, self->pieces, (off_t)self->start);
    return moved >= 0 && (uint64_t)moved == self->end - self->start;
}

static void HOT
count(BlockServer *self)
{
    uint64_t *requests = self->answers[0].status != RSP_OKAY ? &self->errors
                         : self->action == READ              ? &self->reads
                         : self->action == WRITE             ? &self->writes
                                                             : &self->flushes;
    uint64_t *bytes = self->action == READ ? &self->read_bytes : &self->written_bytes;
    __atomic_store_n(requests, *requests + self->joined, __ATOMIC_RELAXED);
    __atomic_store_n(bytes, *bytes + self->end - self->start, __ATOMIC_RELAXED);
    __atomic_store_n(&self->depth, self->depth - self->joined, __ATOMIC_RELAXED);
}

/* ---- The ring ------------------------------------------------------------------------------------------ */

static inline uint32_t *
word(const Place *place, size_t at)
{
    return (uint32_t *)(place->ring + at);
}

static inline char *
slot(const BlockServer *self, const Place *place, uint32_t index)
{
    return place->ring + HEADER_SIZE + (size_t)(index & (self->entries - 1)) * self->entry_size;
}

/* A death at any point leaves the request, or the note of its answer: the fences are for the compiler, since who looks
 * then sees all that was stored. */
static void HOT
answer(const BlockServer *self, Place *place)
{
    for (uint32_t i = 0; i < self->joined; i++) {
        memcpy(place->ring + NOTE_RESPONSE, &self->answers[i], sizeof(Answer));
        __atomic_store_n(word(place, NOTE_INDEX), place->prod, __ATOMIC_RELEASE);
        __atomic_signal_fence(__ATOMIC_SEQ_CST);
        memcpy(slot(self, place, place->prod), &self->answers[i], sizeof(Answer));
        __atomic_store_n(word(place, RSP_PROD), ++place->prod, __ATOMIC_RELEASE);
    }
}

/* RING_PUSH_RESPONSES_AND_CHECK_NOTIFY, since the last call */
static void HOT
tell_front(BlockServer *self, Place *place)
{
    uint32_t old = place->told;
    place->told = place->prod;
    __atomic_thread_fence(__ATOMIC_SEQ_CST);
    uint32_t event = __atomic_load_n(word(place, RSP_EVENT), __ATOMIC_RELAXED);
    if (place->prod - event < place->prod - old)
        ring_bell(self->doorbell); /* an error says that the port is closed: then nobody is to be told */
}

/* The front end's index; 0 where it cannot be. */
static int HOT
look_at_front(const BlockServer *self, Place *place)
{
    uint32_t peer = __atomic_load_n(word(place, REQ_PROD), __ATOMIC_ACQUIRE);
    if (peer - place->seen > place->prod + self->entries - place->seen)
        return 0;
    place->seen = peer;
    return 1;
}

static inline int
is_woken(const BlockServer *self, uint32_t wakes)
{
    return __atomic_load_n(&self->doorbell->wakes, __ATOMIC_SEQ_CST) != wakes;
}

/* Does the requests that were seen. 0 where one of them is not usual; those before it are answered. */
static int HOT
serve_seen(BlockServer *self, const Limits *limits, Place *place, uint32_t wakes)
{
    int file = hold_descriptor(self->file);
    if (file < 0)
        return 0;
    int usual = 1;
    uint64_t untold = 0;
    while (place->prod != place->seen && !is_woken(self, wakes)) {
        self->joined = 0;
        while (self->joined < place->seen - place->prod &&
               join(self, limits, slot(self, place, place->prod + self->joined)))
            ;
        usual = self->joined > 0 && do_joined(self, file);
        if (!usual)
            break;
        count(self);
        answer(self, place);
        untold += self->end - self->start;
        if (untold >= TOLD_AFTER) {
            tell_front(self, place);
            untold = 0;
        }
    }
    drop_descriptor(self->file);
    if (place->told != place->prod)
        tell_front(self, place);
    return usual;
}

/* Until there is something for the caller: 1; or 0 where no event can come any more. Without the GIL. */
static int ONE_PAGE
serve_ring(BlockServer *self, const Limits *limits, Place *place, uint32_t wakes)
{
    for (;;) {
        uint32_t changes = __atomic_load_n(&self->doorbell->changes, __ATOMIC_SEQ_CST);
        if (is_woken(self, wakes) || !look_at_front(self, place))
            return 1;
        if (place->prod == place->seen) { /* RING_FINAL_CHECK_FOR_REQUESTS */
            __atomic_store_n(word(place, REQ_EVENT), place->prod + 1, __ATOMIC_RELEASE);
            __atomic_thread_fence(__ATOMIC_SEQ_CST);
            if (!look_at_front(self, place))
                return 1;
        }
        if (place->prod != place->seen) {
            __atomic_store_n(&self->depth, place->seen - place->prod, __ATOMIC_RELAXED);
            if (!serve_seen(self, limits, place, wakes))
                return 1;
        } else if (wait_for_change(self->doorbell, changes, NEVER) == SILENCED)
            return 0;
    }
}

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

/* Has the refs mean the group's pages: 0, or -1, and then an error is set and nothing is changed. */
static int
keep_group(BlockServer *self, PyObject *refs, const Group *group)
{
    Py_ssize_t count = PyTuple_Size(refs);
    if (count > MOST_KEPT || group->pages.len != count * PAGE) {
        PyErr_Format(PyExc_ValueError, "%zd bytes are not the pages of %zd refs", group->pages.len, count);
        return -1;
    }
    uint32_t *numbers = PyMem_Calloc((size_t)count, sizeof(uint32_t));
    if (numbers == NULL) {
        PyErr_NoMemory();
        return -1;
    }
    int result = 0;
    for (Py_ssize_t i = 0; result == 0 && i < count; i++)
        result = parse_value(PyTuple_GetItem(refs, i), 32, &numbers[i]);
    if (result == 0)
        result = make_places(self, (uint32_t)count);
    for (Py_ssize_t i = 0; result == 0 && i < count; i++) {
        Kept *kept = find_place(self->kept, self->places, numbers[i]);
        self->taken += kept->page == NULL;
        *kept = (Kept){numbers[i], (char *)group->pages.buf + i * PAGE};
    }
    PyMem_Free(numbers);
    return result;
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
