"""/dev/xen/privcmd as Linux does it (drivers/xen/privcmd.c): for dom0, what looks into other domains' grant tables.

A guest gets EPERM, as from every kernel since XSA-482.
"""

from __future__ import annotations

import errno
from typing import TYPE_CHECKING

from xengrant.abi import grant_table as table_abi
from xengrant.abi import privcmd as abi
from xengrant.abi.xen import DOMID_SELF, HYPERVISOR_GRANT_TABLE_OP, PAGE_SIZE
from xengrant.devices import wire
from xengrant.devices.wire import Argument, Direction, Ioctl, Part
from xengrant.embedded.files import Answer, File, Vma, fault

if TYPE_CHECKING:
    from xengrant.embedded.domain import Domain, Table
    from xengrant.embedded.hypervisor import Hypervisor
    from xengrant.embedded.memory import Memory


class _Vma(Vma):
    """An address range for resources; what it shows is the process's own memory until an ioctl replaces it."""

    def __init__(self, hypervisor: Hypervisor, length: int, *, writable: bool) -> None:
        self.length = length
        self.writable = writable
        self._hypervisor = hypervisor
        self._shown: Domain | None = None

    def show(self, domain: Domain) -> None:
        """Its table is mapped here from now on, instead of whatever was."""
        self._hypervisor.hold_table(domain)
        self.close()
        self._shown = domain

    def close(self) -> None:
        shown, self._shown = self._shown, None
        if shown is not None:
            self._hypervisor.drop_table(shown)


class Privcmd(File):
    """One open file."""

    def ioctl(self, call: Ioctl) -> Answer:
        if not self.domain.privileged:
            raise fault(errno.EPERM, "a guest may make no hypercalls of its own")
        if call.request == abi.HYPERCALL:
            return self._hypercall(call)
        if call.request == abi.MMAP_RESOURCE:
            return self._map_resource(call)
        raise OSError(errno.ENOTTY, "privcmd has no such ioctl")

    def mmap(self, length: int, offset: int, *, writable: bool) -> tuple[Vma, Answer]:
        return _Vma(self.hypervisor, length, writable=writable), Answer()

    def on_release(self) -> None:
        pass

    def _hypercall(self, call: Ioctl) -> Answer:
        op, (command, _address, count, *_) = abi.unpack_hypercall(call.arg)
        pointer = call.index().get((0, abi.hypercall_argument(1)))
        if op != HYPERVISOR_GRANT_TABLE_OP or command not in (table_abi.QUERY_SIZE, table_abi.GET_VERSION):
            raise fault(errno.ENOSYS, f"hypercall {op}, command {command}")
        if pointer is None or count != 1:
            raise fault(errno.EFAULT, "one argument is needed")
        if command == table_abi.QUERY_SIZE:
            self._query_size(pointer.data)
        else:
            self._get_version(pointer.data)
        return Answer()

    def _query_size(self, arg: bytearray) -> None:
        domain = self.hypervisor.find_domain(table_abi.unpack_query_size(arg), self.domain)
        if domain is None:
            table_abi.fill_query_size(arg, 0, 0, table_abi.GNTST_BAD_DOMAIN)
        else:
            table_abi.fill_query_size(arg, domain.table.frames, domain.table.max_frames, table_abi.GNTST_OKAY)

    def _get_version(self, arg: bytearray) -> None:
        domid = table_abi.unpack_get_version(arg)
        domain = self.hypervisor.find_domain(domid, self.domain)
        if domain is None:
            raise fault(errno.ESRCH, f"no domain {domid}")
        table_abi.fill_get_version(arg, domain.table.version)

    def _map_resource(self, call: Ioctl) -> Answer:
        """XENMEM_acquire_resource of a grant table: its size, or frames, to which the table grows."""
        domid, kind, id_, frame, count = abi.unpack_resource(call.arg)
        address = call.index().get((0, abi.RESOURCE_ADDR_POINTER))
        if (address is None) != (count == 0):
            raise fault(errno.EINVAL, "an address without frames, or frames without an address")
        if domid in (DOMID_SELF, self.domain.domid):
            raise fault(errno.EPERM, "nobody maps its own table")
        domain = self.hypervisor.find_domain(domid, self.domain)
        if domain is None:
            raise fault(errno.ESRCH, f"no domain {domid}")
        if kind != table_abi.RESOURCE_GRANT_TABLE:
            raise fault(errno.EOPNOTSUPP, "there are no other resources here than grant tables")
        memory = _resource(domain.table, id_)
        if address is None:
            abi.fill_resource(call.arg, memory.length // PAGE_SIZE)
            return Answer()
        needed = frame + count
        if id_ == table_abi.RESOURCE_ID_STATUS:
            needed = (needed - 1) * table_abi.V2_FRAMES_PER_STATUS_FRAME + 1
        if not domain.table.grow_to(needed):
            raise fault(errno.EINVAL, f"frames {frame} to {frame + count - 1}, beyond the table's maximum")
        vma = self._range(address)
        answer = _frames(memory, frame, count, vma)
        vma.show(domain)
        return answer

    def _range(self, address: Argument) -> _Vma:
        vma = self.vmas.get(wire.unpack_cookie(address.data))
        if address.direction is not Direction.MAP or not isinstance(vma, _Vma):
            raise fault(errno.EINVAL, "the address is no mapping of this file")
        return vma


def _resource(table: Table, id_: int) -> Memory:
    """The memory behind a resource's id."""
    if id_ == table_abi.RESOURCE_ID_SHARED:
        return table.memory
    if id_ == table_abi.RESOURCE_ID_STATUS and table.status_memory is not None:
        return table.status_memory
    raise fault(errno.EINVAL, f"a version {table.version} table has no frames of id {id_}")


def _frames(memory: Memory, frame: int, count: int, vma: _Vma) -> Answer:
    if count * PAGE_SIZE > vma.length:
        raise fault(errno.EINVAL, f"{count} frames do not fit in the {vma.length} bytes at the address")
    offset, length = frame * PAGE_SIZE, count * PAGE_SIZE
    if vma.writable:
        return Answer(parts=[Part(memory.fd, offset, length)])
    fd = memory.reopen_readonly()
    return Answer(parts=[Part(fd, offset, length)], temporary=[fd])
