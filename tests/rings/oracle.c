/* Both ends of a ring as Xen's own io/ring.h makes them: the judge of xengrant.rings.rpc. Compiled by conftest.py with
 * -DENTRY_SIZE=N, as a library whose calls are compared one by one, and as a program that is one end of a ring in a file.
 */
#include <poll.h>
#include <stdint.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <fcntl.h>
#include <sys/mman.h>
#include <unistd.h>

#define mb() __sync_synchronize()
#define rmb() __sync_synchronize()
#define wmb() __sync_synchronize()
#define XEN_RING_HAS_UNCONSUMED_IS_BOOL
#include <xen/io/ring.h>

struct entry {
    uint8_t bytes[ENTRY_SIZE];
};
DEFINE_RING_TYPES(oracle, struct entry, struct entry);

typedef struct {
    oracle_front_ring_t front;
    oracle_back_ring_t back;
} Ends;

Ends *new_ends(void) { return calloc(1, sizeof(Ends)); }
void free_ends(Ends *ends) { free(ends); }

void front_init(Ends *e, void *page, unsigned size) { XEN_FRONT_RING_INIT(&e->front, (oracle_sring_t *)page, size); }
void front_attach(Ends *e, void *page, unsigned size, unsigned at)
{
    FRONT_RING_ATTACH(&e->front, (oracle_sring_t *)page, at, size);
}
void back_attach(Ends *e, void *page, unsigned size, unsigned at)
{
    BACK_RING_ATTACH(&e->back, (oracle_sring_t *)page, at, size);
}

unsigned entries(Ends *e) { return RING_SIZE(&e->front); }
unsigned free_requests(Ends *e) { return RING_FREE_REQUESTS(&e->front); }
unsigned unanswered(Ends *e) { return e->back.req_cons - e->back.rsp_prod_pvt; }

void next_request(Ends *e, const void *bytes, unsigned length)
{
    memcpy(RING_GET_REQUEST(&e->front, e->front.req_prod_pvt), bytes, length);
    e->front.req_prod_pvt++;
}

void next_response(Ends *e, const void *bytes, unsigned length)
{
    memcpy(RING_GET_RESPONSE(&e->back, e->back.rsp_prod_pvt), bytes, length);
    e->back.rsp_prod_pvt++;
}

int push_requests(Ends *e)
{
    int notify;
    RING_PUSH_REQUESTS_AND_CHECK_NOTIFY(&e->front, notify);
    return notify;
}

int push_responses(Ends *e)
{
    int notify;
    RING_PUSH_RESPONSES_AND_CHECK_NOTIFY(&e->back, notify);
    return notify;
}

int request_overflow(Ends *e) { return RING_REQUEST_PROD_OVERFLOW(&e->back, e->back.sring->req_prod); }
int response_overflow(Ends *e) { return RING_RESPONSE_PROD_OVERFLOW(&e->front, e->front.sring->rsp_prod); }

unsigned take_requests(Ends *e, struct entry *taken)
{
    RING_IDX end = e->back.sring->req_prod;
    unsigned count = 0;
    xen_rmb();
    for (; e->back.req_cons != end && !RING_REQUEST_CONS_OVERFLOW(&e->back, e->back.req_cons); e->back.req_cons++)
        RING_COPY_REQUEST(&e->back, e->back.req_cons, &taken[count++]);
    return count;
}

unsigned take_responses(Ends *e, struct entry *taken)
{
    RING_IDX end = e->front.sring->rsp_prod;
    unsigned count = 0;
    xen_rmb();
    for (; e->front.rsp_cons != end; e->front.rsp_cons++)
        RING_COPY_RESPONSE(&e->front, e->front.rsp_cons, &taken[count++]);
    return count;
}

int more_requests(Ends *e)
{
    int more;
    RING_FINAL_CHECK_FOR_REQUESTS(&e->back, more);
    return more;
}

int more_responses(Ends *e)
{
    int more;
    RING_FINAL_CHECK_FOR_RESPONSES(&e->front, more);
    return more;
}

/* The program: oracle front|back FILE SIZE START COUNT, events are bytes on 0 and 1. Request i begins with i, and its
 * response with ~i; both u64. */

static void fail(const char *why)
{
    fprintf(stderr, "%s\n", why);
    exit(1);
}

static void wait_for_event(void)
{
    char bytes[4096];
    struct pollfd polled = {.fd = 0, .events = POLLIN};
    if (poll(&polled, 1, 20000) != 1)
        fail("no event in 20 seconds");
    if (read(0, bytes, sizeof bytes) <= 0)
        fail("the other end has ended");
}

static void notify_if(int wanted)
{
    if (wanted && write(1, "", 1) != 1)
        fail("the other end has ended");
}

static void be_front(Ends *e, struct entry *taken, unsigned long count)
{
    unsigned long sent = 0, answered = 0;
    uint8_t *seen = calloc(count, 1);
    while (answered < count) {
        struct entry request = {{0}};
        unsigned long batch = random() % (entries(e) + 1);
        for (; batch && sent < count && !RING_FULL(&e->front); batch--, sent++) {
            memcpy(request.bytes, &sent, sizeof sent);
            next_request(e, &request, sizeof request);
        }
        notify_if(push_requests(e));
        do {
            unsigned got = take_responses(e, taken);
            for (unsigned i = 0; i < got; i++) {
                uint64_t number;
                memcpy(&number, taken[i].bytes, sizeof number);
                number = ~number;
                if (number >= sent || seen[number]++)
                    fail("a response to no request, or a second one");
            }
            answered += got;
        } while (more_responses(e));
        if (answered < count && (RING_FULL(&e->front) || sent == count))
            wait_for_event();
    }
    free(seen);
}

static void be_back(Ends *e, struct entry *taken, unsigned long count)
{
    unsigned long answered = 0;
    while (answered < count) {
        unsigned got = take_requests(e, taken);
        while (got) { /* the last one first */
            uint64_t number;
            memcpy(&number, taken[--got].bytes, sizeof number);
            number = ~number;
            next_response(e, &number, sizeof number);
            answered++;
            if (random() % 3 == 0)
                notify_if(push_responses(e));
        }
        notify_if(push_responses(e));
        if (answered < count && !more_requests(e))
            wait_for_event();
    }
}

int main(int argc, char **argv)
{
    if (argc != 6)
        fail("usage: oracle front|back FILE SIZE START COUNT");
    unsigned size = atoi(argv[3]), start = strtoul(argv[4], NULL, 0);
    unsigned long count = strtoul(argv[5], NULL, 0);
    int fd = open(argv[2], O_RDWR);
    void *page = mmap(NULL, size, PROT_READ | PROT_WRITE, MAP_SHARED, fd, 0);
    Ends *e = new_ends();
    if (fd < 0 || page == MAP_FAILED)
        fail("there is no such file");
    front_attach(e, page, size, start);
    back_attach(e, page, size, start);
    struct entry *taken = calloc(entries(e), sizeof *taken);
    (strcmp(argv[1], "front") ? be_back : be_front)(e, taken, count);
    return 0;
}
