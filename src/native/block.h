/* What the files of BlockServer share: block.c, the type; block_ring.c, the ring; block_requests.c, what is asked for
 * there; and block_pages.c, the pages that it is asked for.
 */

#ifndef XENGRANT_BLOCK_H
#define XENGRANT_BLOCK_H

#include "native.h"

#include <sys/uio.h>

enum { HEADER_SIZE = 64 }; /* Xen public/io/ring.h */

/* Xen public/io/blkif.h */
enum { SECTOR_SIZE = 512, SECTORS_PER_PAGE = 8, PAGE = 4096 };
enum { MOST_DIRECT = 11, SEGMENT_SIZE = 8, SEGMENTS_PER_PAGE = PAGE / SEGMENT_SIZE };
enum { LEAST_TAIL = 20, LONGEST_ENTRY = 112 };

enum {
    MOST_PIECES = 1024, /* that preadv takes (IOV_MAX) */
    MOST_JOINED = 64    /* requests that are done as one */
};

typedef struct {
    uint32_t ref;
    char *page; /* NULL where the place is free */
} Kept;

/* Kept pages side by side, and what keeps their memory. */
typedef struct Group Group;

struct Group {
    Group *next;
    Py_buffer pages;
};

/* Of requests, as the disk has them: bytes 0 to 11 of an answer. */
typedef struct {
    uint64_t id;
    uint8_t operation;
    uint8_t unused;
    int16_t status;
} __attribute__((packed)) Answer;

typedef struct {
    PyObject_HEAD
    PyObject *memory; /* of the ring; each call takes its buffer anew */
    Mapping *mapping; /* the same, where it is one */
    Doorbell *doorbell;
    Descriptor *file;
    uint32_t entry_size;
    uint32_t tail;
    uint32_t entries;
    uint32_t busy; /* take_word */
    /* Kept pages by ref, with open addressing: 0 or a power of two of places, at most half of them taken. */
    Kept *kept;
    uint32_t places;
    uint32_t taken;
    Group *groups;
    /* What was done; read by other threads meanwhile. */
    uint64_t reads;
    uint64_t writes;
    uint64_t flushes;
    uint64_t errors;
    uint64_t read_bytes;
    uint64_t written_bytes;
    uint32_t depth;
    /* Of the requests that are done as one. */
    uint32_t joined;
    int pieces;
    uint8_t action;
    uint64_t start; /* bytes of the disk */
    uint64_t end;
    Answer answers[MOST_JOINED];
    struct iovec memories[MOST_PIECES];
    unsigned char segments[MOST_PIECES * SEGMENT_SIZE];
} BlockServer;

typedef struct {
    uint64_t sectors; /* of 512 bytes */
    uint32_t unit;    /* of the disk's, in those */
    uint32_t most;    /* segments of an indirect request */
    int writable;
} Limits;

/* Where we are on the ring: what is answered, which is all that was taken; the front end's index when it was looked at
 * last; and ours when it was told last. */
typedef struct {
    char *ring;
    uint32_t prod;
    uint32_t seen;
    uint32_t told;
} Place;

/* ---- Kept pages ---------------------------------------------------------------------------------------- */

/* NULL where the ref's page is not kept. */
char *find_page(const BlockServer *self, uint32_t ref);

/* Has the refs, a tuple, mean the group's pages: 0, or -1, and then an error is set and nothing is changed. */
int keep_group(BlockServer *self, PyObject *refs, const Group *group);

void forget_all(BlockServer *self);

/* ---- Requests ------------------------------------------------------------------------------------------ */

/* Joins the request in this slot to those that are to be done. 0, and then nothing is changed but memory that means
 * nothing, where it is not usual, or none of theirs. */
int join_request(BlockServer *self, const Limits *limits, const char *slot);

/* Does what was joined: whether it is to be answered. Whoever tried a read or write again would be told what is wrong;
 * Linux tells of what could not be written in one flush only. */
int do_joined(BlockServer *self, int file);

void count_joined(BlockServer *self);

/* ---- The ring ------------------------------------------------------------------------------------------ */

/* Until there is something for the caller: 1; or 0 where no event can come any more. Without the GIL. */
int serve_ring(BlockServer *self, const Limits *limits, Place *place, uint32_t wakes);

#endif
