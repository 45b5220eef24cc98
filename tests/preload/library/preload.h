/* What the files of the preload library share. preload.c says what it is. */
#ifndef PRELOAD_H
#define PRELOAD_H

#include <pthread.h>
#include <stddef.h>
#include <stdint.h>
#include <sys/types.h>

#define PAGE ((size_t)4096)

/* src/xengrant/devices/wire.py */
enum kind { HELLO = 1, IOCTL, MMAP, MUNMAP, PREPARE, RELEASE };
enum direction { IN = 1, OUT, INOUT, MAP };

struct port {
    struct port *next;
    uint32_t number;
    int end; /* the socket: what lies in it is pending, what is sent through it is an event to the other side */
};

/* An open file of the machine's. It lives while the descriptor, a mapping or a call uses it. */
struct file {
    const char *device;
    int connection;
    int descriptor; /* the program's; of evtchn it is the epoll */
    unsigned users;
    pthread_mutex_t requests; /* one at a time */
    uint64_t last_cookie;
    pthread_mutex_t ports_lock;
    struct port *ports;
};

/* Pages of a file in this process. `waiting`: of a read-only ALLOC, mapped before the machine sealed them, which the
 * program's own mmap has not asked for yet. */
struct region {
    struct region *next;
    struct file *file;
    char *address;
    size_t length;
    uint64_t offset;
    uint64_t cookie;
    int waiting;
};

struct reply {
    int32_t result;
    uint8_t *body;
    size_t length;
    int *fds;
    unsigned fd_count;
};

/* connection.c */
int machine_is_named(void);
int connect_device(const char *device);
int request(struct file *file, enum kind kind, const void *body, size_t length, struct reply *reply);
void free_reply(struct reply *reply);
void close_file(struct file *file);
void tell_unmapped(struct file *file, uint64_t cookie);

/* ioctls.c: each returns the result, or -1 and errno. */
size_t argument_size(const struct file *file, unsigned long number, const void *argument);
int file_ioctl(struct file *file, unsigned long number, void *argument);

/* regions.c */
struct region *map_parts(struct file *file, const struct reply *reply, void *hint, size_t length, int protection);
int map_waiting(struct file *file, uint64_t cookie, uint32_t pages);
void place_waiting(struct file *file, uint64_t cookie, uint64_t offset);
void forget_waiting(struct file *file, uint64_t cookie, uint64_t offset);
void *file_mmap(struct file *file, void *hint, size_t length, int protection, int flags, uint64_t offset);
int unmap_region(char *address, size_t length, int *result);
void lock_regions(void);
void unlock_regions(void);
void forget_regions(void (*forget)(struct file *file));
int find_region(struct file *file, uint64_t address, uint64_t *offset, uint32_t *pages);

/* evtchn.c */
int evtchn_open(struct file *file);
int evtchn_ioctl(struct file *file, unsigned long number, void *argument, size_t size);
ssize_t evtchn_read(struct file *file, void *data, size_t size);
ssize_t evtchn_write(struct file *file, const void *data, size_t size);
void evtchn_close(struct file *file);

/* preload.c */
void hold_file(struct file *file);
void drop_file(struct file *file);
__attribute__((noreturn, format(printf, 1, 2))) void give_up(const char *format, ...);
void *real_mmap(void *address, size_t length, int protection, int flags, int fd, off_t offset);
int real_munmap(void *address, size_t length);
int real_close(int fd);

/* log.c */
__attribute__((format(printf, 2, 3))) void log_call(const struct file *file, const char *format, ...);
void log_ioctl(const struct file *file, unsigned long number, const void *before, const void *after, size_t size,
               int result, int error);
char *hex(const void *bytes, size_t size);

#endif
