/* map-loop DOMID REF...: a cycle maps the first pages of those that domain DOMID granted, writable, and unmaps them. */

#include <sys/mman.h>
#include <xengnttab.h>

#include "turns.h"

static xengnttab_handle *gnttab;
static uint32_t domid, count;
static uint32_t refs[MAX_PAGES];

static void
cycle(uint32_t pages)
{
    if (pages > count) {
        fprintf(stderr, "%u pages of %u refs\n", pages, count);
        exit(2);
    }
    void *mapped = xengnttab_map_domain_grant_refs(gnttab, pages, domid, refs, PROT_READ | PROT_WRITE);
    if (mapped == NULL)
        fail("xengnttab_map_domain_grant_refs");
    if (xengnttab_unmap(gnttab, mapped, pages) < 0)
        fail("xengnttab_unmap");
}

int
main(int argc, char **argv)
{
    if (argc < 3 || argc - 2 > MAX_PAGES) {
        fprintf(stderr, "usage: map-loop DOMID REF...\n");
        return 2;
    }
    domid = (uint32_t)strtoul(argv[1], NULL, 10);
    for (count = 0; count < (uint32_t)argc - 2; count++)
        refs[count] = (uint32_t)strtoul(argv[count + 2], NULL, 10);
    gnttab = xengnttab_open(NULL, 0);
    if (gnttab == NULL)
        fail("xengnttab_open");
    take_turns(cycle);
    xengnttab_close(gnttab);
    return 0;
}
