/* Polling: looking again and again for what a peer does, before sleeping until it tells. An end that looks need not be
 * told, nor be woken.
 *
 * Where the domain may (dom0, by /dev/xen/privcmd), it gives its processor to other domains between looks (Xen
 * SCHEDOP_yield): the peer may be one that waits for it. Elsewhere it only keeps the processor busy.
 */

#include "native.h"

#include <string.h>

enum { LOOKS = 32 }; /* before the clock is asked again, which in a PV domain is a system call */

static inline void
pause_processor(void)
{
#if defined(__x86_64__) || defined(__i386__)
    __builtin_ia32_pause();
#elif defined(__aarch64__)
    __asm__ volatile("yield");
#endif
}

/* What gives the processor away: a copy for one thread's calls, or `file` is -1. */
typedef struct {
    const Yielder *yielder;
    int file;
    unsigned char argument[MOST_YIELD];
} Yielding;

static void
begin_yielding(Yielding *self, const Doorbell *doorbell)
{
    self->yielder = __atomic_load_n(&doorbell->yielder, __ATOMIC_ACQUIRE);
    self->file = self->yielder == NULL ? -1 : hold_descriptor(self->yielder->file);
    if (self->file >= 0)
        memcpy(self->argument, self->yielder->argument, sizeof(self->argument));
}

static void
end_yielding(Yielding *self)
{
    if (self->file >= 0)
        drop_descriptor(self->yielder->file);
}

/* One look where the processor is given away, which may last; some where it is not. */
static int
look_a_little(Yielding *self, Look *look, const void *looker)
{
    if (self->file >= 0) {
        system_call(SYS_ioctl, self->file, (void *)self->yielder->request, (size_t)self->argument);
        return look(looker);
    }
    for (int i = 0; i < LOOKS; i++) {
        if (look(looker))
            return 1;
        pause_processor();
    }
    return 0;
}

int
look_for_long(const Doorbell *self, Look *look, const void *looker, uint64_t deadline)
{
    uint64_t end = 0;
    if (deadline != NEVER && monotonic_now() >= deadline)
        return 0;
    Yielding yielding;
    begin_yielding(&yielding, self);
    int found = look_a_little(&yielding, look, looker);
    while (!found) {
        uint64_t now = monotonic_now();
        if (end == 0) {
            end = now + __atomic_load_n(&self->poll, __ATOMIC_RELAXED);
            end = deadline < end ? deadline : end;
        }
        if (now >= end)
            break;
        found = look_a_little(&yielding, look, looker);
    }
    end_yielding(&yielding);
    return found;
}

PyObject *
doorbell_yield_by(PyObject *object, PyObject *const *args, Py_ssize_t nargs)
{
    Doorbell *self = (Doorbell *)object;
    State *state = PyType_GetModuleState(Py_TYPE(object));
    uint32_t request;
    Region argument;
    if (check_count("yield_by", nargs, 3) < 0 || parse_value(args[1], 32, &request) < 0)
        return NULL;
    if (!PyObject_TypeCheck(args[0], state->descriptor))
        return PyErr_Format(PyExc_TypeError, "%R is no Descriptor", args[0]);
    if (take_region(args[2], NULL, 0, &argument) < 0)
        return NULL;
    Yielder *yielder = NULL;
    if (argument.length > MOST_YIELD)
        PyErr_Format(PyExc_ValueError, "an ioctl's argument of %zd bytes, where %d are the most", argument.length, MOST_YIELD);
    else if ((yielder = PyMem_Calloc(1, sizeof(Yielder))) == NULL)
        PyErr_NoMemory();
    else {
        yielder->file = (Descriptor *)Py_NewRef(args[0]);
        yielder->request = request;
        memcpy(yielder->argument, argument.at, (size_t)argument.length);
    }
    release_region(&argument);
    if (yielder == NULL)
        return NULL;
    Yielder *none = NULL;
    if (!__atomic_compare_exchange_n(&self->yielder, &none, yielder, 0, __ATOMIC_SEQ_CST, __ATOMIC_SEQ_CST)) {
        free_yielder(yielder);
        PyErr_SetString(PyExc_ValueError, "what a Doorbell yields by is told once");
        return NULL;
    }
    Py_RETURN_NONE;
}

void
free_yielder(Yielder *yielder)
{
    if (yielder != NULL) {
        Py_DECREF((PyObject *)yielder->file);
        PyMem_Free(yielder);
    }
}

typedef struct {
    const Doorbell *doorbell;
    const uint32_t *word;
    uint32_t value;
    uint32_t wakes;
} Looker;

static int
is_other(const void *argument)
{
    const Looker *looker = argument;
    return __atomic_load_n(looker->word, __ATOMIC_ACQUIRE) != looker->value ||
           __atomic_load_n(&looker->doorbell->wakes, __ATOMIC_SEQ_CST) != looker->wakes;
}

PyObject *
doorbell_look(PyObject *object, PyObject *const *args, Py_ssize_t nargs)
{
    Looker looker = {.doorbell = (Doorbell *)object};
    Py_ssize_t at;
    Region region;
    if (check_count("look", nargs, 4) < 0 || parse_offset(args[1], &at) < 0 || parse_value(args[2], 32, &looker.value) < 0 ||
        parse_value(args[3], 32, &looker.wakes) < 0 || take_region(args[0], NULL, 0, &region) < 0)
        return NULL;
    PyObject *result = NULL;
    if (at < 0 || at > region.length - (Py_ssize_t)sizeof(uint32_t) ||
        ((uintptr_t)region.at + (uintptr_t)at) % sizeof(uint32_t) != 0)
        PyErr_SetString(PyExc_ValueError, "no word of 32 bits lies there in the buffer");
    else {
        int found;
        looker.word = (const uint32_t *)(region.at + at);
        Py_BEGIN_ALLOW_THREADS
        found = look_for_long(looker.doorbell, is_other, &looker, NEVER);
        Py_END_ALLOW_THREADS
        result = PyBool_FromLong(found);
    }
    release_region(&region);
    return result;
}
