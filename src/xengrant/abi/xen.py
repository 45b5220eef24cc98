"""xen/include/public/xen.h: domain ids and hypercall numbers."""

from __future__ import annotations

PAGE_SIZE = 4096

DOMID_FIRST_RESERVED = 0x7FF0
DOMID_SELF = 0x7FF0

HYPERVISOR_MEMORY_OP = 12
HYPERVISOR_GRANT_TABLE_OP = 20
HYPERVISOR_SCHED_OP = 29
HYPERVISOR_EVENT_CHANNEL_OP = 32

# public/sched.h
SCHEDOP_YIELD = 0
