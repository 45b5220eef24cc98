/* The waits of a ring's ends for what the peer does: of those that `bind` made a vchan's, which tell the peer and are told
 * by it. No call loops on what the peer writes but these, and they have a deadline; what waits does so without the GIL.
 */

#include "ring.h"

/* Whether so many bytes are there. A lie counts too: `look` refuses it. */
int HOT
is_there(const Ring *self, const Opened *opened, uint32_t wanted)
{
    uint32_t peer = __atomic_load_n((uint32_t *)(opened->indices.at + self->peer_at), __ATOMIC_ACQUIRE);
    uint32_t own = __atomic_load_n(&self->own, __ATOMIC_RELAXED);
    uint32_t apart = self->writes ? own - peer : peer - own;
    return apart > self->size || (self->writes ? self->size - apart : apart) >= wanted;
}

int HOT
peer_is_gone(const Ring *self, const Opened *opened)
{
    return self->live_at >= 0 && __atomic_load_n((uint8_t *)opened->indices.at + self->live_at, __ATOMIC_ACQUIRE) == 0;
}

static int HOT
is_woken(const Ring *self)
{
    return __atomic_load_n(&self->doorbell->wakes, __ATOMIC_SEQ_CST) != __atomic_load_n(&self->wakes, __ATOMIC_RELAXED) ||
           __atomic_load_n(&self->doorbell->stopped, __ATOMIC_SEQ_CST) != 0;
}

/* The wake-up is seen; the next wait begins anew. */
static Outcome HOT
see_wake(Ring *self)
{
    uint32_t wakes = __atomic_load_n(&self->doorbell->wakes, __ATOMIC_SEQ_CST);
    __atomic_store_n(&self->wakes, wakes, __ATOMIC_RELAXED);
    return WOKEN;
}

/* What ends a call to which the peer never stops giving something to do, byte by byte; or PAUSED. */
Outcome COLD
look_up(Ring *self, uint64_t deadline)
{
    if (deadline != NEVER && monotonic_now() >= deadline)
        return LATE;
    return is_woken(self) ? see_wake(self) : PAUSED;
}

typedef struct {
    const Ring *ring;
    const Opened *opened;
    uint32_t wanted;
} Looker;

static int
need_not_sleep(const void *argument)
{
    const Looker *looker = argument;
    return is_there(looker->ring, looker->opened, looker->wanted) || is_woken(looker->ring) ||
           peer_is_gone(looker->ring, looker->opened);
}

static int COLD
look_before_sleeping(const Ring *self, const Opened *opened, uint32_t wanted, uint64_t deadline)
{
    Looker looker = {self, opened, wanted};
    look_for_long(self->doorbell, need_not_sleep, &looker, deadline);
    return is_there(self, opened, wanted);
}

/* Without the GIL: waits until the bytes are there, asking the peer to tell and looking again afterwards, so that no
 * event is lost; or until there may be a signal to look after. */
Outcome HOT
await_bytes(Ring *self, const Opened *opened, uint32_t wanted, uint64_t deadline)
{
    if (is_there(self, opened, wanted) || (polls(self->doorbell) && look_before_sleeping(self, opened, wanted, deadline)))
        return READY;
    uint8_t *ask = (uint8_t *)opened->indices.at + self->ask_at;
    uint32_t seen = __atomic_load_n(&self->doorbell->changes, __ATOMIC_SEQ_CST);
    __atomic_fetch_or(ask, self->writes ? NOTIFY_READ : NOTIFY_WRITE, __ATOMIC_SEQ_CST);
    __atomic_thread_fence(__ATOMIC_SEQ_CST);
    if (is_there(self, opened, wanted))
        return READY;
    /* What the peer wrote before it went is there by now. */
    if (peer_is_gone(self, opened))
        return is_there(self, opened, wanted) ? READY : PEER_GONE;
    if (is_woken(self))
        return see_wake(self);
    Waited waited = wait_on_bell(self->doorbell, opened->bell, seen, deadline);
    /* Whatever is there: a peer that gives a little and never tells would keep signals waiting. */
    if (waited == INTERRUPTED)
        return PAUSED;
    /* Before it is asked for again. */
    if (is_there(self, opened, wanted))
        return READY;
    if (waited == TIMED_OUT || (deadline != NEVER && monotonic_now() >= deadline)) /* whatever events come */
        return LATE;
    return waited == SILENCED ? SILENT : PAUSED; /* with an event a signal may have come */
}

/* What cannot be waited for: 0, or -1 and an error is set. */
int HOT
check_waiting(const Ring *self, size_t length, int whole)
{
    if (self->doorbell == NULL)
        PyErr_SetString(PyExc_ValueError, "this end of a ring has no doorbell to wait on: bind() it");
    else if (whole && length > self->size)
        PyErr_Format(PyExc_ValueError, "%zu bytes at once do not fit in a ring of %u bytes", length, self->size);
    else
        return 0;
    return -1;
}

/* Lets signal handlers run, with no buffer held, since one may close what is waited on. Then 0, or -1 and an error is
 * set, and the buffers are released. */
int
handle_signals(Ring *self, Opened *opened)
{
    release_buffers(self, opened);
    return PyErr_CheckSignals() < 0 ? -1 : take_buffers(self, opened);
}

/* 0, or -1 where an error is set. The buffers are released. */
int HOT
finish(Ring *self, Opened *opened, Outcome outcome)
{
    if (outcome == LIE)
        refuse(self);
    release_buffers(self, opened);
    return outcome == LIE ? -1 : 0;
}

/* await_bytes and all that it calls. */
static Outcome ONE_PAGE
await_together(Ring *self, const Opened *opened, uint32_t wanted, uint64_t deadline)
{
    return await_bytes(self, opened, wanted, deadline);
}

/* As await_bytes, with the GIL, and signals handled. -1 where an error is set and the buffers are released. */
int HOT
await_with_signals(Ring *self, Opened *opened, uint32_t wanted, uint64_t deadline, Outcome *outcome)
{
    for (;;) {
        Py_BEGIN_ALLOW_THREADS
        *outcome = await_together(self, opened, wanted, deadline);
        Py_END_ALLOW_THREADS
        if (*outcome != PAUSED)
            return 0;
        if (handle_signals(self, opened) < 0)
            return -1;
    }
}

/* How many bytes; or how many and how the wait ended. */
static PyObject *
progress_of(int outcome, size_t moved)
{
    if (outcome < 0)
        return NULL;
    return outcome == READY ? PyLong_FromSize_t(moved) : Py_BuildValue("ni", (Py_ssize_t)moved, outcome);
}

PyObject *
writer_send(PyObject *object, PyObject *const *args, Py_ssize_t nargs)
{
    uint64_t deadline;
    Py_ssize_t start;
    size_t moved;
    if (check_count("send", nargs, 4) < 0 || parse_offset(args[1], &start) < 0 || parse_timeout(args[3], &deadline) < 0)
        return NULL;
    int whole = PyObject_IsTrue(args[2]);
    if (whole < 0)
        return NULL;
    int outcome = pump_buffer((Ring *)object, args[0], start, SIZE_MAX, whole, deadline, &moved);
    return progress_of(outcome, moved);
}

PyObject *
reader_receive_into(PyObject *object, PyObject *const *args, Py_ssize_t nargs)
{
    uint64_t deadline;
    Py_ssize_t start;
    size_t moved;
    if (check_count("receive_into", nargs, 4) < 0 || parse_offset(args[1], &start) < 0 ||
        parse_timeout(args[3], &deadline) < 0)
        return NULL;
    int full = PyObject_IsTrue(args[2]);
    if (full < 0)
        return NULL;
    int outcome = pump_buffer((Ring *)object, args[0], start, full ? SIZE_MAX : 1, 0, deadline, &moved);
    return progress_of(outcome, moved);
}

/* The bytes that are there and were looked at, taken; what is short is copied first, since CPython has all objects of
 * one byte already. */
static PyObject * HOT
take_bytes(Ring *self, const Opened *opened, uint32_t count)
{
    char few[16];
    if (count > sizeof(few)) {
        PyObject *result = PyBytes_FromStringAndSize(NULL, (Py_ssize_t)count);
        if (result != NULL)
            move(self, opened, PyBytes_AsString(result), count);
        return result;
    }
    copy(self, opened, few, count);
    PyObject *result = PyBytes_FromStringAndSize(few, (Py_ssize_t)count);
    if (result != NULL && count > 0) {
        publish(self, opened, count);
        tell(self, opened);
    }
    return result;
}

PyObject * HOT
receive_bytes(Ring *self, Py_ssize_t most, int whole, uint64_t deadline, Outcome *outcome)
{
    *outcome = READY;
    if (most < 0)
        return PyErr_Format(PyExc_ValueError, "cannot read %zd bytes", most);
    Opened opened;
    if (check_waiting(self, (size_t)most, whole) < 0 || take_buffers(self, &opened) < 0)
        return NULL;
    uint32_t wanted = whole ? (uint32_t)most : most > 0;
    if (!is_there(self, &opened, wanted) && await_with_signals(self, &opened, wanted, deadline, outcome) < 0) {
        *outcome = READY; /* a signal handler raised */
        return NULL;
    }
    PyObject *result = NULL;
    if (*outcome == READY) {
        occupy(self);
        if (look_again(self, &opened, wanted) < 0)
            *outcome = LIE;
        else
            result = take_bytes(self, &opened, (size_t)most < self->seen ? (uint32_t)most : self->seen);
        vacate(self);
    }
    finish(self, &opened, *outcome);
    return result;
}

PyObject *
reader_receive(PyObject *object, PyObject *const *args, Py_ssize_t nargs)
{
    uint64_t deadline;
    Py_ssize_t most;
    Outcome outcome;
    if (check_count("receive", nargs, 3) < 0 || parse_offset(args[0], &most) < 0 || parse_timeout(args[2], &deadline) < 0)
        return NULL;
    int whole = PyObject_IsTrue(args[1]);
    if (whole < 0)
        return NULL;
    PyObject *result = receive_bytes((Ring *)object, most, whole, deadline, &outcome);
    return outcome == READY || outcome == LIE ? result : PyLong_FromLong(outcome);
}

PyObject *
ring_wait(PyObject *object, PyObject *const *args, Py_ssize_t nargs)
{
    Ring *self = (Ring *)object;
    uint32_t wanted;
    uint64_t deadline;
    if (check_count("wait", nargs, 2) < 0 || parse_value(args[0], 32, &wanted) < 0 || parse_timeout(args[1], &deadline) < 0)
        return NULL;
    Opened opened;
    if (check_waiting(self, wanted, 1) < 0 || take_buffers(self, &opened) < 0)
        return NULL;
    Outcome outcome;
    if (await_with_signals(self, &opened, wanted, deadline, &outcome) < 0)
        return NULL;
    if (outcome == READY) {
        occupy(self);
        if (look_again(self, &opened, wanted) < 0)
            outcome = LIE;
        vacate(self);
    }
    return finish(self, &opened, outcome) < 0 ? NULL : PyLong_FromLong(outcome);
}

PyObject *
ring_bind(PyObject *object, PyTypeObject *type, PyObject *const *args, Py_ssize_t nargs, PyObject *names)
{
    Ring *self = (Ring *)object;
    State *state = PyType_GetModuleState(type);
    Py_ssize_t live, ask, asked;
    if (names != NULL && PyTuple_Size(names) != 0) {
        PyErr_SetString(PyExc_TypeError, "bind() takes no keyword arguments");
        return NULL;
    }
    if (check_count("bind", nargs, 4) < 0 || parse_offset(args[1], &live) < 0 || parse_offset(args[2], &ask) < 0 ||
        parse_offset(args[3], &asked) < 0)
        return NULL;
    if (!PyObject_TypeCheck(args[0], state->doorbell))
        return PyErr_Format(PyExc_TypeError, "%R is no Doorbell", args[0]);
    Opened opened;
    if (ring_open(self, &opened) < 0)
        return NULL;
    Py_ssize_t length = opened.indices.length;
    int within = live < length && ask >= 0 && ask < length && asked >= 0 && asked < length;
    PyObject *before = NULL;
    if (within) {
        before = (PyObject *)self->doorbell;
        if (opened.bell >= 0) {
            drop_descriptor(self->doorbell->bell);
            opened.bell = -1;
        }
        self->doorbell = (Doorbell *)Py_NewRef(args[0]);
        self->wakes = __atomic_load_n(&self->doorbell->wakes, __ATOMIC_SEQ_CST);
        self->live_at = live;
        self->ask_at = ask;
        self->asked_at = asked;
    }
    ring_close(self, &opened);
    Py_XDECREF(before);
    if (within)
        Py_RETURN_NONE;
    PyErr_SetString(PyExc_IndexError, "a byte to look at lies outside the buffer");
    return NULL;
}
