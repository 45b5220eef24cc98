/* Polling: looking again and again for what a peer does, before sleeping until it tells. An end that looks need not be
 * told, nor be woken.
 *
 * Where the domain may (dom0, by /dev/xen/privcmd), it gives its processor to other domains between looks (Xen
 * SCHEDOP_yield): the peer may be one that waits for it. Elsewhere it only keeps the processor busy.
 */

#include "native.h"

#include <sys/ioctl.h>

/* include/uapi/xen/privcmd.h, which includes what is not installed */
struct hypercall {
    uint64_t op;
    uint64_t arg[5];
};
#define IOCTL_PRIVCMD_HYPERCALL _IOC(_IOC_NONE, 'P', 0, sizeof(struct hypercall))

/* Xen public/xen.h and sched.h */
enum { SCHED_OP = 29, SCHEDOP_YIELD = 0 };

/* Looks before the clock is asked, which in a PV domain is a system call. */
enum { LOOKS = 32, YIELDS = 4 };

static inline void
pause_processor(void)
{
#if defined(__x86_64__) || defined(__i386__)
    __builtin_ia32_pause();
#elif defined(__aarch64__)
    __asm__ volatile("yield");
#endif
}

static int
look_while_yielding(int yielder, Look *look, const void *looker)
{
    const struct hypercall yield = {.op = SCHED_OP, .arg = {SCHEDOP_YIELD}};
    for (int i = 0; i < YIELDS; i++) {
        system_call(SYS_ioctl, yielder, (void *)IOCTL_PRIVCMD_HYPERCALL, (size_t)&yield); /* it was tried before */
        if (look(looker))
            return 1;
    }
    return 0;
}

static int
look_while_pausing(Look *look, const void *looker)
{
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
    int yielder = self->yielder == NULL ? -1 : hold_descriptor(self->yielder);
    int found = 0;
    for (uint64_t end = 0; !found && (end == 0 || monotonic_now() < end);) {
        found = yielder >= 0 ? look_while_yielding(yielder, look, looker) : look_while_pausing(look, looker);
        if (!found && end == 0) {
            end = monotonic_now() + self->poll;
            end = deadline < end ? deadline : end;
        }
    }
    if (yielder >= 0)
        drop_descriptor(self->yielder);
    return found;
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
