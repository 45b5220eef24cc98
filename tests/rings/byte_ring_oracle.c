/* The judge of xengrant.rings.byte_ring: the four rings of bytes of Xen's headers, written as the headers' comments and
 * docs/misc/xenstore-ring.txt say, one byte at a time. Not for memory that others write.
 */

#include <stddef.h>
#include <stdint.h>

#include <xen/io/console.h>
#include <xen/io/xs_wire.h>

#define RING(NAME, PAGE, BYTES, CONS, PROD)                                                                  \
    size_t NAME##_write(struct PAGE *page, const char *data, size_t length)                                  \
    {                                                                                                        \
        size_t done = 0;                                                                                     \
        while (done < length && page->PROD - page->CONS < sizeof page->BYTES)                                \
            page->BYTES[page->PROD++ & (sizeof page->BYTES - 1)] = data[done++];                             \
        return done;                                                                                         \
    }                                                                                                        \
    size_t NAME##_read(struct PAGE *page, char *data, size_t length)                                         \
    {                                                                                                        \
        size_t done = 0;                                                                                     \
        while (done < length && page->PROD != page->CONS)                                                    \
            data[done++] = page->BYTES[page->CONS++ & (sizeof page->BYTES - 1)];                             \
        return done;                                                                                         \
    }                                                                                                        \
    void NAME##_set(struct PAGE *page, uint32_t cons, uint32_t prod)                                         \
    {                                                                                                        \
        page->CONS = cons;                                                                                   \
        page->PROD = prod;                                                                                   \
    }

RING(console_to_front, xencons_interface, in, in_cons, in_prod)
RING(console_to_back, xencons_interface, out, out_cons, out_prod)
RING(xenstore_to_front, xenstore_domain_interface, rsp, rsp_cons, rsp_prod)
RING(xenstore_to_back, xenstore_domain_interface, req, req_cons, req_prod)
