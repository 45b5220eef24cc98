/* The machine's memory in this process: mmap and munmap. */
#define _GNU_SOURCE
#include "preload.h"

#include <errno.h>
#include <stdlib.h>
#include <string.h>
#include <sys/mman.h>

static struct region *regions;
static pthread_mutex_t regions_lock = PTHREAD_MUTEX_INITIALIZER;

static void link_region(struct region *region)
{
    pthread_mutex_lock(&regions_lock);
    region->next = regions;
    regions = region;
    pthread_mutex_unlock(&regions_lock);
}

/* Around a fork, and what the child does. */
void lock_regions(void)
{
    pthread_mutex_lock(&regions_lock);
}

void unlock_regions(void)
{
    pthread_mutex_unlock(&regions_lock);
}

void forget_regions(void (*forget)(struct file *file))
{
    for (; regions; regions = regions->next)
        forget(regions->file);
}

/* Take out the region at `link`; the lock is held. */
static struct region *unlink_region(struct region **link)
{
    struct region *region = *link;

    *link = region->next;
    return region;
}

/* The reply's parts side by side, a region that is in no list yet, or NULL and errno. */
struct region *map_parts(struct file *file, const struct reply *reply, void *hint, size_t length, int protection)
{
    char *address = real_mmap(hint, length, PROT_NONE, MAP_PRIVATE | MAP_ANONYMOUS | MAP_NORESERVE, -1, 0);
    size_t done = 0;

    if (address == MAP_FAILED)
        return NULL;
    for (size_t at = 0; at + 24 <= reply->length; at += 24) {
        uint32_t number;
        uint64_t place[2]; /* offset, length */
        memcpy(&number, reply->body + at, 4);
        memcpy(place, reply->body + at + 8, 16);
        if (number >= reply->fd_count || place[1] > length - done)
            give_up("%s: a mapping's parts do not fit", file->device);
        if (real_mmap(address + done, place[1], protection, MAP_SHARED | MAP_FIXED, reply->fds[number],
                      (off_t)place[0]) == MAP_FAILED) {
            int error = errno;
            real_munmap(address, length);
            errno = error;
            return NULL;
        }
        done += place[1];
    }
    if (done != length)
        give_up("%s: %zu of %zu bytes came", file->device, done, length);
    struct region *region = calloc(1, sizeof *region);
    if (!region)
        give_up("no memory");
    *region = (struct region){.file = file, .address = address, .length = length};
    hold_file(file);
    return region;
}

/* ---- The memory of read-only ALLOCs: the owner maps it before it is sealed ------------------------------- */

int map_waiting(struct file *file, uint64_t cookie, uint32_t pages)
{
    struct {
        uint64_t cookie;
        uint32_t pages;
        uint32_t pad;
    } body = {.cookie = cookie, .pages = pages};
    struct reply reply;

    if (request(file, PREPARE, &body, sizeof body, &reply) < 0)
        return -1;
    struct region *region = map_parts(file, &reply, NULL, pages * PAGE, PROT_READ | PROT_WRITE);
    free_reply(&reply);
    if (!region)
        return -1;
    region->cookie = cookie;
    region->waiting = 1;
    region->offset = UINT64_MAX;
    link_region(region);
    return 0;
}

static struct region **find_waiting(struct file *file, uint64_t cookie, uint64_t offset)
{
    struct region **link = &regions;

    while (*link && !((*link)->waiting && (*link)->file == file &&
                      (cookie ? (*link)->cookie == cookie : (*link)->offset == offset)))
        link = &(*link)->next;
    return link;
}

/* Where in the file the memory has come to lie. */
void place_waiting(struct file *file, uint64_t cookie, uint64_t offset)
{
    pthread_mutex_lock(&regions_lock);
    struct region *region = *find_waiting(file, cookie, 0);
    if (region)
        region->offset = offset;
    pthread_mutex_unlock(&regions_lock);
}

/* The program will not map it: by its cookie, or where that is 0 by its offset. */
void forget_waiting(struct file *file, uint64_t cookie, uint64_t offset)
{
    pthread_mutex_lock(&regions_lock);
    struct region **link = find_waiting(file, cookie, offset);
    struct region *region = *link ? unlink_region(link) : NULL;
    pthread_mutex_unlock(&regions_lock);
    if (!region)
        return;
    real_munmap(region->address, region->length);
    tell_unmapped(file, region->cookie);
    free(region);
    drop_file(file);
}

/* ---- mmap and munmap ----------------------------------------------------------------------------------- */

static struct region *do_mmap(struct file *file, void *hint, size_t length, int protection, uint64_t offset)
{
    struct {
        uint64_t cookie, length, offset;
        uint8_t writable;
        uint8_t pad[7];
    } body = {.length = length, .offset = offset, .writable = !!(protection & PROT_WRITE)};
    struct reply reply;

    pthread_mutex_lock(&regions_lock);
    struct region **link = find_waiting(file, 0, offset);
    struct region *region =
        *link && (protection & PROT_WRITE) && (*link)->length == length ? unlink_region(link) : NULL;
    pthread_mutex_unlock(&regions_lock);
    body.cookie = region ? region->cookie : __atomic_add_fetch(&file->last_cookie, 1, __ATOMIC_RELAXED);
    if (request(file, MMAP, &body, sizeof body, &reply) < 0) {
        if (region)
            link_region(region);
        return NULL;
    }
    if (!region)
        region = map_parts(file, &reply, hint, length, protection);
    int error = errno;
    free_reply(&reply);
    if (!region) {
        tell_unmapped(file, body.cookie);
        errno = error;
        return NULL;
    }
    region->cookie = body.cookie;
    region->offset = offset;
    region->waiting = 0;
    link_region(region);
    return region;
}

void *file_mmap(struct file *file, void *hint, size_t length, int protection, int flags, uint64_t offset)
{
    size_t whole = (length + PAGE - 1) & ~(PAGE - 1);
    struct region *region = NULL;

    if (flags & MAP_FIXED)
        give_up("%s: a mapping at a fixed address", file->device);
    if (flags & MAP_SHARED)
        region = do_mmap(file, hint, whole, protection, offset);
    else
        errno = EINVAL; /* both drivers, of writable ones; the machine has no others */
    log_call(file,
             "\"call\": \"mmap\", \"length\": %zu, \"offset\": %llu, \"writable\": %s, \"shared\": %s, \"errno\": %d",
             length, (unsigned long long)offset, protection & PROT_WRITE ? "true" : "false",
             flags & MAP_SHARED ? "true" : "false", region ? 0 : errno);
    return region ? region->address : MAP_FAILED;
}

/* munmap, where it is about memory of the machine's: whether it was, and what it returns then. */
int unmap_region(char *address, size_t length, int *result)
{
    size_t whole = (length + PAGE - 1) & ~(PAGE - 1);

    pthread_mutex_lock(&regions_lock);
    struct region **link = &regions;
    while (*link && (address + whole <= (*link)->address || (*link)->address + (*link)->length <= address))
        link = &(*link)->next;
    if (!*link) {
        pthread_mutex_unlock(&regions_lock);
        return 0;
    }
    if ((*link)->address != address || (*link)->length != whole)
        give_up("%s: %zu bytes unmapped of a mapping of %zu", (*link)->file->device, whole, (*link)->length);
    struct region *region = unlink_region(link);
    pthread_mutex_unlock(&regions_lock);
    *result = real_munmap(address, length);
    if (*result < 0) {
        link_region(region);
        return 1;
    }
    tell_unmapped(region->file, region->cookie);
    log_call(region->file, "\"call\": \"munmap\", \"length\": %zu", length);
    drop_file(region->file);
    free(region);
    return 1;
}

/* Which part of the file lies at an address. */
int find_region(struct file *file, uint64_t address, uint64_t *offset, uint32_t *pages)
{
    int found = 0;

    pthread_mutex_lock(&regions_lock);
    for (struct region *region = regions; region && !found; region = region->next) {
        uint64_t start = (uint64_t)(uintptr_t)region->address;
        if (region->file != file || region->waiting || address < start || address >= start + region->length)
            continue;
        *offset = region->offset;
        *pages = (uint32_t)(region->length / PAGE);
        found = 1;
    }
    pthread_mutex_unlock(&regions_lock);
    return found;
}
