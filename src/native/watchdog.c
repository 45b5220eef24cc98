/* Watchdog: a thread that breaks off what waits too long. A read of /dev/xen/evtchn has no timeout, and polling before
 * it is one system call more where C's libxenvchan has three for each hand-over. So doorbells read at once, and this
 * thread rings, through a port of their own, those that have waited for a second or two.
 *
 * It sleeps for good while nobody waits. It never has the GIL, and takes no signals.
 */

#include "native.h"

#include <errno.h>
#include <limits.h>
#include <linux/futex.h>
#include <pthread.h>
#include <signal.h>
#include <sys/syscall.h>
#include <time.h>
#include <unistd.h>

static pthread_mutex_t lock = PTHREAD_MUTEX_INITIALIZER; /* of the list, and of starting the thread */
static Doorbell *watched;
static uint32_t seconds; /* counts them, while it is awake */
static uint32_t asleep;  /* a futex */

static int running;

/* Between one and two seconds, since the first tick may come at once. */
static int
is_over(uint32_t since)
{
    return __atomic_load_n(&seconds, __ATOMIC_SEQ_CST) - since >= 2;
}

/* Whether anybody waits; rings those whose time is over. */
static int
look_around(void)
{
    int waiting = 0;
    pthread_mutex_lock(&lock);
    for (Doorbell *each = watched; each != NULL; each = each->next) {
        uint32_t since = __atomic_load_n(&each->waits_since, __ATOMIC_SEQ_CST);
        waiting |= since != 0;
        if (since != 0 && is_over(since))
            ring_waker(each);
    }
    pthread_mutex_unlock(&lock);
    return waiting;
}

static void *
watch(void *unused)
{
    for (;;) {
        struct timespec second = {.tv_sec = 1};
        nanosleep(&second, NULL);
        uint32_t now = seconds + 1;
        __atomic_store_n(&seconds, now == 0 ? 1 : now, __ATOMIC_SEQ_CST); /* 0 is no time */
        if (look_around())
            continue;
        __atomic_store_n(&asleep, 1, __ATOMIC_SEQ_CST);
        if (!look_around())
            syscall(SYS_futex, &asleep, FUTEX_WAIT_PRIVATE, 1, NULL, NULL, 0);
        __atomic_store_n(&asleep, 0, __ATOMIC_SEQ_CST);
    }
    return unused;
}

static int
start(void)
{
    pthread_t thread;
    sigset_t all, before;
    pthread_attr_t attributes;
    int error = pthread_attr_init(&attributes);
    if (error != 0)
        return error;
    pthread_attr_setdetachstate(&attributes, PTHREAD_CREATE_DETACHED);
    sigfillset(&all);
    pthread_sigmask(SIG_SETMASK, &all, &before);
    error = pthread_create(&thread, &attributes, watch, NULL);
    pthread_sigmask(SIG_SETMASK, &before, NULL);
    pthread_attr_destroy(&attributes);
    running = error == 0;
    return error;
}

int
start_watching(Doorbell *doorbell)
{
    pthread_mutex_lock(&lock);
    int error = 0;
    if (!running) {
        seconds = 1;
        asleep = 0;
        error = start();
    }
    if (error == 0) {
        doorbell->next = watched;
        doorbell->previous = NULL;
        if (watched != NULL)
            watched->previous = doorbell;
        watched = doorbell;
        doorbell->watched = 1;
    }
    pthread_mutex_unlock(&lock);
    return error;
}

void
stop_watching(Doorbell *doorbell)
{
    if (!doorbell->watched)
        return;
    pthread_mutex_lock(&lock);
    if (doorbell->next != NULL)
        doorbell->next->previous = doorbell->previous;
    if (doorbell->previous != NULL)
        doorbell->previous->next = doorbell->next;
    else
        watched = doorbell->next;
    doorbell->watched = 0;
    pthread_mutex_unlock(&lock);
}

uint32_t HOT
begin_watched_wait(Doorbell *doorbell)
{
    uint32_t now = __atomic_load_n(&seconds, __ATOMIC_SEQ_CST);
    __atomic_store_n(&doorbell->waits_since, now, __ATOMIC_SEQ_CST);
    if (__atomic_load_n(&asleep, __ATOMIC_SEQ_CST) != 0) {
        __atomic_store_n(&asleep, 0, __ATOMIC_SEQ_CST);
        syscall(SYS_futex, &asleep, FUTEX_WAKE_PRIVATE, INT_MAX, NULL, NULL, 0);
    }
    return now;
}

int HOT
end_watched_wait(Doorbell *doorbell, uint32_t since)
{
    __atomic_store_n(&doorbell->waits_since, 0, __ATOMIC_SEQ_CST);
    return is_over(since);
}

void
watchdog_before_fork(void)
{
    pthread_mutex_lock(&lock);
}

/* The child has no such thread. Its doorbells are closed, nobody waits on them, and they leave the list as they go. */
void
watchdog_after_fork(int in_child)
{
    if (in_child) {
        running = 0;
        for (Doorbell *each = watched; each != NULL; each = each->next)
            each->waits_since = 0;
    }
    pthread_mutex_unlock(&lock);
}
