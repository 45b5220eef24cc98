/* Bytes moved between a ring and a program's buffers, as many as there are, waiting in between: with one wait for what is
 * one call of Python's, however many handovers it takes.
 */

#include "ring.h"

/* Handovers after which signals, the time and whoever closes are looked after, however busy the stream is; one that may
 * have been polled for counts for more. */
enum { MANY = 1024, POLLED = 32 };

/* Without the GIL: moves up to `length` bytes, and waits until `least` of them were; or all at once. */
static Outcome ONE_PAGE
pump(Ring *self, const Opened *opened, char *memory, size_t length, size_t least, int whole, uint64_t deadline,
     size_t *moved, uint32_t *turns)
{
    for (uint32_t promised = 0;;) {
        if (*turns >= MANY) {
            *turns = 0;
            return look_up(self, deadline);
        }
        *turns += polls(self->doorbell) ? POLLED : 1;
        if (self->writes && peer_is_gone(self, opened))
            return PEER_GONE;
        size_t rest = length - *moved;
        occupy_without_gil(self);
        int looked = look_again(self, opened, promised);
        uint32_t count = rest < self->seen ? (uint32_t)rest : self->seen;
        if (looked < 0 || (whole && count < rest))
            count = 0;
        if (count > 0) {
            copy(self, opened, memory + *moved, count);
            publish(self, opened, count);
        }
        vacate(self);
        if (looked < 0)
            return LIE;
        if (count > 0)
            tell(self, opened);
        *moved += count;
        if (*moved >= least)
            return READY;
        promised = whole ? (uint32_t)length : 1;
        Outcome outcome = await_bytes(self, opened, promised, deadline);
        if (outcome != READY)
            return outcome;
    }
}

/* Moves what can be moved at once; whether that is enough. With the GIL. */
static int HOT
move_at_once(Ring *self, const Opened *opened, char *memory, size_t length, size_t least, int whole, size_t *moved,
             Outcome *outcome)
{
    if (self->writes && peer_is_gone(self, opened))
        return 0;
    occupy(self);
    uint32_t count = 0;
    if (look(self, opened) < 0)
        *outcome = LIE;
    else {
        count = length < self->seen ? (uint32_t)length : self->seen;
        if (count < least && (whole || count >= WITHOUT_GIL))
            count = 0;
        if (count > 0)
            move(self, opened, memory, count);
    }
    vacate(self);
    *moved = count;
    return *outcome == LIE || count >= least;
}

int HOT
pump_buffer(Ring *self, PyObject *buffer, Py_ssize_t start, size_t least, int whole, uint64_t deadline, size_t *moved)
{
    *moved = 0; /* this call's own: a signal handler may use the same end */
    Region memory;
    if (take_region(buffer, NULL, !self->writes, &memory) < 0)
        return -1;
    if (start < 0 || start > memory.length) {
        PyErr_Format(PyExc_ValueError, "byte %zd lies outside %zd bytes", start, memory.length);
        release_region(&memory);
        return -1;
    }
    size_t length = (size_t)(memory.length - start);
    int result = -1;
    Opened opened;
    if (check_waiting(self, length, whole) == 0 && take_buffers(self, &opened) == 0) {
        Outcome outcome = READY;
        if (least > length)
            least = length;
        int failed = 0;
        uint32_t turns = 0;
        if (!move_at_once(self, &opened, memory.at + start, length, least, whole, moved, &outcome)) {
            do {
                Py_BEGIN_ALLOW_THREADS
                outcome = pump(self, &opened, memory.at + start, length, least, whole, deadline, moved, &turns);
                Py_END_ALLOW_THREADS
                failed = outcome == PAUSED && handle_signals(self, &opened) < 0;
            } while (outcome == PAUSED && !failed);
        }
        if (!failed && finish(self, &opened, outcome) == 0)
            result = (int)outcome;
    }
    release_region(&memory);
    return result;
}

/* Moves what the call has not moved yet of one buffer after the other, without the GIL. */
static Outcome
pump_regions(Ring *self, const Opened *opened, const Region *regions, Py_ssize_t count, uint64_t deadline, Progress *progress,
             uint32_t *turns)
{
    while (progress->whole < count) {
        const Region *region = &regions[progress->whole];
        size_t length = (size_t)region->length;
        Outcome outcome = pump(self, opened, region->at, length, length, 0, deadline, &progress->part, turns);
        if (outcome != READY)
            return outcome;
        progress->whole++;
        progress->part = 0;
    }
    return READY;
}

int
pump_lines(Ring *self, PyObject *lines, Py_ssize_t first, Py_ssize_t count, uint64_t deadline, Progress *progress)
{
    Region regions[LINES_AT_ONCE];
    Opened opened;
    Outcome outcome = READY;
    Py_ssize_t taken = 0;
    uint32_t turns = 0;
    int result = -1, failed = 0;
    *progress = (Progress){0, 0, 0, 0};
    while (taken < count && take_region(PyTuple_GetItem(lines, first + taken), NULL, !self->writes, &regions[taken]) == 0)
        taken++;
    if (taken == count && check_waiting(self, 0, 0) == 0 && take_buffers(self, &opened) == 0) {
        do {
            Py_BEGIN_ALLOW_THREADS
            outcome = pump_regions(self, &opened, regions, count, deadline, progress, &turns);
            Py_END_ALLOW_THREADS
            failed = outcome == PAUSED && handle_signals(self, &opened) < 0;
        } while (outcome == PAUSED && !failed);
        if (!failed && finish(self, &opened, outcome) == 0)
            result = (int)outcome;
    }
    if (progress->whole < taken)
        progress->length = (size_t)regions[progress->whole].length;
    for (Py_ssize_t i = 0; i < taken; i++) {
        progress->bytes += i < progress->whole ? (size_t)regions[i].length : 0;
        release_region(&regions[i]);
    }
    return result;
}
