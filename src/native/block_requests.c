/* Requests of a block device: each is copied once and then checked, and those that go on where the one before ended are
 * done as one (Xen public/io/blkif.h). An odd one is nobody's here: it is the caller's of BlockServer.serve.
 */

#include "block.h"

#include <string.h>
#include <sys/uio.h>
#include <unistd.h>

enum { READ = 0, WRITE = 1, FLUSH_DISKCACHE = 3, INDIRECT = 6 };
enum { RSP_OKAY = 0, RSP_ERROR = -1 };

static inline uint16_t
u16(const unsigned char *at)
{
    uint16_t value;
    memcpy(&value, at, sizeof value);
    return value;
}

static inline uint32_t
u32(const unsigned char *at)
{
    uint32_t value;
    memcpy(&value, at, sizeof value);
    return value;
}

static inline uint64_t
u64(const unsigned char *at)
{
    uint64_t value;
    memcpy(&value, at, sizeof value);
    return value;
}

/* Copies what the front end may be changing; what is read afterwards is the copy. */
static inline void
copy_once(unsigned char *copy, const char *shared, size_t size)
{
    memcpy(copy, shared, size);
    __asm__ volatile("" : : "r"(copy) : "memory");
}

static int HOT
copy_tables(BlockServer *self, const unsigned char *refs, uint32_t count)
{
    for (uint32_t done = 0; done < count; done += SEGMENTS_PER_PAGE, refs += sizeof(uint32_t)) {
        uint32_t here = count - done < SEGMENTS_PER_PAGE ? count - done : SEGMENTS_PER_PAGE;
        char *table = find_page(self, u32(refs));
        if (table == NULL)
            return 0;
        copy_once(self->segments + done * SEGMENT_SIZE, table, here * SEGMENT_SIZE);
    }
    return 1;
}

/* Adds the memory of the segments to what is there: how many sectors they are, or 0 where something is unusual. */
static uint64_t HOT
add_segments(BlockServer *self, const unsigned char *segments, uint32_t count, uint32_t unit, int *pieces)
{
    uint64_t sectors = 0;
    int piece = *pieces;
    for (const unsigned char *segment = segments; count > 0; count--, segment += SEGMENT_SIZE) {
        uint32_t first = segment[4], last = segment[5];
        char *page = find_page(self, u32(segment));
        if (page == NULL || first > last || last >= SECTORS_PER_PAGE || (first | (last + 1)) % unit != 0)
            return 0;
        char *base = page + first * SECTOR_SIZE;
        size_t length = (last + 1 - first) * SECTOR_SIZE;
        struct iovec *next = &self->memories[piece];
        if (piece > 0 && (char *)next[-1].iov_base + next[-1].iov_len == base)
            next[-1].iov_len += length;
        else if (piece == MOST_PIECES)
            return 0;
        else {
            *next = (struct iovec){base, length};
            piece++;
        }
        sectors += last + 1 - first;
    }
    *pieces = piece;
    return sectors;
}

int HOT
join_request(BlockServer *self, const Limits *limits, const char *slot)
{
    unsigned char entry[LONGEST_ENTRY];
    if (self->joined == MOST_JOINED)
        return 0;
    copy_once(entry, slot, LONGEST_ENTRY); /* of a shorter one, some of the next: it means nothing */
    const unsigned char *tail = entry + self->tail, *segments = tail;
    uint64_t sector = u64(tail - 8);
    uint8_t operation = entry[0];
    uint32_t count = entry[1];
    if (operation == INDIRECT) {
        operation = entry[1];
        count = u16(entry + 2);
        if (operation > WRITE || count == 0 || count > limits->most || !copy_tables(self, tail + 4, count))
            return 0;
        segments = self->segments;
    } else if (operation == FLUSH_DISKCACHE ? count > 0 || self->joined > 0
                                            : operation > WRITE || count == 0 || count > MOST_DIRECT)
        return 0;
    if (operation == FLUSH_DISKCACHE)
        self->start = self->end = 0;
    else {
        if (operation == WRITE && !limits->writable)
            return 0;
        if (self->joined > 0 && (operation != self->action || sector != self->end / SECTOR_SIZE))
            return 0;
        int pieces = self->joined > 0 ? self->pieces : 0;
        struct iovec last = pieces > 0 ? self->memories[pieces - 1] : (struct iovec){0};
        uint64_t sectors = add_segments(self, segments, count, limits->unit, &pieces);
        if (sectors == 0 || sector > limits->sectors || sectors > limits->sectors - sector || sector % limits->unit != 0) {
            if (last.iov_len > 0)
                self->memories[self->pieces - 1] = last;
            return 0;
        }
        if (self->joined == 0)
            self->start = sector * SECTOR_SIZE;
        self->end = (sector + sectors) * SECTOR_SIZE;
        self->pieces = pieces;
    }
    self->action = operation;
    self->answers[self->joined++] = (Answer){.id = u64(tail - 16), .operation = operation};
    return 1;
}

int HOT
do_joined(BlockServer *self, int file)
{
    if (self->action == FLUSH_DISKCACHE) {
        self->answers[0].status = fdatasync(file) == 0 ? RSP_OKAY : RSP_ERROR;
        return 1;
    }
    ssize_t moved = self->action == READ ? preadv(file, self->memories, self->pieces, (off_t)self->start)
                                         : pwritev(file, self->memories, self->pieces, (off_t)self->start);
    return moved >= 0 && (uint64_t)moved == self->end - self->start;
}

void HOT
count_joined(BlockServer *self)
{
    uint64_t *requests = self->answers[0].status != RSP_OKAY ? &self->errors
                         : self->action == READ              ? &self->reads
                         : self->action == WRITE             ? &self->writes
                                                             : &self->flushes;
    uint64_t *bytes = self->action == READ ? &self->read_bytes : &self->written_bytes;
    __atomic_store_n(requests, *requests + self->joined, __ATOMIC_RELAXED);
    __atomic_store_n(bytes, *bytes + self->end - self->start, __ATOMIC_RELAXED);
    __atomic_store_n(&self->depth, self->depth - self->joined, __ATOMIC_RELAXED);
}
