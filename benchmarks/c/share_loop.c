/* share-loop DOMID: a cycle shares pages with domain DOMID and unmaps them. */

#include <xengnttab.h>

#include "turns.h"

static xengntshr_handle *gntshr;
static uint32_t domid;

static void
cycle(uint32_t pages)
{
    uint32_t refs[MAX_PAGES];
    void *shared = xengntshr_share_pages(gntshr, domid, (int)pages, refs, 1);
    if (shared == NULL)
        fail("xengntshr_share_pages");
    if (xengntshr_unshare(gntshr, shared, pages) < 0)
        fail("xengntshr_unshare");
}

int
main(int argc, char **argv)
{
    if (argc != 2) {
        fprintf(stderr, "usage: share-loop DOMID\n");
        return 2;
    }
    domid = (uint32_t)strtoul(argv[1], NULL, 10);
    gntshr = xengntshr_open(NULL, 0);
    if (gntshr == NULL)
        fail("xengntshr_open");
    take_turns(cycle);
    xengntshr_close(gntshr);
    return 0;
}
