/* Words: atomic access to 8, 16 and 32 bits of a buffer, and a full fence. And what reads the arguments of calls. */

#include "native.h"

typedef struct {
    Py_buffer view;
    void *at;
} Word;

/* The offset and the values are converted before the buffer is taken, since __index__ may run any code. */
int HOT
parse_offset(PyObject *offset, Py_ssize_t *at)
{
    if (PyLong_CheckExact(offset)) {
        *at = PyLong_AsSsize_t(offset);
        if (*at != -1 || !PyErr_Occurred())
            return 0;
        PyErr_Clear();
    }
    *at = PyNumber_AsSsize_t(offset, NULL); /* clips: the check against the length then refuses it */
    return *at == -1 && PyErr_Occurred() ? -1 : 0;
}

int
parse_value(PyObject *argument, unsigned int bits, uint32_t *value)
{
    PyObject *number = PyNumber_Index(argument);
    if (number == NULL)
        return -1;
    unsigned long parsed = PyLong_AsUnsignedLong(number);
    int failed = parsed == (unsigned long)-1 && PyErr_Occurred();
    if (failed && !PyErr_ExceptionMatches(PyExc_OverflowError)) {
        Py_DECREF(number);
        return -1;
    }
    if (failed || parsed > UINT32_MAX >> (32 - bits)) {
        PyErr_Clear();
        PyErr_Format(PyExc_OverflowError, "%R does not fit in %u unsigned bits", number, bits);
        Py_DECREF(number);
        return -1;
    }
    Py_DECREF(number);
    *value = (uint32_t)parsed;
    return 0;
}

int
check_count(const char *name, Py_ssize_t given, Py_ssize_t wanted)
{
    if (given == wanted)
        return 0;
    PyErr_Format(PyExc_TypeError, "%s() takes exactly %zd arguments (%zd given)", name, wanted, given);
    return -1;
}

static int
open_word(Word *word, PyObject *buffer, PyObject *offset, Py_ssize_t at, unsigned int bits, int storing)
{
    Py_ssize_t width = bits / 8;
    if (PyObject_GetBuffer(buffer, &word->view, PyBUF_SIMPLE) < 0)
        return -1;
    if (at < 0 || at > word->view.len - width) {
        PyErr_Format(PyExc_IndexError, "offset %R: a word of %zd bytes is not within the buffer's %zd bytes",
                     offset, width, word->view.len);
        goto refused;
    }
    word->at = (char *)word->view.buf + at;
    if ((uintptr_t)word->at % (uintptr_t)width != 0)
        PyErr_Format(PyExc_ValueError,
                     "offset %zd: a word of %zd bytes at address %p is not aligned (buffer of %zd bytes)", at,
                     width, word->at, word->view.len);
    else if (storing && word->view.readonly)
        PyErr_Format(PyExc_TypeError, "storing into a read-only buffer (offset %zd, %zd bytes)", at, width);
    else
        return 0;
refused:
    PyBuffer_Release(&word->view);
    return -1;
}

static PyObject *
close_word(Word *word, uint32_t value)
{
    PyBuffer_Release(&word->view);
    return PyLong_FromUnsignedLong(value);
}

#define DEFINE_LOAD(BITS)                                                                                    \
    PyObject *load##BITS(PyObject *Py_UNUSED(module), PyObject *const *args, Py_ssize_t nargs)               \
    {                                                                                                        \
        Word word;                                                                                           \
        Py_ssize_t at;                                                                                       \
        if (check_count("load" #BITS, nargs, 2) < 0 || parse_offset(args[1], &at) < 0 ||                     \
            open_word(&word, args[0], args[1], at, BITS, 0) < 0)                                             \
            return NULL;                                                                                     \
        return close_word(&word, __atomic_load_n((uint##BITS##_t *)word.at, __ATOMIC_ACQUIRE));              \
    }

#define DEFINE_STORE(BITS)                                                                                   \
    PyObject *store##BITS(PyObject *Py_UNUSED(module), PyObject *const *args, Py_ssize_t nargs)              \
    {                                                                                                        \
        Word word;                                                                                           \
        Py_ssize_t at;                                                                                       \
        uint32_t value;                                                                                      \
        if (check_count("store" #BITS, nargs, 3) < 0 || parse_offset(args[1], &at) < 0 ||                    \
            parse_value(args[2], BITS, &value) < 0 || open_word(&word, args[0], args[1], at, BITS, 1) < 0)   \
            return NULL;                                                                                     \
        __atomic_store_n((uint##BITS##_t *)word.at, (uint##BITS##_t)value, __ATOMIC_RELEASE);                \
        PyBuffer_Release(&word.view);                                                                        \
        Py_RETURN_NONE;                                                                                      \
    }

#define DEFINE_FETCH(OPERATION, BITS)                                                                        \
    PyObject *fetch_##OPERATION##BITS(PyObject *Py_UNUSED(module), PyObject *const *args, Py_ssize_t nargs)  \
    {                                                                                                        \
        Word word;                                                                                           \
        Py_ssize_t at;                                                                                       \
        uint32_t value;                                                                                      \
        if (check_count("fetch_" #OPERATION #BITS, nargs, 3) < 0 || parse_offset(args[1], &at) < 0 ||        \
            parse_value(args[2], BITS, &value) < 0 || open_word(&word, args[0], args[1], at, BITS, 1) < 0)   \
            return NULL;                                                                                     \
        return close_word(&word, __atomic_fetch_##OPERATION((uint##BITS##_t *)word.at,                       \
                                                            (uint##BITS##_t)value, __ATOMIC_SEQ_CST));       \
    }

#define DEFINE_COMPARE_EXCHANGE(BITS)                                                                        \
    PyObject *compare_exchange##BITS(PyObject *Py_UNUSED(module), PyObject *const *args, Py_ssize_t nargs)   \
    {                                                                                                        \
        Word word;                                                                                           \
        Py_ssize_t at;                                                                                       \
        uint32_t expected, desired;                                                                          \
        if (check_count("compare_exchange" #BITS, nargs, 4) < 0 || parse_offset(args[1], &at) < 0 ||         \
            parse_value(args[2], BITS, &expected) < 0 || parse_value(args[3], BITS, &desired) < 0 ||         \
            open_word(&word, args[0], args[1], at, BITS, 1) < 0)                                             \
            return NULL;                                                                                     \
        uint##BITS##_t seen = (uint##BITS##_t)expected;                                                      \
        __atomic_compare_exchange_n((uint##BITS##_t *)word.at, &seen, (uint##BITS##_t)desired, 0,            \
                                    __ATOMIC_SEQ_CST, __ATOMIC_SEQ_CST);                                     \
        return close_word(&word, seen);                                                                      \
    }

DEFINE_LOAD(8)
DEFINE_LOAD(16)
DEFINE_LOAD(32)
DEFINE_STORE(8)
DEFINE_STORE(16)
DEFINE_STORE(32)
DEFINE_FETCH(or, 8)
DEFINE_FETCH(or, 32)
DEFINE_FETCH(and, 8)
DEFINE_FETCH(and, 32)
DEFINE_COMPARE_EXCHANGE(16)
DEFINE_COMPARE_EXCHANGE(32)

PyObject *
fence(PyObject *Py_UNUSED(module), PyObject *Py_UNUSED(ignored))
{
    __atomic_thread_fence(__ATOMIC_SEQ_CST);
    Py_RETURN_NONE;
}
