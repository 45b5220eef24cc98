/* Included before src/native's ring: each of its accesses to the shared page becomes a call of `hook`, which `c_ring.c`
 * has, so that the explorer decides when it is made, or, with LITMUS, stays what it is.
 *
 * WITHOUT_FENCE leaves out full fences; PLAIN_NOTIFY changes a notify byte by a load and a store.
 */

#ifndef XENGRANT_HOOKS_H
#define XENGRANT_HOOKS_H

#include <Python.h>

#include <stdint.h>

enum { LOAD = 1, STORE, FETCH_OR, FETCH_AND, FENCE, BELL };

uint64_t hook(int kind, const volatile void *at, unsigned int size, uint64_t value);

#ifndef LITMUS
#define __atomic_load_n(AT, ORDER) ((__typeof__(*(AT)))hook(LOAD, AT, sizeof(*(AT)), 0))
#define __atomic_store_n(AT, VALUE, ORDER) ((void)hook(STORE, AT, sizeof(*(AT)), VALUE))
#define __atomic_fetch_or(AT, BITS, ORDER) ((__typeof__(*(AT)))HOOK_OR(AT, sizeof(*(AT)), BITS))
#define __atomic_fetch_and(AT, BITS, ORDER) ((__typeof__(*(AT)))HOOK_AND(AT, sizeof(*(AT)), BITS))
#ifdef WITHOUT_FENCE
#define __atomic_thread_fence(ORDER) ((void)0)
#else
#define __atomic_thread_fence(ORDER) ((void)hook(FENCE, NULL, 0, 0))
#endif
#ifdef PLAIN_NOTIFY
#define HOOK_OR(AT, SIZE, BITS) ({ uint64_t old_ = hook(LOAD, AT, SIZE, 0); hook(STORE, AT, SIZE, old_ | (BITS)); old_; })
#define HOOK_AND(AT, SIZE, BITS) ({ uint64_t old_ = hook(LOAD, AT, SIZE, 0); hook(STORE, AT, SIZE, old_ & (BITS)); old_; })
#else
#define HOOK_OR(AT, SIZE, BITS) hook(FETCH_OR, AT, SIZE, BITS)
#define HOOK_AND(AT, SIZE, BITS) hook(FETCH_AND, AT, SIZE, BITS)
#endif
#elif defined(WITHOUT_FENCE)
#define __atomic_thread_fence(ORDER) __atomic_signal_fence(ORDER)
#endif

#endif
