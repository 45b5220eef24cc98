/* What the files of a ring's ends share: ring.c, which never waits; ring_wait.c, which does; and ring_pump.c, which moves
 * as much as there is, and waits in between.
 */

#ifndef XENGRANT_RING_H
#define XENGRANT_RING_H

#include "native.h"

/* Xen public/io/libxenvchan.h: tell me when you have written, or read. */
#define NOTIFY_WRITE 1
#define NOTIFY_READ 2

/* Copies shorter than this, some 10 us, keep the GIL: giving it up can cost a wait for another thread's turn, 5 ms. */
#define WITHOUT_GIL 131072

/* A call's view of the shared memory. */
typedef struct {
    Region indices;
    Region data;
    int bell; /* the doorbell's file, held for as long; -1 without */
} Opened;

int take_buffers(Ring *self, Opened *opened); /* 0, or -1 and an error is set */
void release_buffers(Ring *self, Opened *opened);

/* Both, for a call that never waits. */
int ring_open(Ring *self, Opened *opened);
void ring_close(Ring *self, Opened *opened);

/* One call at a time uses an end. */
void occupy(Ring *self);
void occupy_without_gil(Ring *self);
void vacate(Ring *self);

/* Between occupy and vacate. look: 0, or -1 for a lie, which `refuse` raises. */
int look(Ring *self, const Opened *opened);
int look_again(Ring *self, const Opened *opened, uint32_t wanted);
void refuse(const Ring *self);
void copy(const Ring *self, const Opened *opened, char *memory, uint32_t count);
void publish(Ring *self, const Opened *opened, uint32_t count);
void tell(Ring *self, const Opened *opened);

/* copy, publish and tell; with the GIL. */
void move(Ring *self, const Opened *opened, char *memory, uint32_t count);

/* Waiting, in ring_wait.c. What waits does so without the GIL, but where it says otherwise. */
int is_there(const Ring *self, const Opened *opened, uint32_t wanted); /* or a lie, which `look` refuses */
int peer_is_gone(const Ring *self, const Opened *opened);
Outcome await_bytes(Ring *self, const Opened *opened, uint32_t wanted, uint64_t deadline); /* or PAUSED */
Outcome look_up(Ring *self, uint64_t deadline); /* LATE, WOKEN, or PAUSED: now and then, while there is no wait */
int check_waiting(const Ring *self, size_t length, int whole);
int handle_signals(Ring *self, Opened *opened);
int finish(Ring *self, Opened *opened, Outcome outcome);
int await_with_signals(Ring *self, Opened *opened, uint32_t wanted, uint64_t deadline, Outcome *outcome);

/* Methods of both ends that wait, in ring_wait.c. */
PyObject *ring_bind(PyObject *object, PyTypeObject *type, PyObject *const *args, Py_ssize_t nargs, PyObject *names);
PyObject *ring_wait(PyObject *object, PyObject *const *args, Py_ssize_t nargs);
PyObject *ring_turn(PyObject *object, PyTypeObject *type, PyObject *const *args, Py_ssize_t nargs, PyObject *names);
PyObject *reader_receive(PyObject *object, PyObject *const *args, Py_ssize_t nargs);
PyObject *reader_receive_into(PyObject *object, PyObject *const *args, Py_ssize_t nargs);
PyObject *writer_send(PyObject *object, PyObject *const *args, Py_ssize_t nargs);

#endif
