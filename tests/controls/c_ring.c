/* The sides of a vchan's ring for the explorer: the library's own ring.c and ring_wait.c, compiled with hooks.h, run from
 * their beginning up to the first access to the shared page that has no answer yet.
 */

#include "ring.c"
#include "ring_wait.c"
#include "ring_pump.c"
#include "ring_turn.c"

#include <setjmp.h>
#include <string.h>

static char page[4096] __attribute__((aligned(4096)));
static char bytes[4096]; /* the ring's own: nothing of the protocol reads them */

static const uint64_t *answers;
static unsigned int answered, given;
static uint64_t asked[4]; /* kind, offset, size, value */
static jmp_buf stop;

static void __attribute__((noreturn))
ask(int kind, uint64_t at, unsigned int size, uint64_t value)
{
    asked[0] = (uint64_t)kind;
    asked[1] = at;
    asked[2] = size;
    asked[3] = value;
    longjmp(stop, 1);
}

/* What is not shared, the ring's private words and the doorbell's, is accessed at once: one thread runs at a time. */
static uint64_t
access_private(int kind, volatile void *at, unsigned int size, uint64_t value)
{
    uint64_t old = size == 1 ? *(volatile uint8_t *)at : size == 4 ? *(volatile uint32_t *)at : *(volatile uint64_t *)at;
    uint64_t new = kind == STORE ? value : kind == FETCH_OR ? old | value : kind == FETCH_AND ? old & value : old;
    if (size == 1)
        *(volatile uint8_t *)at = (uint8_t)new;
    else if (size == 4)
        *(volatile uint32_t *)at = (uint32_t)new;
    else
        *(volatile uint64_t *)at = new;
    return old;
}

uint64_t
hook(int kind, const volatile void *at, unsigned int size, uint64_t value)
{
    uint64_t offset = (uint64_t)((const volatile char *)at - page);
    if (at != NULL && offset >= sizeof(page))
        return access_private(kind, (volatile void *)at, size, value);
    if (given < answered)
        return answers[given++];
    ask(kind, at == NULL ? 0 : offset, size, value & (size == 0 ? 0 : UINT64_MAX >> (64 - 8 * size)));
}

/* ---- What the ring calls ------------------------------------------------------------------------------------ */

static int rung;

int
ring_held_bell(const Doorbell *doorbell, int bell)
{
    (void)doorbell, (void)bell;
    hook(BELL, NULL, 0, 0);
    rung = 1;
    return 0;
}

static int slept;

Waited
wait_on_bell(Doorbell *doorbell, int bell, uint32_t seen, uint64_t deadline)
{
    (void)doorbell, (void)bell, (void)seen, (void)deadline;
    slept = 1;
    longjmp(stop, 2);
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
    return 0; /* no side has a deadline */
}

uint32_t fork_generation;

/* ---- The sides ------------------------------------------------------------------------------------------------ */

enum { ENDED = 100, SLEPT = 101, RUNG = 102 };

/* An end whose own index is `own`, and that moves a byte where `moves`, and waits for a byte, or for room, where not. What
 * it came to, or what it asks: then `step` has that. */
int __attribute__((visibility("default")))
run_end(int writes, int moves, const unsigned int *places, unsigned int own, unsigned int size, const uint64_t *known,
        unsigned int count, uint64_t *step)
{
    static Doorbell doorbell;
    static Ring ring;
    memset(&doorbell, 0, sizeof(doorbell));
    memset(&ring, 0, sizeof(ring));
    ring.own_at = places[0];
    ring.peer_at = places[1];
    ring.ask_at = places[2];
    ring.asked_at = places[3];
    ring.live_at = -1;
    ring.size = size;
    ring.own = own;
    ring.seen = 1;
    ring.writes = (char)writes;
    ring.doorbell = &doorbell;
    Opened opened = {.indices = {.at = page, .length = sizeof(page)}, .data = {.at = bytes, .length = sizeof(bytes)}};
    char byte = 0;
    answers = known;
    answered = count;
    given = 0;
    rung = slept = 0;
    int stopped = setjmp(stop);
    if (stopped == 1) {
        memcpy(step, asked, sizeof(asked));
        return (int)asked[0];
    }
    if (stopped == 2)
        return SLEPT;
    if (moves)
        move(&ring, &opened, &byte, 1);
    else
        await_bytes(&ring, &opened, 1, NEVER);
    return rung ? RUNG : ENDED;
}
