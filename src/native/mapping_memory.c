/* Where the memory of Mappings comes from and goes: mmap, munmap, the place of small ones, and what a fork does to it. */

#include "mapping.h"

#include <errno.h>
#include <pthread.h>
#include <sys/mman.h>

#ifndef MAP_FIXED_NOREPLACE
#define MAP_FIXED_NOREPLACE 0x100000
#endif

/* Every Mapping whose memory is this process's, for a fork. The lock is held from mmap until the mapping is in the
 * list, so that no fork copies pages in between, and from munmap until it is out of it, since a fork keeps what it
 * finds at a listed address from the child. Nobody waits for the GIL while holding it. */
static Mapping *mapped;
static pthread_mutex_t mapped_lock = PTHREAD_MUTEX_INITIALIZER;

/* ---- The place of small mappings ------------------------------------------------------------------------ */

/* Where small mappings go: a piece of address space of 2 MiB, what one page table covers, whose first page is reserved
 * for ever. Linux frees a page table with the last area that it serves, so where it chooses the place itself, a mapping
 * that comes to lie alone in its 2 MiB, as a quarter of those of 128 pages partly do, has one made and freed each time.
 * In a PV domain Xen has to be asked for both: a cycle of 128 pages took 1300 us instead of 1100 (map), 1700 instead of
 * 1450 (share), for the life of the process. The place is only asked for: where something lies there, Linux chooses. */
#define SHELTER ((size_t)2 << 20)
#define SHELTER_BELOW ((size_t)1 << 30) /* lower than what Linux fills first, so that nothing else settles there */

static char *shelter; /* its second page; NULL until the first mapping, or where there is none */
static char *next_place;

static void
reserve_shelter(void)
{
    static int tried;
    if (tried)
        return;
    tried = 1;
    char *low = mmap(NULL, SHELTER_BELOW, PROT_NONE, MAP_PRIVATE | MAP_ANONYMOUS | MAP_NORESERVE, -1, 0);
    if (low == MAP_FAILED)
        return;
    char *first = (char *)(((uintptr_t)low + SHELTER - 1) & ~(SHELTER - 1));
    if (first > low)
        munmap(low, (size_t)(first - low));
    munmap(first + page_size, (size_t)(low + SHELTER_BELOW - first - page_size));
    next_place = shelter = first + page_size;
}

/* An address to ask for, with the lock held; NULL for a mapping that has page tables of its own anyway. */
static char *
place(size_t length)
{
    reserve_shelter();
    if (shelter == NULL || length > SHELTER - (size_t)page_size)
        return NULL;
    if (length > (size_t)(shelter - page_size + SHELTER - next_place))
        next_place = shelter;
    char *address = next_place;
    next_place += length;
    return address;
}

/* ---- Mapped and unmapped -------------------------------------------------------------------------------- */

static void
link_mapped(Mapping *self)
{
    self->previous = NULL;
    self->next = mapped;
    if (mapped != NULL)
        mapped->previous = self;
    mapped = self;
}

static void
unlink_mapped(Mapping *self)
{
    if (self->next != NULL)
        self->next->previous = self->previous;
    if (self->previous != NULL)
        self->previous->next = self->next;
    else if (mapped == self)
        mapped = self->next;
    self->next = self->previous = NULL;
    if (self->address + self->length == next_place)
        next_place = self->address;
}

/* Runs without the GIL, with the lock. Returns 0 or an errno, and then nothing stays mapped. */
static int
map_parts(Mapping *self, const Part *parts, Py_ssize_t count)
{
    size_t total = (size_t)self->length;
    int protection = self->writable ? PROT_READ | PROT_WRITE : PROT_READ;
    char *address;
    int error;

    if (count == 1) {
        address = mmap(place(total), total, protection, MAP_SHARED, parts[0].fd, parts[0].offset);
        if (address == MAP_FAILED)
            return errno;
    } else {
        address = mmap(NULL, total, PROT_NONE, MAP_PRIVATE | MAP_ANONYMOUS | MAP_NORESERVE, -1, 0);
        if (address == MAP_FAILED)
            return errno;
        char *at = address;
        for (Py_ssize_t i = 0; i < count; at += parts[i].length, i++)
            if (mmap(at, parts[i].length, protection, MAP_SHARED | MAP_FIXED, parts[i].fd, parts[i].offset) ==
                MAP_FAILED)
                goto undo;
    }
    self->address = address;
    return 0;
undo:
    error = errno;
    munmap(address, total);
    return error;
}

/* The same, seen by forks. */
int
map_and_link(Mapping *self, const Part *parts, Py_ssize_t count)
{
    pthread_mutex_lock(&mapped_lock);
    int error = map_parts(self, parts, count);
    if (error == 0)
        link_mapped(self);
    pthread_mutex_unlock(&mapped_lock);
    return error;
}

int
unmap_memory(Mapping *self)
{
    int error = 0;
    pthread_mutex_lock(&mapped_lock);
    if (munmap(self->address, (size_t)self->length) < 0)
        error = errno;
    else
        unlink_mapped(self);
    pthread_mutex_unlock(&mapped_lock);
    return error;
}

void
abandon_memory(Mapping *self)
{
    pthread_mutex_lock(&mapped_lock);
    munmap(self->address, (size_t)self->length);
    unlink_mapped(self);
    pthread_mutex_unlock(&mapped_lock);
}

/* ---- Kept from forked children --------------------------------------------------------------------------- */

/* The first fork that a mapping sees asks for MADV_DONTFORK: most see none, and are spared the system call. */
void
mappings_before_fork(void)
{
    pthread_mutex_lock(&mapped_lock);
    for (Mapping *self = mapped; self != NULL; self = self->next)
        if (!self->kept_from_children)
            self->kept_from_children = madvise(self->address, (size_t)self->length, MADV_DONTFORK) == 0;
}

/* MADV_DONTFORK left a hole where each mapping was. Filled with what faults, before something else of the
 * child comes to lie there and a view from before the fork reads and writes it. Where madvise failed, the
 * pages came along and are replaced. */
void
mappings_after_fork(int in_child)
{
    while (in_child && mapped != NULL) {
        Mapping *self = mapped;
        mmap(self->address, (size_t)self->length, PROT_NONE,
             MAP_PRIVATE | MAP_ANONYMOUS | MAP_NORESERVE |
                 (self->kept_from_children ? MAP_FIXED_NOREPLACE : MAP_FIXED), -1, 0);
        __atomic_fetch_or(&self->state, CLOSED | FORKED, __ATOMIC_ACQ_REL);
        unlink_mapped(self);
    }
    pthread_mutex_unlock(&mapped_lock);
}
