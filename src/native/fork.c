/* Fork: what has to be done with the memory and the threads of this extension as a process forks.
 *
 * Handlers of libc's, not os.register_at_fork's: the child's runs before any Python does, its other hooks
 * and the garbage collector included, and whoever forks.
 */

#include "native.h"

#include <pthread.h>

uint32_t fork_generation;

static int at_fork_error;

static void
before_fork(void)
{
    watchdog_before_fork();
    mappings_before_fork();
}

static void
after_fork_in_parent(void)
{
    mappings_after_fork(0);
    watchdog_after_fork(0);
}

static void
after_fork_in_child(void)
{
    fork_generation++;
    mappings_after_fork(1);
    watchdog_after_fork(1);
}

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
