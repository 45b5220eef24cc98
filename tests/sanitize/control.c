/* Faults that a sanitizer has to report, so that a run without reports says something. */

#include <pthread.h>
#include <stdlib.h>
#include <string.h>

static int shared;

static void *
add(void *unused)
{
    for (int i = 0; i < 1000; i++)
        shared++;
    return unused;
}

int
race(void)
{
    pthread_t first, second;
    if (pthread_create(&first, NULL, add, NULL) != 0 || pthread_create(&second, NULL, add, NULL) != 0)
        abort();
    pthread_join(first, NULL);
    pthread_join(second, NULL);
    return shared;
}

int
overrun(int at)
{
    char *volatile hidden = malloc(8); /* or the compiler knows how long it is */
    char *memory = hidden;
    memset(memory, 1, 8);
    int found = memory[at];
    free(memory);
    return found;
}

int
overflow(int value)
{
    return value + 2147483647;
}
