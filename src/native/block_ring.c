/* The ring of a BlockServer: the front end's indices, slots and answers, and the loop that waits for more and serves
 * what there is (Xen public/io/ring.h). Answers are in the ring's order, each noted before it overwrites a slot
 * (xengrant.pv.block.ring).
 */

#include "block.h"

#include <string.h>

enum { REQ_PROD = 0, REQ_EVENT = 4, RSP_PROD = 8, RSP_EVENT = 12 };

/* xengrant.abi.blkif_note */
enum { NOTE_INDEX = 48, NOTE_RESPONSE = 52 };

enum { TOLD_AFTER = 1024 * 1024 }; /* bytes after which a front end that waits is told, though there is more to do */

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
               join_request(self, limits, slot(self, place, place->prod + self->joined)))
            ;
        usual = self->joined > 0 && do_joined(self, file);
        if (!usual)
            break;
        count_joined(self);
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

typedef struct {
    const BlockServer *server;
    const Place *place;
    uint32_t wakes;
} Looker;

/* An index that cannot be is something to do, too. */
static int
need_not_sleep(const void *argument)
{
    const Looker *looker = argument;
    return __atomic_load_n(word(looker->place, REQ_PROD), __ATOMIC_ACQUIRE) != looker->place->prod ||
           is_woken(looker->server, looker->wakes);
}

/* Whether there is something to do, before the front end is asked to tell. */
static int COLD
look_before_sleeping(const BlockServer *self, const Place *place, uint32_t wakes)
{
    Looker looker = {self, place, wakes};
    return look_for_long(self->doorbell, need_not_sleep, &looker, NEVER);
}

int ONE_PAGE
serve_ring(BlockServer *self, const Limits *limits, Place *place, uint32_t wakes)
{
    for (;;) {
        uint32_t changes = __atomic_load_n(&self->doorbell->changes, __ATOMIC_SEQ_CST);
        if (is_woken(self, wakes) || !look_at_front(self, place))
            return 1;
        if (place->prod == place->seen && polls(self->doorbell) && look_before_sleeping(self, place, wakes))
            continue;
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
