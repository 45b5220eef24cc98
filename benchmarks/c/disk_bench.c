/* The speed of block devices, seen from their user: O_DIRECT requests over Linux's own asynchronous I/O, so that nothing
 * of a library's or a page cache's is measured.
 *
 *   disk-bench KIND SIZE COUNT DEPTH TURNS DEVICE...
 *
 * KIND is read or write (one block after the other, from the device's begin, which follows its end) or randread or
 * randwrite (blocks anywhere). A turn is COUNT blocks of SIZE bytes, with DEPTH of them in flight. The devices take turns,
 * in the order given, TURNS times; each turn prints a line "DEVICE NANOSECONDS" (CLOCK_MONOTONIC). Random places are the
 * same for each device. Before, each device takes a turn that is not printed. Writes destroy what the devices have.
 */

#define _GNU_SOURCE

#include <errno.h>
#include <fcntl.h>
#include <linux/aio_abi.h>
#include <linux/fs.h>
#include <string.h>
#include <sys/ioctl.h>
#include <sys/syscall.h>
#include <unistd.h>

#include "turns.h"

enum { MOST_DEVICES = 8, MOST_DEPTH = 256 };

struct work {
    int write, random;
    uint32_t size, count, depth;
};

static aio_context_t context;
static char *buffers;

/* xorshift64: any numbers do, if they are the same for each device. */
static uint64_t
next_random(uint64_t *state)
{
    *state ^= *state << 13;
    *state ^= *state >> 7;
    *state ^= *state << 17;
    return *state;
}

static int64_t
turn(const struct work *work, int fd, uint64_t blocks, uint64_t seed)
{
    static struct iocb requests[MOST_DEPTH];
    static struct io_event events[MOST_DEPTH];
    struct iocb *ready[MOST_DEPTH];
    uint32_t issued = 0, done = 0;
    long free = work->depth;
    int64_t started = nanoseconds();

    for (uint32_t i = 0; i < work->depth; i++)
        ready[i] = &requests[i];
    while (done < work->count) {
        long now = 0;
        for (; now < free && issued < work->count; now++, issued++) {
            uint64_t block = work->random ? next_random(&seed) % blocks : issued % blocks;
            struct iocb *request = ready[now];
            memset(request, 0, sizeof *request);
            request->aio_fildes = (uint32_t)fd;
            request->aio_lio_opcode = work->write ? IOCB_CMD_PWRITE : IOCB_CMD_PREAD;
            request->aio_buf = (uint64_t)(uintptr_t)(buffers + (size_t)(request - requests) * work->size);
            request->aio_nbytes = work->size;
            request->aio_offset = (int64_t)(block * work->size);
        }
        for (long submitted = 0; submitted < now;) {
            long more = syscall(SYS_io_submit, context, now - submitted, ready + submitted);
            if (more < 0)
                fail("io_submit");
            submitted += more;
        }
        memmove(ready, ready + now, (size_t)(free - now) * sizeof *ready);
        free -= now;
        long came = syscall(SYS_io_getevents, context, 1L, (long)work->depth, events, NULL);
        if (came < 0)
            fail("io_getevents");
        for (long i = 0; i < came; i++) {
            if (events[i].res != (int64_t)work->size) {
                errno = events[i].res < 0 ? (int)-events[i].res : EIO;
                fail("disk-bench: a request failed");
            }
            ready[free++] = (struct iocb *)(uintptr_t)events[i].obj;
        }
        done += (uint32_t)came;
    }
    return nanoseconds() - started;
}

int
main(int argc, char **argv)
{
    int devices = argc - 6, fds[MOST_DEVICES];
    uint64_t blocks[MOST_DEVICES];
    if (devices < 1 || devices > MOST_DEVICES) {
        fprintf(stderr, "usage: disk-bench read|write|randread|randwrite SIZE COUNT DEPTH TURNS DEVICE...\n");
        return 2;
    }
    const char *kind = argv[1];
    struct work work = {
        .write = strstr(kind, "write") != NULL,
        .random = strncmp(kind, "rand", 4) == 0,
        .size = (uint32_t)atol(argv[2]),
        .count = (uint32_t)atol(argv[3]),
        .depth = (uint32_t)atol(argv[4]),
    };
    if (work.size == 0 || work.size % 4096 || work.depth < 1 || work.depth > MOST_DEPTH) {
        fprintf(stderr, "SIZE: a multiple of 4096; DEPTH: 1 to %d\n", MOST_DEPTH);
        return 2;
    }
    if (posix_memalign((void **)&buffers, 4096, (size_t)work.size * work.depth))
        fail("memory");
    memset(buffers, 0x5A, (size_t)work.size * work.depth);
    if (syscall(SYS_io_setup, work.depth, &context) < 0)
        fail("io_setup");
    for (int i = 0; i < devices; i++) {
        uint64_t size;
        fds[i] = open(argv[6 + i], O_DIRECT | (work.write ? O_RDWR : O_RDONLY));
        if (fds[i] < 0 || ioctl(fds[i], BLKGETSIZE64, &size) < 0)
            fail(argv[6 + i]);
        blocks[i] = size / work.size;
        if (blocks[i] == 0) {
            fprintf(stderr, "%s is smaller than SIZE\n", argv[6 + i]);
            return 2;
        }
    }
    for (long number = 0; number <= atol(argv[5]); number++)
        for (int i = 0; i < devices; i++) {
            int64_t taken = turn(&work, fds[i], blocks[i], UINT64_C(0x9E3779B97F4A7C15) + (uint64_t)number);
            if (number > 0)
                printf("%s %lld\n", argv[6 + i], (long long)taken);
        }
    return 0;
}
