/* Turn: one thread after the other, and a thread's own signal handlers inside it. */

#include "native.h"

#include <linux/futex.h>
#include <time.h>

static inline uint32_t
free_turn(void)
{
    return fork_generation << 2;
}

/* What a thread of the parent process had is free. */
static inline int
is_free(uint32_t state)
{
    return state - free_turn() - 1 > 1;
}

int HOT
take_turn(Turn *turn, uint64_t deadline)
{
    uintptr_t self = (uintptr_t)__builtin_thread_pointer();
    uint32_t free = free_turn(), state = __atomic_load_n(&turn->state, __ATOMIC_RELAXED);
    if (!is_free(state) && __atomic_load_n(&turn->owner, __ATOMIC_RELAXED) == self) {
        turn->depth++;
        return 0;
    }
    if (!is_free(state) ||
        !__atomic_compare_exchange_n(&turn->state, &state, free + 1, 0, __ATOMIC_ACQUIRE, __ATOMIC_RELAXED)) {
        while (!is_free(__atomic_exchange_n(&turn->state, free + 2, __ATOMIC_ACQUIRE))) {
            uint64_t now = deadline == NEVER ? 0 : monotonic_now();
            uint64_t rest = deadline == NEVER ? NEVER : deadline > now ? deadline - now : 0;
            if (rest == 0) {
                PyErr_SetString(PyExc_TimeoutError, "another thread reads, or writes, here, and the time is out");
                return -1;
            }
            /* Not for longer than a second, since a signal that comes just before the call does not end it. */
            struct timespec limit = {.tv_sec = rest >= 1000000000u, .tv_nsec = rest >= 1000000000u ? 0 : (long)rest};
            Py_BEGIN_ALLOW_THREADS
            syscall(SYS_futex, &turn->state, FUTEX_WAIT_PRIVATE, free + 2, &limit, NULL, 0);
            Py_END_ALLOW_THREADS
            if (PyErr_CheckSignals() < 0) {
                syscall(SYS_futex, &turn->state, FUTEX_WAKE_PRIVATE, 1, NULL, NULL, 0); /* what may have woken this one */
                return -1;
            }
        }
    }
    __atomic_store_n(&turn->owner, self, __ATOMIC_RELAXED);
    turn->depth = 1;
    return 0;
}

void HOT
end_turn(Turn *turn)
{
    if (--turn->depth > 0)
        return;
    __atomic_store_n(&turn->owner, 0, __ATOMIC_RELAXED);
    if (__atomic_exchange_n(&turn->state, free_turn(), __ATOMIC_RELEASE) == free_turn() + 2)
        syscall(SYS_futex, &turn->state, FUTEX_WAKE_PRIVATE, 1, NULL, NULL, 0);
}
