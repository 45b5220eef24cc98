/* A benchmark program's turns: "PAGES CYCLES" on standard input is answered by the nanoseconds (CLOCK_MONOTONIC)
 * that so many cycles took together. benchmarks/turns.py is the other end, and does the same for Python. */

#ifndef TURNS_H
#define TURNS_H

#include <stdint.h>
#include <stdio.h>
#include <stdlib.h>
#include <time.h>

#define MAX_PAGES 1024

static void
fail(const char *what)
{
    perror(what);
    exit(1);
}

static int64_t
nanoseconds(void)
{
    struct timespec now;
    clock_gettime(CLOCK_MONOTONIC, &now);
    return now.tv_sec * INT64_C(1000000000) + now.tv_nsec;
}

static inline void
take_turns(void (*cycle)(uint32_t pages))
{
    uint32_t pages, cycles;
    while (scanf("%u %u", &pages, &cycles) == 2) {
        if (pages < 1 || pages > MAX_PAGES) {
            fprintf(stderr, "pages: 1 to %d\n", MAX_PAGES);
            exit(2);
        }
        int64_t started = nanoseconds();
        for (uint32_t i = 0; i < cycles; i++)
            cycle(pages);
        printf("%lld\n", (long long)(nanoseconds() - started));
        fflush(stdout);
    }
}

#endif
