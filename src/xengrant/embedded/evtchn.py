"""/dev/xen/evtchn as Linux does it (drivers/xen/evtchn.c), as far as the hypervisor is needed: binding and closing.

Notifying, reading and unmasking happen in the process, on the socket that binding hands out
(`devices/socket_events.py`).
"""

from __future__ import annotations

import errno
from typing import TYPE_CHECKING

from xengrant.abi import evtchn as abi
from xengrant.abi.xen import DOMID_FIRST_RESERVED
from xengrant.devices.wire import Ioctl, Part
from xengrant.embedded.event_channels import Port, bind_interdomain, bind_unbound
from xengrant.embedded.files import Answer, File, fault

if TYPE_CHECKING:
    from xengrant.embedded.domain import Domain
    from xengrant.embedded.hypervisor import Hypervisor


class Evtchn(File):
    """One open file and the ports bound through it."""

    def __init__(self, hypervisor: Hypervisor, domain: Domain) -> None:
        super().__init__(hypervisor, domain)
        self._ports: dict[int, Port] = {}
        self._restricted: int | None = None

    def ioctl(self, call: Ioctl) -> Answer:
        if call.request == abi.BIND_UNBOUND_PORT:
            return self._bind_unbound(abi.unpack_word(call.arg))
        if call.request == abi.BIND_INTERDOMAIN:
            return self._bind_interdomain(*abi.unpack_interdomain(call.arg))
        if call.request == abi.UNBIND:
            return self._unbind(abi.unpack_word(call.arg))
        if call.request == abi.BIND_VIRQ:
            self._check_unrestricted()
            raise fault(errno.EINVAL, "the embedded machine has no virtual interrupts")
        if call.request == abi.RESTRICT_DOMID:
            return self._restrict(int.from_bytes(call.arg[:2], "little"))
        raise OSError(errno.ENOSYS, "evtchn has no such ioctl")

    def on_release(self) -> None:
        ports, self._ports = self._ports, {}
        for port in ports.values():
            port.put()

    def _bind_unbound(self, remote_domid: int) -> Answer:
        self._check_unrestricted()
        return self._bound(bind_unbound(self.domain, remote_domid & 0xFFFF))

    def _bind_interdomain(self, remote_domid: int, remote_port: int) -> Answer:
        if self._restricted not in (None, remote_domid):
            raise fault(errno.EACCES, f"this file is restricted to domain {self._restricted}")
        remote = self.hypervisor.find_domain(remote_domid & 0xFFFF, self.domain)
        return self._bound(bind_interdomain(self.domain, remote, remote_port))

    def _bound(self, port: Port) -> Answer:
        self._ports[port.number] = port
        return Answer(port.number, parts=[Part(port.end.fileno(), 0, 0)])

    def _unbind(self, number: int) -> Answer:
        if number > self.domain.max_port:
            raise fault(errno.EINVAL, f"port {number} is beyond {self.domain.max_port}")
        port = self._ports.pop(number, None)
        if port is None:
            raise fault(errno.ENOTCONN, f"port {number} is not bound through this file")
        port.put()
        return Answer()

    def _restrict(self, domid: int) -> Answer:
        self._check_unrestricted()
        if not 0 < domid < DOMID_FIRST_RESERVED:
            raise fault(errno.EINVAL, f"no domain {domid} to restrict to")
        self._restricted = domid
        return Answer()

    def _check_unrestricted(self) -> None:
        if self._restricted is not None:
            raise fault(errno.EACCES, f"this file is restricted to domain {self._restricted}")
