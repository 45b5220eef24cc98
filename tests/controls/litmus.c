/* Two threads on two processors, over the library's own ring.c and ring_wait.c: one writes a byte to a vchan's ring and
 * looks whether to tell, the other finds none, asks to be told and looks again. `litmus ROUNDS SECONDS` prints how many
 * rounds there were, and in how many the second would sleep for ever; it ends at the first of those.
 *
 * Compiled with LITMUS, and with WITHOUT_FENCE to leave out the fences.
 */

#define _GNU_SOURCE
#include "ring.c"
#include "ring_wait.c"
#include "ring_pump.c"
#include "ring_turn.c"

#include <pthread.h>
#include <sched.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <time.h>

#define SIZE 64
#define LEFT_CONS 0
#define LEFT_PROD 4
#define CLI_NOTIFY 22

static char page[4096] __attribute__((aligned(4096)));
static char bytes[SIZE] __attribute__((aligned(64)));
static int rung, slept; /* each written by one thread, read after the round */
static uint64_t turns[2]; /* rounds that each has come to the start, or the end, of */
static int over;

uint32_t fork_generation;

int
ring_held_bell(const Doorbell *doorbell, int bell)
{
    (void)doorbell, (void)bell;
    rung = 1;
    return 0;
}

Waited
wait_on_bell(Doorbell *doorbell, int bell, uint32_t seen, uint64_t deadline)
{
    (void)doorbell, (void)bell, (void)seen, (void)deadline;
    slept = 1;
    return TIMED_OUT;
}

int
look_for_long(const Doorbell *doorbell, Look *look, const void *looker, uint64_t deadline)
{
    (void)doorbell, (void)look, (void)looker, (void)deadline;
    return 0; /* no side polls */
}

uint64_t
monotonic_now(void)
{
    return 0;
}

/* Both come to the same place; whoever waits for long gives up its processor, since there may be but one. */
static void
meet(int me)
{
    uint64_t turn = __atomic_add_fetch(&turns[me], 1, __ATOMIC_SEQ_CST);
    for (unsigned int tries = 0; __atomic_load_n(&turns[!me], __ATOMIC_SEQ_CST) < turn; tries++)
        if (tries > 2000)
            sched_yield();
}

static void
pause_for(uint32_t *state, unsigned int most)
{
    *state = *state * 1664525u + 1013904223u;
    for (volatile unsigned int i = (*state >> 16) % most; i > 0; i--)
        ;
}

/* Takes the ring's bytes out of the caches, where those of a large ring are not either: the store of the byte is then
 * under way for long, and that of the index behind it. */
static void
cool(void)
{
#if defined(__x86_64__) || defined(__i386__)
    for (unsigned int i = 0; i < SIZE; i += 64)
        __builtin_ia32_clflush(bytes + i);
    __builtin_ia32_mfence();
#endif
}

/* The number-th processor that this process may use, of those that there are. */
static void
pin(int number)
{
    cpu_set_t may, one;
    CPU_ZERO(&one);
    if (sched_getaffinity(0, sizeof(may), &may) < 0)
        return;
    for (int i = 0; i < CPU_SETSIZE; i++)
        if (CPU_ISSET(i, &may) && number-- == 0) {
            CPU_SET(i, &one);
            sched_setaffinity(0, sizeof(one), &one);
        }
}

static Ring writer = {.own_at = LEFT_PROD, .peer_at = LEFT_CONS, .asked_at = CLI_NOTIFY, .live_at = -1, .size = SIZE, .writes = 1};
static Ring reader = {.own_at = LEFT_CONS, .peer_at = LEFT_PROD, .ask_at = CLI_NOTIFY, .live_at = -1, .size = SIZE};
static Doorbell doorbell;
static const Opened opened = {.indices = {.at = page, .length = sizeof(page)}, .data = {.at = bytes, .length = SIZE}};

static void *
write_bytes(void *unused)
{
    uint32_t state = 1;
    char byte = 0;
    (void)unused;
    pin(0);
    for (;;) {
        meet(0);
        if (over)
            return NULL;
        pause_for(&state, 32);
        look(&writer, &opened); /* has the page in this processor's cache, as a real end does */
        copy(&writer, &opened, &byte, 1);
        publish(&writer, &opened, 1);
        tell(&writer, &opened);
        meet(0);
    }
}

int
main(int count, char **arguments)
{
    uint64_t rounds = count > 1 ? strtoull(arguments[1], NULL, 10) : 1000000, done = 0, lost = 0;
    time_t end = time(NULL) + (count > 2 ? atoi(arguments[2]) : 60);
    pthread_t thread;
    uint32_t state = 2;
    char byte;
    writer.doorbell = reader.doorbell = &doorbell;
    if (pthread_create(&thread, NULL, write_bytes, NULL) != 0)
        return 2;
    pin(1);
    while (done < rounds && lost == 0 && ((done & 1023) != 0 || time(NULL) < end)) {
        rung = slept = 0;
        cool();
        meet(1);
        pause_for(&state, 64);
        await_bytes(&reader, &opened, 1, NEVER);
        meet(1);
        done++;
        lost += slept && !rung;
        look(&reader, &opened);
        copy(&reader, &opened, &byte, 1);
        publish(&reader, &opened, 1);
        page[CLI_NOTIFY] = 0;
    }
    over = 1;
    meet(1);
    pthread_join(thread, NULL);
    printf("%llu %llu\n", (unsigned long long)done, (unsigned long long)lost);
    return 0;
}
