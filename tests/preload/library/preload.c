/* A preload library with which programs that know nothing of it, over Xen's own libraries in C, run as a domain of an
 * embedded machine: what they ask of /dev/xen/gntalloc, gntdev, evtchn and xenbus becomes requests to the machine. For
 * tests only.
 *
 * It translates and does nothing else: whatever the machine decides, errno included, is handed on. What needs this
 * process is done here as src/xengrant/devices/socket*.py do it: memory is mapped from the
 * descriptors that come, the offset of an address is looked up, and everything about a bound port is done on its socket.
 *
 * XENGRANT_PRELOAD_URL, embedded:DIRECTORY?domid=N, says which machine and domain. (XENGRANT_URL is Python's: a program
 * of xengrant's that has none takes the kernel's devices, and they are these.) XENGRANT_IOCTL_LOG names a file to which
 * each call is appended (log.c).
 *
 * Not translated: dup; a descriptor that arrives from elsewhere; a part of a mapping unmapped, which ends the program. A
 * forked child has none of its parent's files, where Linux would let it share them. A blocking read of evtchn ends with
 * EINTR after every signal, since poll does, where Linux goes on after a handler with SA_RESTART.
 */
#define _GNU_SOURCE
#include "preload.h"

#include <dlfcn.h>
#include <errno.h>
#include <fcntl.h>
#include <stdarg.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <sys/syscall.h>
#include <sys/mman.h>
#include <sys/stat.h>
#include <sys/sysmacros.h>
#include <unistd.h>

enum { MOST_DESCRIPTORS = 1 << 16 };

/* By descriptor. Looked at without the lock to tell at once what is not ours. */
static struct file *files[MOST_DESCRIPTORS];
static pthread_mutex_t files_lock = PTHREAD_MUTEX_INITIALIZER;

/* Found anew each time where it was not yet: other libraries' constructors may run before any of ours. */
#define REAL(name) \
    static __typeof__(&name) real; \
    if (__atomic_load_n(&real, __ATOMIC_ACQUIRE) == NULL) \
    __atomic_store_n(&real, (__typeof__(&name))dlsym(RTLD_NEXT, #name), __ATOMIC_RELEASE)

void give_up(const char *format, ...)
{
    va_list arguments;

    fputs("preload: ", stderr);
    va_start(arguments, format);
    vfprintf(stderr, format, arguments);
    va_end(arguments);
    fputc('\n', stderr);
    abort();
}

void *real_mmap(void *address, size_t length, int protection, int flags, int fd, off_t offset)
{
    REAL(mmap);
    return real(address, length, protection, flags, fd, offset);
}

int real_munmap(void *address, size_t length)
{
    REAL(munmap);
    return real(address, length);
}

int real_close(int fd)
{
    REAL(close);
    return real(fd);
}

/* ---- Which file a descriptor is ------------------------------------------------------------------------- */

void hold_file(struct file *file)
{
    __atomic_fetch_add(&file->users, 1, __ATOMIC_RELAXED);
}

void drop_file(struct file *file)
{
    int error = errno;

    if (__atomic_sub_fetch(&file->users, 1, __ATOMIC_ACQ_REL) == 0)
        close_file(file);
    errno = error;
}

static int is_ours(int fd)
{
    return fd >= 0 && fd < MOST_DESCRIPTORS && __atomic_load_n(&files[fd], __ATOMIC_RELAXED) != NULL;
}

/* The file, which the caller drops; NULL where the descriptor is none of ours. */
static struct file *file_of(int fd)
{
    if (!is_ours(fd))
        return NULL;
    pthread_mutex_lock(&files_lock);
    struct file *file = files[fd];
    if (file)
        hold_file(file);
    pthread_mutex_unlock(&files_lock);
    return file;
}

/* In a forked child: what it closes and unmaps is then no affair of the machine's. */
static void forget_file(struct file *file)
{
    if (file->connection >= 0)
        real_close(file->connection);
    file->connection = -1;
    evtchn_close(file);
}

static void lock_all(void)
{
    pthread_mutex_lock(&files_lock);
    lock_regions();
}

static void unlock_all(void)
{
    unlock_regions();
    pthread_mutex_unlock(&files_lock);
}

static void forget_all(void)
{
    forget_regions(forget_file);
    for (int fd = 0; fd < MOST_DESCRIPTORS; fd++)
        if (files[fd]) {
            forget_file(files[fd]);
            files[fd] = NULL;
        }
    unlock_all();
}

__attribute__((constructor)) static void watch_forks(void)
{
    if (pthread_atfork(lock_all, unlock_all, forget_all))
        give_up("no memory");
}

/* ---- What programs call --------------------------------------------------------------------------------- */

/* The device that a path names, where a machine is to serve it. */
static const char *device_of(const char *path)
{
    static const char *const devices[] = {"gntalloc", "gntdev", "evtchn", "xenbus"};

    if (strncmp(path, "/dev/xen/", 9) != 0 || !machine_is_named())
        return NULL;
    for (size_t i = 0; i < sizeof devices / sizeof *devices; i++)
        if (!strcmp(path + 9, devices[i]))
            return devices[i];
    return NULL;
}

/* The flags of the descriptor as open() was asked for them; everything was made close-on-exec. */
static int set_flags(int fd, int flags)
{
    if (!(flags & O_CLOEXEC) && fcntl(fd, F_SETFD, 0) < 0)
        return -1;
    int now = fcntl(fd, F_GETFL);
    return now < 0 ? -1 : fcntl(fd, F_SETFL, (now & ~O_NONBLOCK) | (flags & O_NONBLOCK));
}

static int open_device(const char *device, int flags)
{
    int connection = connect_device(device);

    if (connection < 0)
        return -1;
    if (!strcmp(device, "xenbus")) { /* behind HELLO it is xenstore's own stream, so nothing is left to translate */
        if (set_flags(connection, flags) == 0)
            return connection;
        real_close(connection);
        return -1;
    }
    struct file *file = calloc(1, sizeof *file);
    if (!file)
        give_up("no memory");
    *file = (struct file){.device = device, .connection = connection, .users = 1};
    pthread_mutex_init(&file->requests, NULL);
    pthread_mutex_init(&file->ports_lock, NULL);
    /* The mappings outlive the program's descriptor, and its flags are no affair of the connection's, so they are two
     * files. /dev/null polls as a device does that has no poll. */
    file->descriptor = strcmp(device, "evtchn") ? open("/dev/null", O_RDWR | O_CLOEXEC) : evtchn_open(file);
    if (file->descriptor < 0 || set_flags(file->descriptor, flags) < 0)
        give_up("%s: %s", device, strerror(errno));
    if (file->descriptor >= MOST_DESCRIPTORS)
        give_up("descriptor %d is more than there is room for", file->descriptor);
    log_call(file, "\"call\": \"open\", \"cloexec\": %s, \"nonblock\": %s", flags & O_CLOEXEC ? "true" : "false",
             flags & O_NONBLOCK ? "true" : "false");
    pthread_mutex_lock(&files_lock);
    __atomic_store_n(&files[file->descriptor], file, __ATOMIC_RELEASE);
    pthread_mutex_unlock(&files_lock);
    return file->descriptor;
}

#define OPEN(name, parameters, arguments) \
    int name parameters \
    { \
        const char *device = device_of(path); \
        if (device) \
            return open_device(device, flags); \
        mode_t mode = 0; \
        if (flags & (O_CREAT | __O_TMPFILE)) { \
            va_list list; \
            va_start(list, flags); \
            mode = va_arg(list, mode_t); \
            va_end(list); \
        } \
        REAL(name); \
        return real arguments; \
    }

OPEN(open, (const char *path, int flags, ...), (path, flags, mode))
OPEN(open64, (const char *path, int flags, ...), (path, flags, mode))
OPEN(openat, (int directory, const char *path, int flags, ...), (directory, path, flags, mode))
OPEN(openat64, (int directory, const char *path, int flags, ...), (directory, path, flags, mode))

/* What fortified programs call where they give no mode. */
int __open_2(const char *path, int flags)
{
    return open(path, flags);
}

int __open64_2(const char *path, int flags)
{
    return open64(path, flags);
}

/* libxenstore looks whether it is to open a device or connect to a socket. */
int stat(const char *restrict path, struct stat *restrict status)
{
    const char *device = device_of(path);

    if (device) {
        memset(status, 0, sizeof *status);
        status->st_mode = S_IFCHR | 0600;
        return 0;
    }
    REAL(stat);
    return real(path, status);
}

int ioctl(int fd, unsigned long number, ...)
{
    va_list list;

    va_start(list, number);
    void *argument = va_arg(list, void *);
    va_end(list);
    struct file *file = file_of(fd);
    if (!file) {
        REAL(ioctl);
        return real(fd, number, argument);
    }
    int result = file_ioctl(file, number, argument);
    drop_file(file);
    return result;
}

void *mmap(void *address, size_t length, int protection, int flags, int fd, off_t offset)
{
    struct file *file = flags & MAP_ANONYMOUS ? NULL : file_of(fd);

    if (!file)
        return real_mmap(address, length, protection, flags, fd, offset);
    void *mapped = file_mmap(file, address, length, protection, flags, (uint64_t)offset);
    drop_file(file);
    return mapped;
}

void *mmap64(void *address, size_t length, int protection, int flags, int fd, off64_t offset)
{
    return mmap(address, length, protection, flags, fd, offset);
}

int munmap(void *address, size_t length)
{
    int result;

    return unmap_region(address, length, &result) ? result : real_munmap(address, length);
}

ssize_t read(int fd, void *data, size_t size)
{
    struct file *file = file_of(fd);

    if (!file) {
        REAL(read);
        return real(fd, data, size);
    }
    ssize_t count = -1;
    if (strcmp(file->device, "evtchn"))
        errno = EINVAL; /* Linux, of a driver that has no read */
    else
        count = evtchn_read(file, data, size);
    drop_file(file);
    return count;
}

ssize_t write(int fd, const void *data, size_t size)
{
    struct file *file = file_of(fd);

    if (!file) {
        REAL(write);
        return real(fd, data, size);
    }
    ssize_t count = -1;
    if (strcmp(file->device, "evtchn"))
        errno = EINVAL;
    else
        count = evtchn_write(file, data, size);
    drop_file(file);
    return count;
}

/* xengrant asks the kernel for these three directly where each hand-over does. */
long syscall(long number, ...)
{
    va_list list;
    long arguments[6];

    va_start(list, number);
    for (int i = 0; i < 6; i++)
        arguments[i] = va_arg(list, long);
    va_end(list);
    int fd = (int)arguments[0];
    if (number == SYS_read)
        return read(fd, (void *)arguments[1], (size_t)arguments[2]);
    if (number == SYS_write)
        return write(fd, (const void *)arguments[1], (size_t)arguments[2]);
    if (number == SYS_ioctl)
        return ioctl(fd, (unsigned long)arguments[1], (void *)arguments[2]);
    REAL(syscall);
    return real(number, arguments[0], arguments[1], arguments[2], arguments[3], arguments[4], arguments[5]);
}

int close(int fd)
{
    if (!is_ours(fd))
        return real_close(fd);
    pthread_mutex_lock(&files_lock);
    struct file *file = files[fd];
    __atomic_store_n(&files[fd], NULL, __ATOMIC_RELEASE);
    pthread_mutex_unlock(&files_lock);
    int result = real_close(fd);
    if (file) {
        log_call(file, "\"call\": \"close\"");
        drop_file(file);
    }
    return result;
}
