/* XENGRANT_IOCTL_LOG: one line of JSON for each call, in the order in which they ended. Bytes are hexadecimal. */
#define _GNU_SOURCE
#include "preload.h"

#include <errno.h>
#include <fcntl.h>
#include <stdarg.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <unistd.h>

static int log_fd(void)
{
    static pthread_mutex_t lock = PTHREAD_MUTEX_INITIALIZER;
    static int fd = -1, tried;

    pthread_mutex_lock(&lock);
    const char *name = getenv("XENGRANT_IOCTL_LOG");
    if (!tried && name && *name) {
        fd = open(name, O_WRONLY | O_APPEND | O_CREAT | O_CLOEXEC, 0600);
        if (fd < 0)
            give_up("%s: %s", name, strerror(errno));
    }
    tried = 1;
    pthread_mutex_unlock(&lock);
    return fd;
}

void log_call(const struct file *file, const char *format, ...)
{
    int fd = log_fd(), error = errno;
    char *call, *line;
    va_list arguments;

    if (fd < 0)
        return;
    va_start(arguments, format);
    int length = vasprintf(&call, format, arguments);
    va_end(arguments);
    if (length < 0)
        give_up("no memory");
    length = asprintf(&line, "{\"device\": \"%s\", %s}\n", file->device, call);
    if (length < 0 || write(fd, line, (size_t)length) != length)
        give_up("the log cannot be written");
    free(line);
    free(call);
    errno = error;
}

char *hex(const void *bytes, size_t size)
{
    char *text = malloc(2 * size + 1);

    if (!text)
        give_up("no memory");
    for (size_t i = 0; i < size; i++)
        sprintf(text + 2 * i, "%02x", ((const uint8_t *)bytes)[i]);
    text[2 * size] = '\0';
    return text;
}

void log_ioctl(const struct file *file, unsigned long number, const void *before, const void *after, size_t size,
               int result, int error)
{
    if (log_fd() < 0)
        return;
    char *in = hex(before, size), *out = hex(after, size);
    log_call(file, "\"call\": \"ioctl\", \"request\": %lu, \"in\": \"%s\", \"out\": \"%s\", \"result\": %d, \"errno\": %d",
             number, in, out, result, result < 0 ? error : 0);
    free(in);
    free(out);
}
