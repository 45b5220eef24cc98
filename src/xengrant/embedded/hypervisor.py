"""The hypervisor of the embedded machine: its domains, their birth and death, and who may find whom.

`Hypervisor` holds all state of a machine and belongs to the machine's one thread. The server's connections and
`machine.py` call it; grants, event channels and memory are in the modules beside it.
"""

from __future__ import annotations

import errno
from collections.abc import Callable
from typing import Any

from xengrant.abi.grant_table import RESERVED_CONSOLE, RESERVED_XENSTORE
from xengrant.abi.xen import DOMID_FIRST_RESERVED, DOMID_SELF
from xengrant.embedded.descriptors import share
from xengrant.embedded.domain import Domain, Settings, Table
from xengrant.embedded.event_channels import Channel, Port
from xengrant.embedded.files import fault
from xengrant.embedded.grants import Grants, Handle
from xengrant.embedded.linux import CallLater, Linux
from xengrant.embedded.memory import Frames, Memory
from xengrant.grant_snapshot import Snapshot

_NAME_MAX = 255
_BUILDERS_REFS = (RESERVED_CONSOLE, RESERVED_XENSTORE)
_DESCRIPTORS_OF_A_DOMAIN = 3  # its table and those two pages


class Hypervisor:
    """All domains of one machine.

    `call_later(seconds, function)` is the loop's; `introduced(domid, name)` and `released(domid)` are the toolstack's:
    they tell xenstore.
    """

    def __init__(
        self,
        settings: Settings,
        call_later: CallLater,
        introduced: Callable[[int, str], None],
        released: Callable[[int], None],
    ) -> None:
        self.settings = settings
        self.call_later = call_later
        self._introduced = introduced
        self._released = released
        self.domains: dict[int, Domain] = {}
        self.frames = Frames()
        self.grants = Grants(self.domains, self.frames)
        self._toolstack: dict[int, list[Handle]] = {}  # dom0's own maps of refs 0 and 1 of each domain
        self.create(0, "Domain-0", settings)

    def create(self, domid: int, name: str | None, settings: Settings) -> Domain:
        """Build a domain: a table of one frame, and the console and xenstore pages, granted to dom0 and mapped there.

        `ValueError` for a domid that cannot be or is taken.
        """
        if type(domid) is not int or not 0 <= domid < DOMID_FIRST_RESERVED:
            raise ValueError(f"domid {domid!r} is not within 0..{DOMID_FIRST_RESERVED - 1:#x}")
        if name is not None and (not isinstance(name, str) or not name.isprintable() or len(name) > _NAME_MAX):
            raise ValueError(f"a domain's name has at most {_NAME_MAX} printable characters")
        if domid in self.domains:
            state = "dying: others still map its pages" if self.domains[domid].dying else "there already"
            raise ValueError(f"domain {domid} is {state}")
        name = name or f"domain-{domid}"
        domain = Domain(domid, name, settings, Table(domid, settings.max_grant_frames, settings.grant_table_version))
        domain.linux = Linux(domain, self.frames, self.call_later)
        self.domains[domid] = domain
        try:
            if domid != 0:
                self._build(domain)
            self._introduced(domid, name)
        except BaseException:
            self._take_apart(domain)
            raise
        return domain

    def attach(self, domid: int) -> Domain:
        """The domain a process says it runs in, made if it is not there."""
        if not 0 <= domid < DOMID_FIRST_RESERVED:
            raise fault(errno.EINVAL, f"domid {domid} is outside 0..{DOMID_FIRST_RESERVED - 1:#x}")
        domain = self.domains.get(domid)
        if domain is None:
            if len(self.domains) * _DESCRIPTORS_OF_A_DOMAIN >= share():
                raise fault(
                    errno.ENOMEM,
                    f"processes have brought {len(self.domains)} domains into being, as many as the machine's "
                    "descriptors allow: destroy some, or raise its RLIMIT_NOFILE",
                )
            return self.create(domid, None, self.settings)
        if domain.dying:
            raise fault(errno.ESRCH, f"domain {domid} was destroyed, and stays until nobody maps its pages")
        return domain

    def attach_kernel(self, domid: int, process: int) -> Domain:
        """The domain whose kernel a process says it is from now on; `attach_process` then knows it."""
        _check_visible(process)
        domain = self.attach(domid)
        if domain.privileged:
            raise fault(errno.EBUSY, "domain 0 is the machine's own and runs Linux: choose another domid")
        if domain.kernel:
            raise fault(errno.EBUSY, f"domain {domid} has a kernel, process {domain.kernel}")
        if domain.has_processes:
            raise fault(
                errno.EBUSY,
                f"domain {domid} runs Linux, since processes have attached to it: choose another, or destroy it first",
            )
        domain.kernel = process
        return domain

    def attach_process(self, domid: int, process: int, *, kernel: bool) -> Domain:
        """The domain that a process opens a device of, in it or as its kernel."""
        if not kernel:
            domain = self.attach(domid)
            if domain.kernel:
                raise fault(errno.EBUSY, f"domain {domid} has no processes: its kernel is process {domain.kernel}")
            domain.has_processes = True
            return domain
        _check_visible(process)
        found = self.domains.get(domid)
        if found is None or found.dying or found.kernel != process:
            raise fault(errno.EPERM, f"process {process} is not the kernel of domain {domid}")
        return found

    def find_domain(self, domid: int, caller: Domain) -> Domain | None:
        """A domain as a hypercall of `caller` names it."""
        return caller if domid == DOMID_SELF else self.domains.get(domid)

    def get_port(self, domain: Domain, number: int) -> Port:
        """Hold a port that a process of the domain has bound (Linux evtchn_get)."""
        port = domain.ports.get(number)
        if port is None:
            raise fault(errno.EINVAL, f"domain {domain.domid} holds no port {number}")
        port.users += 1
        return port

    def unmap(self, handle: Handle) -> None:
        """Release a mapping; the last one of a dying domain's pages ends that domain."""
        self.grants.unmap(handle)
        self._bury(handle.granter)

    def hold_table(self, domain: Domain) -> None:
        """Its frames are mapped by somebody: a destroyed domain stays until they are not."""
        domain.table_maps += 1

    def drop_table(self, domain: Domain) -> None:
        domain.table_maps -= 1
        self._bury(domain)

    def destroy(self, domid: int) -> None:
        """`xl destroy`: the domain stops where it is. No byte is cleared and no event sent; what others map stays."""
        domain = self.domains.get(domid)
        if domain is None or domain.dying:
            raise LookupError(f"there is no domain {domid!r}")
        if domid == 0:
            raise ValueError("domain 0 is the machine's own: close the machine instead")
        self._take_apart(domain)
        self._released(domid)

    def close(self) -> None:
        """Give back every descriptor."""
        for domain in self.domains.values():
            domain.linux.stop()
            domain.table.close()
        for memory in self.frames.memories():
            memory.close()
        for channel in self._channels():
            channel.close()
        self.domains.clear()

    def abandon(self) -> None:
        """In a forked child: close the descriptors, touch nothing that the parent shares."""
        for domain in self.domains.values():
            domain.table.abandon()
        for memory in self.frames.memories():
            memory.abandon()
        for channel in self._channels():
            channel.close()

    def status(self, domain: Domain) -> dict[str, Any]:
        """What a domain holds; refs 0 and 1 and dom0's maps of them are the builder's and not counted."""
        builders = sum(handle.pins for maps in self._toolstack.values() for handle in maps) if domain.privileged else 0
        return {
            "name": domain.name,
            "state": domain.state,
            "lifetime": domain.settings.lifetime,
            "frames": domain.table.frames,
            "kernel": domain.kernel,
            "grants": 0 if domain.dying else _count_grants(domain),
            "mapped": sum(ref not in _BUILDERS_REFS for ref in domain.active),
            "maps": (domain.maptrack - builders) // domain.pins_for_each_map,
            "mmaps": sum(len(file.vmas) for file in domain.files),
            "ports": len(domain.ports),
            "files": len(domain.files),
            "deferred": len(domain.linux.deferred),
        }

    def _build(self, domain: Domain) -> None:
        """What a domain's builder leaves: refs 0 and 1, which xenconsoled and xenstored map."""
        # Apart, since dom0 may grant one of them on to another domain.
        memories: list[Memory] = []
        try:
            for ref in _BUILDERS_REFS:
                memories.append(Memory(1, f"builder-{domain.domid}-{ref}"))
        except BaseException:
            for memory in memories:
                memory.close()
            raise
        pages = self.frames.add(memories, domain.domid)
        domain.pages.update(pages)
        for ref, page in zip(_BUILDERS_REFS, pages, strict=True):
            domain.table.entries.grant(ref, 0, page.frame, writable=True)
        maps = self._toolstack[domain.domid] = []
        for ref in _BUILDERS_REFS:
            maps.append(self.grants.map(self.domains[0], domain.domid, ref, readonly=False))

    def _take_apart(self, domain: Domain) -> None:
        domain.dying = True
        for file in list(domain.files):
            file.abandon()
        for port in list(domain.ports.values()):
            port.close()
        domain.linux.stop()
        for handle in self._toolstack.pop(domain.domid, ()):
            self.grants.unmap(handle)
        for page in domain.pages:
            self.frames.drop(page)
        domain.pages.clear()
        self._bury(domain)

    def _bury(self, domain: Domain) -> None:
        if domain.dying and not domain.active and not domain.table_maps and self.domains.get(domain.domid) is domain:
            del self.domains[domain.domid]
            domain.table.close()

    def _channels(self) -> list[Channel]:
        found = {id(port.channel): port.channel for domain in self.domains.values() for port in domain.ports.values()}
        return list(found.values())


def _check_visible(process: int) -> None:
    """A domain without a kernel has process 0, so no kernel may; Linux says 0 of whom the machine cannot see."""
    if not process:
        raise fault(
            errno.EPERM,
            "the machine cannot see the process that would be the kernel: their pid namespaces must be the same, or "
            "the machine's an outer one",
        )


def _count_grants(domain: Domain) -> int:
    """References in use, those of the builder apart."""
    if not domain.kernel:
        return domain.linux.table.num_held
    return sum(ref not in _BUILDERS_REFS for ref in Snapshot(domain.table.entries).arrays().refs)

