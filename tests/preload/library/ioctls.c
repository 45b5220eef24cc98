/* ioctls: how long each argument is, what it points to, and which are about this process. */
#define _GNU_SOURCE
#include "preload.h"

#include <errno.h>
#include <stdlib.h>
#include <string.h>
#include <sys/ioctl.h>

typedef uint32_t grant_ref_t; /* which gntdev.h uses and does not define */
typedef uint16_t domid_t;
#include <xen/gntalloc.h>
#include <xen/gntdev.h>

/* Xen's public/grant_table.h, which says that the flags of a segment are those of GNTTABOP_copy. */
enum { SOURCE_IS_GRANT = 1, DEST_IS_GRANT = 2 };

/* What an ioctl's argument points to, in the order of the wire: a u64 at byte `at` of the `holder`th block (0 is the
 * argument itself) that points to `length` bytes at `data`. */
struct pointer {
    uint32_t holder, at, length;
    uint8_t direction;
    uint8_t pad[3];
};

struct call {
    uint8_t *body;
    size_t length;
};

static void add(struct call *call, const void *data, size_t length)
{
    if (!length)
        return;
    call->body = realloc(call->body, call->length + length);
    if (!call->body)
        give_up("no memory");
    memcpy(call->body + call->length, data, length);
    call->length += length;
}

static void begin(struct call *call, unsigned long number, const void *argument, size_t size, uint32_t pointers)
{
    uint32_t head[3] = {(uint32_t)number, (uint32_t)size, pointers};

    *call = (struct call){0};
    add(call, head, sizeof head);
    add(call, argument, size);
}

/* As the kernel, write only where something changed: the program may have lent us what it cannot write. */
static void give_back(void *argument, const void *bytes, size_t size)
{
    if (size && memcmp(argument, bytes, size))
        memcpy(argument, bytes, size);
}

static int send_call(struct file *file, struct call *call, void *argument, size_t size, struct reply *reply)
{
    int failed = request(file, IOCTL, call->body, call->length, reply);

    free(call->body);
    if (failed)
        return -1;
    if (reply->length < size)
        give_up("%s: an ioctl's argument came back too short", file->device);
    give_back(argument, reply->body, size);
    return reply->result;
}

static int plain_ioctl(struct file *file, unsigned long number, void *argument, size_t size)
{
    struct call call;
    struct reply reply;

    begin(&call, number, argument, size, 0);
    int result = send_call(file, &call, argument, size, &reply);
    if (result >= 0)
        free_reply(&reply);
    return result;
}

/* ALLOC_GREF of pages that the peer may only read. Where there is nothing to prepare, ALLOC itself says why. */
static int alloc_readonly(struct file *file, struct ioctl_gntalloc_alloc_gref *argument, size_t size)
{
    uint64_t cookie = __atomic_add_fetch(&file->last_cookie, 1, __ATOMIC_RELAXED);
    struct pointer named = {.at = offsetof(struct ioctl_gntalloc_alloc_gref, index), .length = 8, .direction = MAP};
    struct call call;
    struct reply reply;

    map_waiting(file, cookie, argument->count);
    begin(&call, IOCTL_GNTALLOC_ALLOC_GREF, argument, size, 1);
    add(&call, &named, sizeof named);
    add(&call, &cookie, sizeof cookie);
    int result = send_call(file, &call, argument, size, &reply);
    if (result < 0) {
        int error = errno;
        forget_waiting(file, cookie, 0);
        errno = error;
        return -1;
    }
    free_reply(&reply);
    place_waiting(file, cookie, argument->index);
    return result;
}

typedef void Each(void *what, const struct ioctl_gntdev_grant_copy *copy, uint32_t i, int is_dest, void *local);

/* Call `each` for the local side of every segment, in the order of the wire, and say how many there are. */
static uint32_t for_local_sides(const struct ioctl_gntdev_grant_copy *copy, void *what, Each *each)
{
    uint32_t count = 0;

    for (uint32_t i = 0; i < copy->count; i++) {
        const struct gntdev_grant_copy_segment *segment = &copy->segments[i];
        for (int is_dest = 0; is_dest < 2; is_dest++) {
            if (segment->flags & (is_dest ? DEST_IS_GRANT : SOURCE_IS_GRANT))
                continue;
            count++;
            if (each)
                each(what, copy, i, is_dest, is_dest ? segment->dest.virt : segment->source.virt);
        }
    }
    return count;
}

static void add_pointer(void *what, const struct ioctl_gntdev_grant_copy *copy, uint32_t i, int is_dest, void *local)
{
    uint32_t side = is_dest ? offsetof(struct gntdev_grant_copy_segment, dest)
                            : offsetof(struct gntdev_grant_copy_segment, source);
    struct pointer pointer = {
        .holder = 1,
        .at = i * (uint32_t)sizeof *copy->segments + side,
        .length = copy->segments[i].len,
        .direction = is_dest ? OUT : IN,
    };

    (void)local;
    add(what, &pointer, sizeof pointer);
}

static void add_bytes(void *what, const struct ioctl_gntdev_grant_copy *copy, uint32_t i, int is_dest, void *local)
{
    if (!is_dest)
        add(what, local, copy->segments[i].len);
}

static void take_bytes(void *what, const struct ioctl_gntdev_grant_copy *copy, uint32_t i, int is_dest, void *local)
{
    uint8_t **at = what;

    if (!is_dest)
        return;
    if (copy->segments[i].status == 0) /* what was refused leaves the memory as it is */
        give_back(local, *at, copy->segments[i].len);
    *at += copy->segments[i].len;
}

static int grant_copy(struct file *file, struct ioctl_gntdev_grant_copy *copy)
{
    size_t size = copy->count * sizeof *copy->segments;
    struct pointer table = {.at = offsetof(struct ioctl_gntdev_grant_copy, segments),
                            .length = (uint32_t)size,
                            .direction = INOUT};
    struct call call;
    struct reply reply;

    begin(&call, IOCTL_GNTDEV_GRANT_COPY, copy, sizeof *copy, 1 + for_local_sides(copy, NULL, NULL));
    add(&call, &table, sizeof table);
    for_local_sides(copy, &call, add_pointer);
    add(&call, copy->segments, size);
    for_local_sides(copy, &call, add_bytes);
    char *before = hex(copy->segments, size);
    int result = send_call(file, &call, copy, sizeof *copy, &reply);
    if (result >= 0) {
        uint8_t *at = reply.body + sizeof *copy + size;
        give_back(copy->segments, reply.body + sizeof *copy, size);
        for_local_sides(copy, &at, take_bytes);
        free_reply(&reply);
    }
    char *after = hex(copy->segments, size);
    log_call(file, "\"call\": \"segments\", \"in\": \"%s\", \"out\": \"%s\"", before, after);
    free(before);
    free(after);
    return result;
}

static int offset_for_vaddr(struct file *file, struct ioctl_gntdev_get_offset_for_vaddr *argument)
{
    uint64_t offset;
    uint32_t pages;

    if (!find_region(file, argument->vaddr, &offset, &pages)) {
        errno = EINVAL;
        return -1;
    }
    argument->offset = offset;
    argument->count = pages;
    return 0;
}

/* The number says how long an argument is, but for those that end in an array. */
size_t argument_size(const struct file *file, unsigned long number, const void *argument)
{
    size_t size = _IOC_SIZE(number), whole = size;

    if (!strcmp(file->device, "gntalloc") && number == IOCTL_GNTALLOC_ALLOC_GREF)
        whole = offsetof(struct ioctl_gntalloc_alloc_gref, gref_ids) +
                4 * (size_t)((const struct ioctl_gntalloc_alloc_gref *)argument)->count;
    if (!strcmp(file->device, "gntdev") && number == IOCTL_GNTDEV_MAP_GRANT_REF)
        whole = offsetof(struct ioctl_gntdev_map_grant_ref, refs) +
                8 * (size_t)((const struct ioctl_gntdev_map_grant_ref *)argument)->count;
    return whole > size ? whole : size;
}

static int do_ioctl(struct file *file, unsigned long number, void *argument, size_t size)
{
    if (!strcmp(file->device, "evtchn"))
        return evtchn_ioctl(file, number, argument, size);
    if (!strcmp(file->device, "gntdev") && number == IOCTL_GNTDEV_GET_OFFSET_FOR_VADDR)
        return offset_for_vaddr(file, argument);
    if (!strcmp(file->device, "gntdev") && number == IOCTL_GNTDEV_GRANT_COPY)
        return grant_copy(file, argument);
    if (!strcmp(file->device, "gntalloc") && number == IOCTL_GNTALLOC_ALLOC_GREF) {
        const struct ioctl_gntalloc_alloc_gref *alloc = argument;
        if (alloc->count && !(alloc->flags & GNTALLOC_FLAG_WRITABLE))
            return alloc_readonly(file, argument, size);
    }
    int result = plain_ioctl(file, number, argument, size);
    if (result >= 0 && !strcmp(file->device, "gntalloc") && number == IOCTL_GNTALLOC_DEALLOC_GREF)
        forget_waiting(file, 0, ((const struct ioctl_gntalloc_dealloc_gref *)argument)->index);
    return result;
}

int file_ioctl(struct file *file, unsigned long number, void *argument)
{
    number = (uint32_t)number;
    size_t size = argument_size(file, number, argument);
    void *before = malloc(size + 1);

    if (!before)
        give_up("no memory");
    memcpy(before, argument, size);
    int result = do_ioctl(file, number, argument, size);
    int error = errno;
    log_ioctl(file, number, before, argument, size, result, error);
    free(before);
    errno = error;
    return result;
}
