/* What the files of xengrant._native share: the structs, the functions that one file calls in another, and the macros
 * for entries of a PyMethodDef table. Names are short, since the extension is compiled with -fvisibility=hidden: only
 * PyInit__native is seen from outside.
 */

#ifndef XENGRANT_NATIVE_H
#define XENGRANT_NATIVE_H

#include <Python.h>
#include <structmember.h>

#include <errno.h>
#include <stdint.h>
#include <sys/syscall.h>
#include <sys/types.h>
#include <unistd.h>

typedef struct Mapping Mapping;

/* What every call of a ring's end runs lies together, and the loops of what every hand-over does in one page each, with
 * all they call: after a switch of processes, and more so of domains, each page that is touched and each call is dear. */
#define HOT __attribute__((hot))
#define ONE_PAGE __attribute__((hot, noinline, flatten, aligned(4096)))
#define COLD __attribute__((cold, noinline))

/* What a hand-over calls: the kernel's result, which for an error is -errno. It is libc's syscall(), which the tests'
 * preload library can be put in front of, and not read() and write(), which look whether to be cancellation points once
 * there are threads. */
static inline long
system_call(long number, long first, const void *second, size_t third)
{
    long result = syscall(number, first, second, third);
    return result < 0 ? -errno : result;
}

/* ---- The module ------------------------------------------------------------------------------------------ */

typedef struct {
    PyTypeObject *mapping;
    PyTypeObject *held;
    PyTypeObject *descriptor;
    PyTypeObject *doorbell;
    PyTypeObject *reader;
    PyTypeObject *writer;
    PyTypeObject *ring_turn;
} State;

extern Py_ssize_t page_size; /* from the module's exec on */

/* An exception of xengrant.errors, or NULL and another is set. */
PyObject *our_error(const char *name);

#define FASTCALL(NAME, SIGNATURE, DOC)                                                                       \
    {#NAME, (PyCFunction)(void (*)(void))NAME, METH_FASTCALL, #NAME "($module, " SIGNATURE ", /)\n--\n\n" DOC}
#define METHOD(FUNCTION) (PyCFunction)(void (*)(void))FUNCTION, METH_METHOD | METH_FASTCALL | METH_KEYWORDS

/* A function of the module, for METH_FASTCALL: what the table in module.c lists. */
typedef PyObject *Fastcall(PyObject *module, PyObject *const *args, Py_ssize_t nargs);

/* ---- Words: atomic access to 8, 16 and 32 bits of a buffer ------------------------------------------- */

/* These read arguments. Return 0, or -1 and set an error. */
int check_count(const char *name, Py_ssize_t given, Py_ssize_t wanted);
int parse_offset(PyObject *offset, Py_ssize_t *at);
int parse_value(PyObject *argument, unsigned int bits, uint32_t *value);

extern Fastcall load8, load16, load32;
extern Fastcall store8, store16, store32;
extern Fastcall fetch_or8, fetch_or32;
extern Fastcall fetch_and8, fetch_and32;
extern Fastcall compare_exchange16, compare_exchange32;
extern PyObject *fence(PyObject *module, PyObject *ignored);

/* ---- Grants: tables copied and decoded --------------------------------------------------------------------- */

extern PyObject *copy_entries(PyObject *module, PyObject *args);
extern PyObject *decode_grants(PyObject *module, PyObject *args);
extern PyObject *tally_grants(PyObject *module, PyObject *args);

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

extern PyType_Spec descriptor_spec;

/* Begins a call: the file's number, or -1 where it is closed. */
int hold_descriptor(Descriptor *self);

/* Ends a call; 0, and nothing is done, where none is under way. */
int drop_descriptor(Descriptor *self);

/* ---- Doorbell: an event channel port that one program waits on -------------------------------------------- */

typedef struct Doorbell Doorbell;

enum { MOST_YIELD = 64 };

/* An ioctl that gives the processor to other domains, between two looks of who polls. */
typedef struct {
    Descriptor *file;
    unsigned long request;
    unsigned char argument[MOST_YIELD];
} Yielder;

struct Doorbell {
    PyObject_HEAD
    Descriptor *bell;
    Descriptor *life; /* or NULL */
    uint32_t port;
    char is_kernels;
    Descriptor *waker;  /* of an eventfd */
    uint32_t changes;   /* counts whatever has those who wait look again; a futex */
    uint32_t followers; /* threads that wait for `changes` */
    uint32_t led;       /* 1 while a thread polls */
    uint32_t wakes;     /* counts calls of wake() */
    uint32_t events;    /* counts events that were taken */
    uint32_t stopped;   /* 1 where nobody is to wait */
    uint32_t generation; /* of the process whose it is: a fork's child is never told of anything */
    uint32_t hung_up;   /* 1 where the peer shut its end of an embedded machine's port: it never rings again */
    uint64_t patience;  /* nanoseconds after which a wait without an event ends, whatever its deadline; NEVER for none */
    uint64_t poll;      /* nanoseconds to look before sleeping */
    Yielder *yielder;   /* or NULL; set once */
    /* Of a kernel's, once a wait has had no deadline: */
    uint32_t waker_port;  /* an event channel of this domain with itself: what is rung here comes from the device; 0 without */
    uint32_t waits_since; /* the watchdog's second, or 0 while nobody waits in a read */
    char cannot_block;    /* there is no such channel to be had */
    char watched;
    Doorbell *next;
    Doorbell *previous;
};

extern PyType_Spec doorbell_spec;

/* INTERRUPTED: signals are to be looked after. */
typedef enum { CHANGED, TIMED_OUT, INTERRUPTED, SILENCED } Waited;

#define NEVER UINT64_MAX

/* Without the GIL: waits until `changes` is not `seen`, or the deadline of the monotonic clock, in nanoseconds. */
Waited wait_for_change(Doorbell *self, uint32_t seen, uint64_t deadline);

/* Sends the peer an event: 0, or an errno; ENOTCONN where the port is closed. */
int ring_bell(Doorbell *self);

/* The same for a caller who holds the descriptor `bell`, whose number it passes: -1 where it is closed. */
Waited wait_on_bell(Doorbell *self, int bell, uint32_t seen, uint64_t deadline);
int ring_held_bell(const Doorbell *self, int bell);

/* Wakes who waits in a read. */
void ring_waker(Doorbell *self);

uint64_t monotonic_now(void);

/* ---- Polling: looking again and again before sleeping ---------------------------------------------------------- */

/* Whether there is what is looked for, or it is no use looking on. */
typedef int Look(const void *looker);

/* Without the GIL: looks for as long as the doorbell's `poll` says, at most until the deadline, and not at all once that
 * is over; whether `look` ever said so. */
int look_for_long(const Doorbell *self, Look *look, const void *looker, uint64_t deadline);

static inline int
polls(const Doorbell *self)
{
    return __atomic_load_n(&self->poll, __ATOMIC_RELAXED) != 0;
}

void free_yielder(Yielder *yielder); /* or NULL; with the GIL */

/* Methods of Doorbell. */
PyObject *doorbell_look(PyObject *object, PyObject *const *args, Py_ssize_t nargs);
PyObject *doorbell_yield_by(PyObject *object, PyObject *const *args, Py_ssize_t nargs);

/* timeout in seconds, or None: a deadline. 0, or -1 and an error is set. */
int parse_timeout(PyObject *timeout, uint64_t *deadline);

/* ---- Watchdog: the end of waits that have none --------------------------------------------------------------- */

/* Has ring_waker called while a wait is older than a second or two. 0, or an errno. */
int start_watching(Doorbell *doorbell);
void stop_watching(Doorbell *doorbell);

/* When it began; and whether that is a second or more ago. */
uint32_t begin_watched_wait(Doorbell *doorbell);
int end_watched_wait(Doorbell *doorbell, uint32_t since);

/* ---- Turn: one thread after the other, and a thread's own signal handlers inside it -------------------------- */

typedef struct {
    uint32_t state; /* 0 free, 1 held, 2 held and waited for, above four times the generation of who did so; a futex */
    uint32_t depth;
    uintptr_t owner;
} Turn;

/* With the GIL, which others have while this waits. 0, or -1 and an error is set: of a handler, or TimeoutError. */
int take_turn(Turn *turn, uint64_t deadline);
void end_turn(Turn *turn);

/* ---- Rings of bytes, and a vchan's notify bytes ------------------------------------------------------------ */

typedef struct {
    PyObject_HEAD
    PyObject *indices; /* the buffers' owners; each call takes their buffers anew, so that they can be closed between */
    PyObject *data;
    Mapping *indices_mapping; /* the same, where they are Mappings */
    Mapping *data_mapping;
    Py_ssize_t own_at;
    Py_ssize_t peer_at;
    Py_ssize_t start;
    uint32_t size;
    uint32_t own;
    uint32_t lie;  /* the peer's index that was refused */
    uint32_t seen; /* bytes that may be read, or written, when the peer's index was last loaded, less what was since */
    uint32_t busy; /* while a call uses the above: take_word */
    char writes;
    /* Of a vchan's end, which can be told and waits: NULL without. */
    Doorbell *doorbell;
    Py_ssize_t live_at;  /* in `indices`: not 0 while the peer is there; -1 where this end outlives its peers */
    Py_ssize_t ask_at;   /* where this end asks to be told */
    Py_ssize_t asked_at; /* where the peer does */
    uint32_t wakes;      /* of the doorbell's, those that this end's waits have returned for */
    Turn turn;           /* of those that move bytes, and may wait for them */
} Ring;

/* How a wait ended. LIE and PAUSED, signals are to be looked after, stay among the ring's files. */
typedef enum { READY, PEER_GONE, LATE, WOKEN, SILENT, LIE, PAUSED } Outcome;

/* Sends from, or receives into, a buffer from byte `start` on, and says how many bytes: an Outcome, or -1 and an error
 * is set. */
int pump_buffer(Ring *self, PyObject *buffer, Py_ssize_t start, size_t least, int whole, uint64_t deadline, size_t *moved);

/* What was moved of several buffers. */
typedef struct {
    Py_ssize_t whole; /* how many of them are done */
    size_t bytes;     /* in those */
    size_t part;      /* bytes of the next one, */
    size_t length;    /* of so many */
} Progress;

#define LINES_AT_ONCE 32

/* The same with `count` buffers of a tuple, at most LINES_AT_ONCE, from the `first` on: all of each. */
int pump_lines(Ring *self, PyObject *lines, Py_ssize_t first, Py_ssize_t count, uint64_t deadline, Progress *progress);

/* Takes at most so many bytes, or all of them. NULL where an error is set (and the outcome READY or LIE), or where the
 * outcome is another. */
PyObject *receive_bytes(Ring *self, Py_ssize_t most, int whole, uint64_t deadline, Outcome *outcome);

int is_ring(PyObject *object, int writes);

extern PyType_Spec stream_spec; /* stream.c */

extern PyType_Spec block_spec; /* block.c */

extern PyType_Spec reader_spec;
extern PyType_Spec writer_spec;
extern PyType_Spec ring_turn_spec; /* ring_turn.c */

/* ---- Mapping: pages that cannot be unmapped under a view ------------------------------------------------- */

/* The state is one atomic word: how many exports (buffers and operations under way) are live, and two flags.
 * CLOSED refuses new exports; who sets it with no export live, or who ends the last export after it was set,
 * is the only one to unmap. FORKED, always with CLOSED, says the memory is the parent process's. */
#define FORKED ((uint32_t)1 << 30)
#define EXPORTS (FORKED - 1)

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

typedef struct {
    int fd;
    off_t offset;
    size_t length;
} Part;

extern PyType_Spec mapping_spec;
extern PyType_Spec memory_spec; /* its base */

/* A mapping that is closed and has no memory yet, or NULL, and then an error is set. */
Mapping *allocate_mapping(PyTypeObject *type, Py_ssize_t length, int writable);

/* Maps the parts side by side, without the GIL. Returns 0 or an errno, and then nothing stays mapped. */
int map_and_link(Mapping *self, const Part *parts, Py_ssize_t count);

/* A use of the memory, which keeps it mapped: 0, or -1 and an error is set. With the GIL. */
int begin_export(Mapping *self);
void end_export(Mapping *self);

/* What a Held does with its mapping. */
int is_mapping(PyObject *object);
int check_open(Mapping *self); /* 0, or -1 and an error is set */
PyObject *mapping_close(PyObject *object, PyObject *ignored);
PyObject *mapping_exit(PyObject *object, PyObject *const *args, Py_ssize_t nargs);
PyObject *mapping_get_closed(PyObject *object, void *closure);

/* Of descriptor.c, for a mapping with `granted`: called without the GIL once the memory is gone. */
void end_grants(Mapping *self);

/* ---- Region: a buffer, held for a call ----------------------------------------------------------------------- */

/* What is used most is held with less work than the buffer protocol is. */
typedef struct {
    char *at;
    Py_ssize_t length;
    Mapping *mapping; /* held as its own views hold it, or NULL */
    int viewed;       /* whether it is held by the view; bytes need no holding, since the caller has them */
    Py_buffer view;
} Region;

/* `mapping` is the owner, where that is one, or NULL. 0, or -1 and an error is set. */
int take_region(PyObject *owner, Mapping *mapping, int writing, Region *region);
void release_region(Region *region);

/* ---- Held: a mapping with what its pages are called by ----------------------------------------------------- */

typedef struct {
    PyObject_HEAD
    PyObject *whose;
    PyObject *names;
    Mapping *mapping;
    char writable;
} Held;

extern PyType_Spec held_spec;

/* Whether objects of this type may be made by make_held: 0, or -1 and an error is set. */
int check_held_type(State *state, PyObject *type);

PyObject *make_held(PyTypeObject *type, PyObject *whose, PyObject *names, Mapping *mapping, int writable);

/* ---- Fork ---------------------------------------------------------------------------------------------------- */

/* Returns 0 or an errno; only the first call in a process does anything. */
int register_at_fork(void);

/* What its handlers call, each pair in a parent or a child; between the two of one, no other thread maps or waits. */
void mappings_before_fork(void);
void mappings_after_fork(int in_child);
void watchdog_before_fork(void);
void watchdog_after_fork(int in_child);

/* How many forks lie between this process and the one that loaded the module: locks of another are nobody's. */
extern uint32_t fork_generation;

/* Takes a lock of one word, where nobody of this process has it: whether it could. Who has it stores 0, released. */
static inline int
take_word(uint32_t *lock)
{
    uint32_t held = fork_generation + 1, seen = __atomic_load_n(lock, __ATOMIC_RELAXED);
    return seen != held && __atomic_compare_exchange_n(lock, &seen, held, 0, __ATOMIC_ACQUIRE, __ATOMIC_RELAXED);
}

#endif
