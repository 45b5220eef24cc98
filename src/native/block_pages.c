/* The pages of a BlockServer that are kept mapped, found by their refs. */

#include "block.h"

enum { MOST_KEPT = 1 << 20 }; /* pages of one group */

/* Refs are mostly neighbours, and so are their places then. A front end that chooses others has its own ring slow. */
static Kept *HOT
find_place(Kept *kept, uint32_t places, uint32_t ref)
{
    uint32_t at = ref & (places - 1);
    while (kept[at].page != NULL && kept[at].ref != ref)
        at = (at + 1) & (places - 1);
    return &kept[at];
}

char *HOT
find_page(const BlockServer *self, uint32_t ref)
{
    return self->places == 0 ? NULL : find_place(self->kept, self->places, ref)->page;
}

static int
make_places(BlockServer *self, uint32_t more)
{
    uint32_t places = self->places == 0 ? 256 : self->places;
    while (places / 2 < self->taken + more)
        places *= 2;
    if (places == self->places)
        return 0;
    Kept *kept = PyMem_Calloc(places, sizeof(Kept));
    if (kept == NULL) {
        PyErr_NoMemory();
        return -1;
    }
    for (uint32_t i = 0; i < self->places; i++)
        if (self->kept[i].page != NULL)
            *find_place(kept, places, self->kept[i].ref) = self->kept[i];
    PyMem_Free(self->kept);
    self->kept = kept;
    self->places = places;
    return 0;
}

void
forget_all(BlockServer *self)
{
    PyMem_Free(self->kept);
    self->kept = NULL;
    self->places = self->taken = 0;
    while (self->groups != NULL) {
        Group *group = self->groups;
        self->groups = group->next;
        PyBuffer_Release(&group->pages);
        PyMem_Free(group);
    }
}

int
keep_group(BlockServer *self, PyObject *refs, const Group *group)
{
    Py_ssize_t count = PyTuple_Size(refs);
    if (count > MOST_KEPT || group->pages.len != count * PAGE) {
        PyErr_Format(PyExc_ValueError, "%zd bytes are not the pages of %zd refs", group->pages.len, count);
        return -1;
    }
    uint32_t *numbers = PyMem_Calloc((size_t)count, sizeof(uint32_t));
    if (numbers == NULL) {
        PyErr_NoMemory();
        return -1;
    }
    int result = 0;
    for (Py_ssize_t i = 0; result == 0 && i < count; i++)
        result = parse_value(PyTuple_GetItem(refs, i), 32, &numbers[i]);
    if (result == 0)
        result = make_places(self, (uint32_t)count);
    for (Py_ssize_t i = 0; result == 0 && i < count; i++) {
        Kept *kept = find_place(self->kept, self->places, numbers[i]);
        self->taken += kept->page == NULL;
        *kept = (Kept){numbers[i], (char *)group->pages.buf + i * PAGE};
    }
    PyMem_Free(numbers);
    return result;
}
