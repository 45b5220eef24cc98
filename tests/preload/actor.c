/* A process over Xen's own libxengnttab and libxenevtchn that does what the test tells it: a line of words on stdin, a
 * line on stdout. An answer begins with "ok", or is "error" and the errno. Memory is named by a slot, in the order of
 * the shares and maps, from 0 on; -1 is no byte and no port. Byte i of pattern S is (i * 131 + (i >> 8) * 7 + S) & 0xff.
 *
 *   share DOMID COUNT WRITABLE BYTE PORT      the refs
 *   map DOMID WRITABLE BYTE PORT REF...
 *   unshare SLOT, unmap SLOT
 *   fill SLOT S, check SLOT S, set SLOT OFFSET VALUE, get SLOT OFFSET
 *   copy_from DOMID REF OFFSET LENGTH S       to memory full of 0xee; the status, and the bytes in hexadecimal
 *   copy_to DOMID REF OFFSET LENGTH S         from memory with pattern S; the status
 *   copy_between DOMID REF DOMID REF          a page from the first grant to the second; the status
 *   bind_unbound DOMID, bind_interdomain DOMID PORT     the port
 *   notify PORT, unmask PORT, unbind PORT
 *   pending                                   the port; waits unless `nonblock 1` was said
 *   nonblock ON, poll MILLISECONDS            of evtchn's descriptor: how many are ready
 *   close_gntshr, close_gnttab
 */
#include <errno.h>
#include <fcntl.h>
#include <poll.h>
#include <stdint.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <sys/mman.h>

#include <xenevtchn.h>
#include <xengnttab.h>

enum { PAGE = 4096, MOST_WORDS = 256, MOST_SLOTS = 64 };

static xengntshr_handle *gntshr;
static xengnttab_handle *gnttab;
static xenevtchn_handle *evtchn;

static struct {
    uint8_t *memory;
    uint32_t pages;
} slots[MOST_SLOTS];
static int slot_count;

static char *words[MOST_WORDS];
static int word_count;

static long number(int i)
{
    char *end;

    if (i >= word_count)
        exit((fprintf(stderr, "actor: %s needs more words\n", words[0]), 2));
    long value = strtol(words[i], &end, 0);
    if (end == words[i] || *end)
        exit((fprintf(stderr, "actor: %s is no number\n", words[i]), 2));
    return value;
}

static int fail(void)
{
    printf("error %d\n", errno);
    return 0;
}

static int done(int failed)
{
    return failed ? fail() : printf("ok\n");
}

static uint8_t pattern(size_t i, long seed)
{
    return (uint8_t)(i * 131 + (i >> 8) * 7 + (size_t)seed);
}

static xengntshr_handle *shr(void)
{
    if (!gntshr && !(gntshr = xengntshr_open(NULL, 0)))
        exit((perror("actor: xengntshr_open"), 2));
    return gntshr;
}

static xengnttab_handle *tab(void)
{
    if (!gnttab && !(gnttab = xengnttab_open(NULL, 0)))
        exit((perror("actor: xengnttab_open"), 2));
    return gnttab;
}

static xenevtchn_handle *chn(void)
{
    if (!evtchn && !(evtchn = xenevtchn_open(NULL, 0)))
        exit((perror("actor: xenevtchn_open"), 2));
    return evtchn;
}

static void keep(void *memory, uint32_t pages)
{
    if (slot_count == MOST_SLOTS)
        exit((fprintf(stderr, "actor: no more slots\n"), 2));
    slots[slot_count].memory = memory;
    slots[slot_count++].pages = pages;
}

static uint8_t *memory_of(int i, uint32_t *pages)
{
    long slot = number(i);

    if (slot < 0 || slot >= slot_count)
        exit((fprintf(stderr, "actor: no slot %ld\n", slot), 2));
    *pages = slots[slot].pages;
    return slots[slot].memory;
}

static int share(void)
{
    uint32_t domid = (uint32_t)number(1), byte = (uint32_t)number(4), refs[MOST_WORDS];
    int count = (int)number(2), writable = (int)number(3);
    evtchn_port_t port = (evtchn_port_t)number(5);
    void *memory;

    if (byte == (uint32_t)-1 && port == (evtchn_port_t)-1)
        memory = xengntshr_share_pages(shr(), domid, count, refs, writable);
    else
        memory = xengntshr_share_page_notify(shr(), domid, refs, writable, byte, port);
    if (!memory)
        return fail();
    keep(memory, (uint32_t)count);
    printf("ok");
    for (int i = 0; i < count; i++)
        printf(" %u", refs[i]);
    return printf("\n");
}

static int map(void)
{
    uint32_t domid = (uint32_t)number(1), byte = (uint32_t)number(3), refs[MOST_WORDS];
    int protection = number(2) ? PROT_READ | PROT_WRITE : PROT_READ;
    evtchn_port_t port = (evtchn_port_t)number(4);
    uint32_t count = (uint32_t)word_count - 5;
    void *memory;

    for (uint32_t i = 0; i < count; i++)
        refs[i] = (uint32_t)number(5 + (int)i);
    if (byte != (uint32_t)-1 || port != (evtchn_port_t)-1)
        memory = xengnttab_map_grant_ref_notify(tab(), domid, refs[0], protection, byte, port);
    else if (count == 1)
        memory = xengnttab_map_grant_ref(tab(), domid, refs[0], protection);
    else
        memory = xengnttab_map_domain_grant_refs(tab(), count, domid, refs, protection);
    if (!memory)
        return fail();
    keep(memory, count);
    return printf("ok\n");
}

static int check(void)
{
    uint32_t pages;
    uint8_t *memory = memory_of(1, &pages);

    for (size_t i = 0; i < (size_t)pages * PAGE; i++)
        if (memory[i] != pattern(i, number(2)))
            return printf("ok byte %zu is %u\n", i, memory[i]);
    return printf("ok\n");
}

static int fill(void)
{
    uint32_t pages;
    uint8_t *memory = memory_of(1, &pages);

    for (size_t i = 0; i < (size_t)pages * PAGE; i++)
        memory[i] = pattern(i, number(2));
    return printf("ok\n");
}

static int copy(int from_grant)
{
    uint8_t local[PAGE];
    size_t length = (size_t)number(4);
    xengnttab_grant_copy_segment_t segment = {.len = (uint16_t)length};

    for (size_t i = 0; i < sizeof local; i++)
        local[i] = from_grant ? 0xee : pattern(i, number(5));
    segment.flags = from_grant ? GNTCOPY_source_gref : GNTCOPY_dest_gref;
    if (from_grant) {
        segment.source.foreign.ref = (uint32_t)number(2);
        segment.source.foreign.offset = (uint16_t)number(3);
        segment.source.foreign.domid = (uint16_t)number(1);
        segment.dest.virt = local;
    } else {
        segment.source.virt = local;
        segment.dest.foreign.ref = (uint32_t)number(2);
        segment.dest.foreign.offset = (uint16_t)number(3);
        segment.dest.foreign.domid = (uint16_t)number(1);
    }
    if (xengnttab_grant_copy(tab(), 1, &segment) < 0)
        return fail();
    printf("ok %d ", segment.status);
    for (size_t i = 0; from_grant && i < length; i++)
        printf("%02x", local[i]);
    return printf("\n");
}

static int copy_between(void)
{
    xengnttab_grant_copy_segment_t segment = {.len = PAGE, .flags = GNTCOPY_source_gref | GNTCOPY_dest_gref};

    segment.source.foreign.domid = (uint16_t)number(1);
    segment.source.foreign.ref = (uint32_t)number(2);
    segment.dest.foreign.domid = (uint16_t)number(3);
    segment.dest.foreign.ref = (uint32_t)number(4);
    if (xengnttab_grant_copy(tab(), 1, &segment) < 0)
        return fail();
    return printf("ok %d\n", segment.status);
}

static int result(xenevtchn_port_or_error_t port)
{
    return port < 0 ? fail() : printf("ok %d\n", port);
}

static int set_nonblock(void)
{
    int fd = xenevtchn_fd(chn()), flags = fcntl(fd, F_GETFL);

    return done(flags < 0 || fcntl(fd, F_SETFL, number(1) ? flags | O_NONBLOCK : flags & ~O_NONBLOCK) < 0);
}

static int poll_events(void)
{
    struct pollfd descriptor = {.fd = xenevtchn_fd(chn()), .events = POLLIN};
    int ready = poll(&descriptor, 1, (int)number(1));

    return ready < 0 ? fail() : printf("ok %d\n", ready);
}

static int run(void)
{
    const char *word = words[0];
    uint32_t pages;
    uint8_t *memory;

    if (!strcmp(word, "share"))
        return share();
    if (!strcmp(word, "map"))
        return map();
    if (!strcmp(word, "unshare"))
        return memory = memory_of(1, &pages), done(xengntshr_unshare(shr(), memory, pages));
    if (!strcmp(word, "unmap"))
        return memory = memory_of(1, &pages), done(xengnttab_unmap(tab(), memory, pages));
    if (!strcmp(word, "fill"))
        return fill();
    if (!strcmp(word, "check"))
        return check();
    if (!strcmp(word, "set"))
        return memory_of(1, &pages)[number(2)] = (uint8_t)number(3), printf("ok\n");
    if (!strcmp(word, "get"))
        return printf("ok %u\n", ((volatile uint8_t *)memory_of(1, &pages))[number(2)]);
    if (!strcmp(word, "copy_from"))
        return copy(1);
    if (!strcmp(word, "copy_to"))
        return copy(0);
    if (!strcmp(word, "copy_between"))
        return copy_between();
    if (!strcmp(word, "bind_unbound"))
        return result(xenevtchn_bind_unbound_port(chn(), (uint32_t)number(1)));
    if (!strcmp(word, "bind_interdomain"))
        return result(xenevtchn_bind_interdomain(chn(), (uint32_t)number(1), (evtchn_port_t)number(2)));
    if (!strcmp(word, "notify"))
        return done(xenevtchn_notify(chn(), (evtchn_port_t)number(1)));
    if (!strcmp(word, "unmask"))
        return done(xenevtchn_unmask(chn(), (evtchn_port_t)number(1)));
    if (!strcmp(word, "unbind"))
        return done(xenevtchn_unbind(chn(), (evtchn_port_t)number(1)));
    if (!strcmp(word, "pending"))
        return result(xenevtchn_pending(chn()));
    if (!strcmp(word, "nonblock"))
        return set_nonblock();
    if (!strcmp(word, "poll"))
        return poll_events();
    if (!strcmp(word, "close_gntshr"))
        return done(xengntshr_close(gntshr)), gntshr = NULL, 0;
    if (!strcmp(word, "close_gnttab"))
        return done(xengnttab_close(gnttab)), gnttab = NULL, 0;
    return printf("unknown %s\n", word);
}

int main(void)
{
    char line[1 << 14];

    while (fgets(line, sizeof line, stdin)) {
        word_count = 0;
        for (char *word = strtok(line, " \n"); word && word_count < MOST_WORDS; word = strtok(NULL, " \n"))
            words[word_count++] = word;
        if (word_count)
            run();
        fflush(stdout);
    }
    return 0;
}
