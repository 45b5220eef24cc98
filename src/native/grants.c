/* Grant tables: copying one that others write, and decoding the copy (Xen public/grant_table.h).
 *
 * Called by xengrant.grant_snapshot. A full table has 32768 entries, and a program that watches every domain of a
 * host looks at millions a second.
 */

#include "native.h"

#include <string.h>

#define GTF_TYPE_MASK 3
#define GTF_INVALID 0
#define GTF_ACCEPT_TRANSFER 2
#define GTF_READONLY 4
#define GTF_READING 8
#define GTF_WRITING 16
#define IN_USE (GTF_READING | GTF_WRITING)

/* How often an entry of two words is loaded again that changes between the loads. */
#define TRIES 5

/* ---- Copying ------------------------------------------------------------------------------------------------ */

static uint64_t
load_word(const uint64_t *word)
{
    return __atomic_load_n(word, __ATOMIC_ACQUIRE);
}

/* Each word is loaded once, so no entry of one word is torn; those of two are loaded until the first, which has the
 * flags, stays the same. Returns whether anything differed from what was there. */
static int
copy_words(const uint64_t *from, uint64_t *to, size_t count, size_t words)
{
    int changed = 0;
    for (size_t i = 0; i < count; i += words) {
        uint64_t first = load_word(&from[i]), second = 0;
        for (int tries = 0; words == 2 && tries < TRIES; tries++) {
            second = load_word(&from[i + 1]);
            uint64_t again = load_word(&from[i]);
            if (again == first)
                break;
            first = again;
        }
        changed |= to[i] != first;
        to[i] = first;
        if (words == 2) {
            changed |= to[i + 1] != second;
            to[i + 1] = second;
        }
    }
    return changed;
}

static int
check_frames(const Py_buffer *source, const Py_buffer *copy, Py_ssize_t at, Py_ssize_t unit)
{
    if (unit != 8 && unit != 16)
        PyErr_Format(PyExc_ValueError, "entries of %zd bytes: 8 or 16", unit);
    else if (source->len % unit != 0 || (uintptr_t)source->buf % 8 != 0)
        PyErr_Format(PyExc_ValueError, "%zd bytes at %p are not aligned entries of %zd", source->len, source->buf, unit);
    else if (at < 0 || at > copy->len - source->len)
        PyErr_Format(PyExc_IndexError, "offset %zd: %zd bytes are not within the copy's %zd", at, source->len, copy->len);
    else if (at % 8 != 0 || (uintptr_t)copy->buf % 8 != 0)
        PyErr_Format(PyExc_ValueError, "offset %zd of a copy at %p is not aligned", at, copy->buf);
    else
        return 0;
    return -1;
}

PyObject *
copy_entries(PyObject *Py_UNUSED(module), PyObject *args)
{
    Py_buffer source, copy;
    Py_ssize_t at, unit;
    if (!PyArg_ParseTuple(args, "y*w*nn:copy_entries", &source, &copy, &at, &unit))
        return NULL;
    PyObject *result = NULL;
    if (check_frames(&source, &copy, at, unit) == 0)
        result = PyBool_FromLong(copy_words(source.buf, (uint64_t *)((char *)copy.buf + at), (size_t)source.len / 8,
                                            (size_t)unit / 8));
    PyBuffer_Release(&copy);
    PyBuffer_Release(&source);
    return result;
}

/* ---- Decoding: private memory, of any alignment, which no other domain writes ---------------------------------- */

typedef struct {
    int version;
    Py_buffer frames;
    Py_buffer status;
    uint32_t count; /* entries */
} Table;

typedef struct {
    uint16_t flags; /* with those of the status */
    uint16_t domid;
    uint64_t frame;
} Entry;

static int
open_table(Table *table, PyObject *args, const char *format)
{
    if (!PyArg_ParseTuple(args, format, &table->version, &table->frames, &table->status))
        return -1;
    Py_ssize_t count = table->frames.len / (table->version == 1 ? 8 : 16);
    if (table->version != 1 && table->version != 2)
        PyErr_Format(PyExc_ValueError, "version %d: a grant table is of version 1 or 2", table->version);
    else if (count > UINT32_MAX)
        PyErr_Format(PyExc_ValueError, "%zd entries, where a reference has 32 bits", count);
    else if (table->version == 2 && table->status.len / 2 < count)
        PyErr_Format(PyExc_ValueError, "%zd entries, and %zd bytes of status", count, table->status.len);
    else {
        table->count = (uint32_t)count;
        return 0;
    }
    PyBuffer_Release(&table->frames);
    PyBuffer_Release(&table->status);
    return -1;
}

static void
close_table(Table *table)
{
    PyBuffer_Release(&table->frames);
    PyBuffer_Release(&table->status);
}

static Entry
entry_at(const Table *table, uint32_t ref)
{
    uint64_t words[2];
    if (table->version == 1) {
        memcpy(words, (const char *)table->frames.buf + (size_t)ref * 8, 8);
        return (Entry){(uint16_t)words[0], (uint16_t)(words[0] >> 16), words[0] >> 32};
    }
    uint16_t status;
    memcpy(words, (const char *)table->frames.buf + (size_t)ref * 16, 16);
    memcpy(&status, (const char *)table->status.buf + (size_t)ref * 2, 2);
    Entry entry = {(uint16_t)words[0], (uint16_t)(words[0] >> 16), words[1]};
    if ((entry.flags & GTF_TYPE_MASK) != GTF_ACCEPT_TRANSFER)
        entry.flags = (uint16_t)((entry.flags & ~IN_USE) | (status & IN_USE));
    if ((entry.flags & GTF_TYPE_MASK) == GTF_TYPE_MASK) /* transitive: a reference of 32 bits, and padding */
        entry.frame &= UINT32_MAX;
    return entry;
}

static int
is_used(Entry entry)
{
    return (entry.flags & (GTF_TYPE_MASK | IN_USE)) != 0;
}

PyObject *
decode_grants(PyObject *Py_UNUSED(module), PyObject *args)
{
    Table table;
    if (open_table(&table, args, "iy*y*:decode_grants") < 0)
        return NULL;
    Py_ssize_t used = 0;
    for (uint32_t ref = 0; ref < table.count; ref++)
        used += is_used(entry_at(&table, ref));
    PyObject *result = NULL;
    PyObject *refs = PyBytes_FromStringAndSize(NULL, used * 4), *flags = PyBytes_FromStringAndSize(NULL, used * 2);
    PyObject *domids = PyBytes_FromStringAndSize(NULL, used * 2), *frames = PyBytes_FromStringAndSize(NULL, used * 8);
    if (refs != NULL && flags != NULL && domids != NULL && frames != NULL) {
        char *to_refs = PyBytes_AsString(refs), *to_flags = PyBytes_AsString(flags);
        char *to_domids = PyBytes_AsString(domids), *to_frames = PyBytes_AsString(frames);
        Py_ssize_t i = 0;
        for (uint32_t ref = 0; ref < table.count && i < used; ref++) {
            Entry entry = entry_at(&table, ref);
            if (!is_used(entry))
                continue;
            memcpy(to_refs + 4 * i, &ref, 4);
            memcpy(to_flags + 2 * i, &entry.flags, 2);
            memcpy(to_domids + 2 * i, &entry.domid, 2);
            memcpy(to_frames + 8 * i, &entry.frame, 8);
            i++;
        }
        result = PyTuple_Pack(4, refs, flags, domids, frames);
    }
    Py_XDECREF(refs);
    Py_XDECREF(flags);
    Py_XDECREF(domids);
    Py_XDECREF(frames);
    close_table(&table);
    return result;
}

/* ---- Counting by peer --------------------------------------------------------------------------------------- */

typedef struct {
    uint32_t granted, readonly, mapped, writing;
} Tally;

#define DOMIDS 65536

static void
count_entries(const Table *table, Tally *tallies)
{
    for (uint32_t ref = 0; ref < table->count; ref++) {
        Entry entry = entry_at(table, ref);
        if (!is_used(entry))
            continue;
        Tally *tally = &tallies[entry.domid];
        int type = entry.flags & GTF_TYPE_MASK;
        tally->granted += type != GTF_INVALID;
        if (type == GTF_ACCEPT_TRANSFER) /* there the other bits say how far the transfer is */
            continue;
        tally->readonly += type != GTF_INVALID && (entry.flags & GTF_READONLY) != 0;
        tally->mapped += (entry.flags & IN_USE) != 0;
        tally->writing += (entry.flags & GTF_WRITING) != 0;
    }
}

static PyObject *
tally_list(const Tally *tallies)
{
    PyObject *list = PyList_New(0);
    for (long domid = 0; list != NULL && domid < DOMIDS; domid++) {
        const Tally *tally = &tallies[domid];
        if (tally->granted == 0 && tally->mapped == 0)
            continue;
        PyObject *row = Py_BuildValue("lkkkk", domid, (unsigned long)tally->granted, (unsigned long)tally->readonly,
                                      (unsigned long)tally->mapped, (unsigned long)tally->writing);
        if (row == NULL || PyList_Append(list, row) < 0)
            Py_CLEAR(list);
        Py_XDECREF(row);
    }
    return list;
}

PyObject *
tally_grants(PyObject *Py_UNUSED(module), PyObject *args)
{
    Table table;
    if (open_table(&table, args, "iy*y*:tally_grants") < 0)
        return NULL;
    PyObject *list = NULL;
    Tally *tallies = PyMem_Calloc(DOMIDS, sizeof(Tally));
    if (tallies == NULL)
        PyErr_NoMemory();
    else {
        count_entries(&table, tallies);
        list = tally_list(tallies);
    }
    PyMem_Free(tallies);
    close_table(&table);
    return list;
}
