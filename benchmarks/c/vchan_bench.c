/* The two ends of a vchan whose speed is measured, over libxenvchan. benchmarks/vchan_bench.py is the same in Python, and
 * either end may be the other's.
 *
 *   vchan-bench serve DOMID PATH READ WRITE     for the peer DOMID, at PATH in xenstore, with rings of that many bytes
 *   vchan-bench drive DOMID PATH                connects, and takes turns
 *
 * A turn is a line "stream|messages|ping|large|lines SIZE COUNT" on the driver's standard input. The server is told of it
 * over the vchan itself. `stream`: the server writes COUNT times SIZE bytes, the driver reads each to its end. `messages`:
 * the same with packets, sent and received whole. `large`: with messages that may be larger than the ring. `lines`: as
 * `stream`; in Python many in each call, which libxenvchan has no call for. `ping`: the driver sends SIZE bytes, the
 * server sends them back, COUNT times. The driver answers with one line: the turn's nanoseconds, and for itself, then for
 * the server: nanoseconds of processor time, voluntary context switches, and events that the kernel received for it. The
 * server ends when the driver closes.
 */

#include <inttypes.h>
#include <string.h>
#include <sys/resource.h>
#include <unistd.h>

#include <libxenvchan.h>

#include "turns.h"

enum { STREAM, MESSAGES, PING, LARGE, LINES, KINDS };

static const char *const kinds[KINDS] = {"stream", "messages", "ping", "large", "lines"};

enum { MOST = 1 << 20 };

/* All little-endian, as the machines that the lab emulates. */
struct request {
    uint32_t kind, size;
    uint64_t count;
};

struct usage {
    uint64_t cpu, switches, events;
};

static char data[MOST];

static void
closed(void)
{
    fprintf(stderr, "vchan-bench: the peer closed in a turn\n");
    exit(1);
}

static void
write_all(struct libxenvchan *vchan, const void *from, size_t size)
{
    for (size_t done = 0; done < size;) {
        int count = libxenvchan_write(vchan, (const char *)from + done, size - done);
        if (count < 0)
            closed();
        done += (size_t)count;
    }
}

static void
read_all(struct libxenvchan *vchan, void *to, size_t size)
{
    for (size_t done = 0; done < size;) {
        int count = libxenvchan_read(vchan, (char *)to + done, size - done);
        if (count < 0)
            closed();
        done += (size_t)count;
    }
}

static uint64_t
processor_time(void)
{
    struct timespec cpu;

    if (clock_gettime(CLOCK_PROCESS_CPUTIME_ID, &cpu) < 0)
        fail("clock_gettime");
    return (uint64_t)cpu.tv_sec * 1000000000 + (uint64_t)cpu.tv_nsec;
}

static uint64_t
events(void)
{
    char line[1024], wanted[64], name[32] = "";
    uint64_t found = 0;
    FILE *file = fopen("/proc/self/comm", "r");

    if (file == NULL || fgets(name, sizeof name, file) == NULL)
        fail("/proc/self/comm");
    fclose(file);
    snprintf(wanted, sizeof wanted, "evtchn:%s", name); /* with the end of its line */
    file = fopen("/proc/interrupts", "r");
    if (file == NULL)
        fail("/proc/interrupts");
    while (fgets(line, sizeof line, file) != NULL) {
        char *colon = strchr(line, ':');
        if (colon != NULL && strstr(line, wanted) != NULL)
            found += strtoull(colon + 1, NULL, 10);
    }
    fclose(file);
    return found;
}

static uint64_t
switches(void)
{
    struct rusage rusage;

    if (getrusage(RUSAGE_SELF, &rusage) < 0)
        fail("getrusage");
    return (uint64_t)rusage.ru_nvcsw;
}

/* What this process has used so far. The time is taken last, and by `since` first: what it costs to ask is no turn's. */
static struct usage
usage(void)
{
    struct usage found = {.events = events(), .switches = switches()};

    found.cpu = processor_time();
    return found;
}

static struct usage
since(struct usage before)
{
    struct usage used = {.cpu = processor_time() - before.cpu};

    used.switches = switches() - before.switches;
    used.events = events() - before.events;
    return used;
}

/* Reading /proc/interrupts is no part of what is measured: neither end begins or goes on before the other has done it. */
static void
serve_turn(struct libxenvchan *vchan, struct request request)
{
    struct usage before = usage(), used;
    char done;

    write_all(vchan, "!", 1);
    for (uint64_t i = 0; i < request.count; i++) {
        switch (request.kind) {
        case STREAM:
        case LARGE:
        case LINES:
            write_all(vchan, data, request.size);
            break;
        case MESSAGES:
            if (libxenvchan_send(vchan, data, request.size) != (int)request.size)
                closed();
            break;
        case PING:
            read_all(vchan, data, request.size);
            write_all(vchan, data, request.size);
            break;
        }
    }
    read_all(vchan, &done, 1);
    used = since(before);
    write_all(vchan, &used, sizeof used);
}

static void
serve(struct libxenvchan *vchan)
{
    for (;;) {
        struct request request;
        char *to = (char *)&request;

        for (size_t done = 0; done < sizeof request;) {
            int count = libxenvchan_read(vchan, to + done, sizeof request - done);
            if (count < 0)
                return;
            done += (size_t)count;
        }
        if (request.kind >= KINDS || request.size > MOST) {
            fprintf(stderr, "vchan-bench: a request of kind %u, size %u\n", request.kind, request.size);
            exit(1);
        }
        serve_turn(vchan, request);
    }
}

static void
drive_turn(struct libxenvchan *vchan, struct request request)
{
    struct usage before, mine, peers;
    int64_t started, taken;
    char ready;

    write_all(vchan, &request, sizeof request);
    read_all(vchan, &ready, 1);
    before = usage();
    started = nanoseconds();
    for (uint64_t i = 0; i < request.count; i++) {
        if (request.kind == PING)
            write_all(vchan, data, request.size);
        if (request.kind != MESSAGES)
            read_all(vchan, data, request.size);
        else if (libxenvchan_recv(vchan, data, request.size) != (int)request.size)
            closed();
    }
    taken = nanoseconds() - started;
    mine = since(before);
    write_all(vchan, "!", 1);
    read_all(vchan, &peers, sizeof peers);
    printf("%" PRId64 " %" PRIu64 " %" PRIu64 " %" PRIu64 " %" PRIu64 " %" PRIu64 " %" PRIu64 "\n", taken, mine.cpu,
           mine.switches, mine.events, peers.cpu, peers.switches, peers.events);
    fflush(stdout);
}

static void
drive(struct libxenvchan *vchan)
{
    char kind[16];
    struct request request;

    while (scanf("%15s %" SCNu32 " %" SCNu64, kind, &request.size, &request.count) == 3) {
        for (request.kind = 0; request.kind < KINDS && strcmp(kind, kinds[request.kind]) != 0;)
            request.kind++;
        if (request.kind == KINDS || request.size < 1 || request.size > MOST) {
            fprintf(stderr, "vchan-bench: a turn is stream|messages|ping|large|lines SIZE COUNT, SIZE at most %d\n", MOST);
            exit(2);
        }
        drive_turn(vchan, request);
    }
}

int
main(int argc, char **argv)
{
    struct libxenvchan *vchan;
    int serving = argc == 6 && strcmp(argv[1], "serve") == 0;

    if (!serving && (argc != 4 || strcmp(argv[1], "drive") != 0)) {
        fprintf(stderr, "usage: vchan-bench serve DOMID PATH READ WRITE | drive DOMID PATH\n");
        return 2;
    }
    memset(data, 'x', sizeof data); /* pages of zeros are one page, which would be faster */
    if (serving) {
        vchan = libxenvchan_server_init(NULL, atoi(argv[2]), argv[3], strtoul(argv[4], NULL, 10),
                                        strtoul(argv[5], NULL, 10));
        if (vchan == NULL)
            fail("libxenvchan_server_init");
        printf("listening\n");
        fflush(stdout);
    } else {
        vchan = libxenvchan_client_init(NULL, atoi(argv[2]), argv[3]);
        if (vchan == NULL)
            fail("libxenvchan_client_init");
    }
    vchan->blocking = 1; /* what malloc left there otherwise */
    vchan->server_persist = 0;
    if (serving)
        serve(vchan);
    else
        drive(vchan);
    libxenvchan_close(vchan);
    return 0;
}
