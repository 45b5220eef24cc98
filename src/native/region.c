/* Region: the memory of a buffer, held for a call. */

#include "native.h"

int HOT
take_region(PyObject *owner, Mapping *mapping, int writing, Region *region)
{
    region->mapping = mapping != NULL && (mapping->writable || !writing) ? mapping : NULL;
    region->viewed = 0;
    if (region->mapping != NULL) {
        if (begin_export(mapping) < 0)
            return -1;
        region->at = mapping->address;
        region->length = mapping->length;
        return 0;
    }
    if (!writing && PyBytes_CheckExact(owner)) {
        region->at = PyBytes_AsString(owner);
        region->length = PyBytes_Size(owner);
        return 0;
    }
    if (PyObject_GetBuffer(owner, &region->view, writing ? PyBUF_WRITABLE : PyBUF_SIMPLE) < 0)
        return -1;
    region->viewed = 1;
    region->at = region->view.buf;
    region->length = region->view.len;
    return 0;
}

void HOT
release_region(Region *region)
{
    if (region->mapping != NULL)
        end_export(region->mapping);
    else if (region->viewed)
        PyBuffer_Release(&region->view);
}
