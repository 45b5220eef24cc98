/* One end of a vchan, over Xen's own libxenvchan: what Python's vchan, or another one of these, is tested against.
 *
 *   vchan_peer server|client DOMID PATH READ WRITE transfer SEND RECEIVE SEED server|client
 *   vchan_peer server|client DOMID PATH READ WRITE echo
 *   vchan_peer server|client DOMID PATH READ WRITE pingpong COUNT SIZE
 *
 * DOMID is the peer's, PATH the server's directory in xenstore, READ and WRITE the sizes of the rings that a server
 * asks for (a client takes what it finds, and ignores them).
 *
 * transfer  sends and receives at once and checks what comes; the last word says who closes first. The other waits for
 *           that, and fails if more came than was agreed. Byte i of direction d (0 from client to server, 1 back) is
 *           (i * 131 + (i >> 8) * 7 + SEED + d) & 0xff.
 * echo      writes back what it reads, until the peer closes.
 * pingpong  sends SIZE bytes, which a ring has to hold, to a peer that echoes and waits for them, COUNT times; closes.
 *
 * A server says "listening" once it can be found; a client looks for it and says "connected". At the end comes one line
 * of figures on stdout and exit status 0; what went wrong is said on stderr, and the status is 1, or 3 where it took
 * longer in all than VCHAN_PEER_TIMEOUT allows (seconds, 60 unless told).
 *
 * cc -O2 -Wall -o vchan_peer vchan_peer.c -lxenvchan
 */
#include <errno.h>
#include <inttypes.h>
#include <signal.h>
#include <stdarg.h>
#include <stdint.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <time.h>
#include <unistd.h>

#include <libxenvchan.h>

enum { CHUNK = 1 << 20 };

static const char *role;

__attribute__((noreturn, format(printf, 1, 2))) static void die(const char *format, ...)
{
    va_list arguments;

    fprintf(stderr, "vchan_peer%s%s: ", role ? " " : "", role ? role : "");
    va_start(arguments, format);
    vfprintf(stderr, format, arguments);
    va_end(arguments);
    fputc('\n', stderr);
    exit(1);
}

static void on_alarm(int number)
{
    static const char text[] = "vchan_peer: the time is over (VCHAN_PEER_TIMEOUT)\n";

    (void)number;
    if (write(STDERR_FILENO, text, sizeof text - 1) < 0)
        _exit(4);
    _exit(3);
}

static uint64_t parse(const char *what, const char *text, uint64_t most)
{
    char *end;

    errno = 0;
    uint64_t value = strtoull(text, &end, 0);
    if (errno || end == text || *end || *text == '-' || value > most)
        die("%s is %s: a number up to %" PRIu64 " is needed", what, text, most);
    return value;
}

static uint8_t pattern(uint64_t i, unsigned seed, unsigned direction)
{
    return (uint8_t)(i * 131 + (i >> 8) * 7 + seed + direction);
}

static void fill(uint8_t *data, size_t size, uint64_t first, unsigned seed, unsigned direction)
{
    for (size_t i = 0; i < size; i++)
        data[i] = pattern(first + i, seed, direction);
}

static void check(const uint8_t *data, size_t size, uint64_t first, unsigned seed, unsigned direction)
{
    for (size_t i = 0; i < size; i++)
        if (data[i] != pattern(first + i, seed, direction))
            die("byte %" PRIu64 " of direction %u is %#x, not %#x", first + i, direction, data[i],
                pattern(first + i, seed, direction));
}

static double now(void)
{
    struct timespec time;

    clock_gettime(CLOCK_MONOTONIC, &time);
    return (double)time.tv_sec + (double)time.tv_nsec / 1e9;
}

static struct libxenvchan *open_server(int domid, const char *path, size_t read_size, size_t write_size)
{
    struct libxenvchan *vchan = libxenvchan_server_init(NULL, domid, path, read_size, write_size);

    if (!vchan)
        die("libxenvchan_server_init for domain %d at %s: %s", domid, path, strerror(errno));
    vchan->server_persist = 0;
    printf("listening\n");
    fflush(stdout);
    return vchan;
}

/* Nothing tells a client in C that the server is there, so it looks again and again; the alarm ends it. */
static struct libxenvchan *open_client(int domid, const char *path)
{
    const struct timespec pause = {.tv_nsec = 20 * 1000 * 1000};
    struct libxenvchan *vchan;

    while (!(vchan = libxenvchan_client_init(NULL, domid, path)))
        nanosleep(&pause, NULL);
    vchan->server_persist = 0; /* the library leaves it as malloc found it, and `blocking` too */
    printf("connected\n");
    fflush(stdout);
    return vchan;
}

static void wait_event(struct libxenvchan *vchan)
{
    if (libxenvchan_wait(vchan) < 0)
        die("libxenvchan_wait: %s", strerror(errno));
}

/* Wait for the peer to close, taking nothing more from it. */
static void wait_closed(struct libxenvchan *vchan)
{
    uint8_t extra;

    for (;;) {
        int taken = libxenvchan_read(vchan, &extra, 1);
        if (taken > 0)
            die("more came than was agreed");
        if (taken < 0)
            return;
        wait_event(vchan);
    }
}

static void transfer(struct libxenvchan *vchan, uint64_t send, uint64_t receive, unsigned seed, int close_first)
{
    static uint8_t out[CHUNK], in[CHUNK];
    unsigned direction = vchan->is_server ? 1 : 0;
    uint64_t sent = 0, received = 0;
    size_t filled = 0, used = 0;

    vchan->blocking = 0;
    double start = now();
    while (sent < send || received < receive) {
        int moved = 0;

        if (sent < send) {
            if (used == filled) {
                used = 0;
                filled = send - sent < CHUNK ? send - sent : CHUNK;
                fill(out, filled, sent, seed, direction);
            }
            int count = libxenvchan_write(vchan, out + used, filled - used);
            if (count < 0)
                die("the peer closed after %" PRIu64 " of %" PRIu64 " bytes were sent", sent, send);
            used += count;
            sent += count;
            moved += count;
        }
        if (received < receive) {
            int count = libxenvchan_read(vchan, in, receive - received < CHUNK ? receive - received : CHUNK);
            if (count < 0)
                die("the peer closed after %" PRIu64 " of %" PRIu64 " bytes were received", received, receive);
            check(in, count, received, seed, !direction);
            received += count;
            moved += count;
        }
        if (!moved)
            wait_event(vchan);
    }
    double seconds = now() - start;
    if (!close_first)
        wait_closed(vchan);
    printf("sent %" PRIu64 " received %" PRIu64 " seconds %.6f\n", sent, received, seconds);
}

static void echo(struct libxenvchan *vchan)
{
    static uint8_t data[CHUNK];
    uint64_t total = 0;
    int count;

    vchan->blocking = 1;
    while ((count = libxenvchan_read(vchan, data, sizeof data)) >= 0) {
        for (int done = 0; done < count;) {
            int written = libxenvchan_write(vchan, data + done, count - done);
            if (written < 0)
                die("the peer closed before it took back what it sent: %d of %d bytes", count - done, count);
            done += written;
        }
        total += count;
    }
    printf("echoed %" PRIu64 "\n", total);
}

static void pingpong(struct libxenvchan *vchan, uint64_t count, size_t size)
{
    static uint8_t out[CHUNK], in[CHUNK];
    unsigned direction = vchan->is_server ? 1 : 0;

    vchan->blocking = 1;
    double start = now();
    for (uint64_t i = 0; i < count; i++) {
        fill(out, size, i * size, 0, direction);
        for (size_t done = 0; done < size;) {
            int written = libxenvchan_write(vchan, out + done, size - done);
            if (written < 0)
                die("the peer closed in round %" PRIu64, i);
            done += written;
        }
        for (size_t done = 0; done < size;) {
            int taken = libxenvchan_read(vchan, in + done, size - done);
            if (taken < 0)
                die("the peer closed in round %" PRIu64, i);
            done += taken;
        }
        check(in, size, i * size, 0, direction);
    }
    double seconds = now() - start;
    printf("rounds %" PRIu64 " bytes %zu seconds %.6f\n", count, size, seconds);
}

static unsigned timeout(void)
{
    const char *text = getenv("VCHAN_PEER_TIMEOUT");

    return text ? (unsigned)parse("VCHAN_PEER_TIMEOUT", text, 1 << 20) : 60;
}

int main(int argc, char **argv)
{
    const char *mode = argc > 6 ? argv[6] : "";
    int is_transfer = argc == 11 && !strcmp(mode, "transfer");
    int is_echo = argc == 7 && !strcmp(mode, "echo");
    int is_pingpong = argc == 9 && !strcmp(mode, "pingpong");

    if ((!is_transfer && !is_echo && !is_pingpong) || (strcmp(argv[1], "server") && strcmp(argv[1], "client")))
        die("server|client DOMID PATH READ WRITE transfer SEND RECEIVE SEED server|client, or echo, or pingpong COUNT "
            "SIZE");
    role = argv[1];
    int is_server = !strcmp(role, "server");
    int domid = (int)parse("DOMID", argv[2], 0x7fef);
    size_t read_size = parse("READ", argv[4], 1 << 20), write_size = parse("WRITE", argv[5], 1 << 20);
    uint64_t first = is_echo ? 0 : parse("a count", argv[7], UINT64_MAX >> 1);
    uint64_t second = is_echo ? 0 : parse("a size", argv[8], is_pingpong ? CHUNK : UINT64_MAX >> 1);
    unsigned seed = is_transfer ? (unsigned)parse("SEED", argv[9], UINT32_MAX) : 0;

    if (is_transfer && strcmp(argv[10], "server") && strcmp(argv[10], "client"))
        die("who closes first is %s: server or client", argv[10]);
    if (signal(SIGALRM, on_alarm) == SIG_ERR)
        die("signal: %s", strerror(errno));
    alarm(timeout());
    struct libxenvchan *vchan =
        is_server ? open_server(domid, argv[3], read_size, write_size) : open_client(domid, argv[3]);

    if (is_transfer)
        transfer(vchan, first, second, seed, !strcmp(argv[10], role));
    else if (is_echo)
        echo(vchan);
    else
        pingpong(vchan, first, second);
    libxenvchan_close(vchan);
    return fflush(stdout) ? 1 : 0;
}
