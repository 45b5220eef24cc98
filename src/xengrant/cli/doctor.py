"""`xengrant doctor`: which machine this is, what of it works, and what to do about what does not.

Everything is tried, not guessed: devices are opened, a page is shared and taken back, a reference that nobody can have
granted is mapped to hear the hypervisor refuse it, a port is bound, xenstore is read. Nothing is left behind.
"""

from __future__ import annotations

import argparse
import contextlib
import mmap
import os
import platform
import struct
import threading
from collections.abc import Callable, Iterator
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Literal, TypeVar

import xengrant
from xengrant import _native
from xengrant.abi import grant_table as abi
from xengrant.abi import privcmd
from xengrant.abi.xen import DOMID_FIRST_RESERVED, DOMID_SELF, HYPERVISOR_GRANT_TABLE_OP
from xengrant.cli import arguments, host, output, statuses
from xengrant.cli.survey import domain_name, is_domid
from xengrant.devices import Device, Pointer
from xengrant.devices.kernel import MODULES

_ROOT = Path("/")
_DEVICES = ("gntalloc", "gntdev", "evtchn", "xenbus", "privcmd")
_SECONDS = 5.0  # for each try: a device can wait for a xenstored that is not there
_MARKS = {"ok": "green", "note": "cyan", "warn": "yellow", "MISSING": "red"}

Status = Literal["ok", "note", "warn", "MISSING"]
_T = TypeVar("_T")


@dataclass(frozen=True, slots=True)
class Finding:
    """One thing looked at. `remedy` says what to do, where there is something to do."""

    topic: str
    name: str
    status: Status
    text: str
    remedy: str | None = None


def configure(parser: argparse.ArgumentParser) -> None:
    parser.description = (
        "Looks at the machine that --url names (by default this kernel's own) and tries each thing that xengrant\n"
        "needs: sharing, mapping, notifying and meeting. Changes nothing. Exit status 0 where all four work, else 1."
    )
    parser.epilog = arguments.examples(
        """
        xengrant doctor
        xengrant doctor --json
        xengrant doctor --url 'embedded:/run/user/1000/xengrant?domid=1'
        """
    )


def run(args: argparse.Namespace) -> int:
    with xengrant.connect(args.url) as domain:
        machine = _Machine.of(domain)
        findings = [*_machine(machine), *_program(machine)]
        works: dict[str, bool] = {}
        if machine.kind != "none":
            tried = list(_tries(domain))
            works = {finding.name: finding.status == "ok" for finding in tried}
            findings += [*_devices(machine), *tried, *_limits(domain, machine), *_log(domain)]
    usable = bool(works) and all(works.values())
    if args.json:
        output.emit_json(
            usable=usable, kind=machine.kind, url=machine.url, works=works, findings=[asdict(f) for f in findings]
        )
    else:
        _show(findings, usable=usable)
    return statuses.DONE if usable else statuses.FAILED


@dataclass(frozen=True, slots=True)
class _Machine:
    url: str
    kind: str  # as of host.Host, or "embedded"
    host: host.Host

    @classmethod
    def of(cls, domain: xengrant.Domain) -> _Machine:
        here = host.look(_ROOT, mmap.PAGESIZE)
        return cls(domain.url, here.kind if domain.url == "xen:" else "embedded", here)


def _show(findings: list[Finding], *, usable: bool) -> None:
    output.emit_table(
        ["", "what", "is"], [[f.status, f"{f.topic} {f.name}", f.text] for f in findings], styles=dict(_MARKS)
    )
    remedies = [f for f in findings if f.remedy]
    if remedies:
        output.emit()
        output.emit(output.style("What to do:", "bold"))
        for finding in remedies:
            output.emit(f"  {finding.topic} {finding.name}: {finding.remedy}")
    output.emit()
    verdict = "usable: sharing, mapping, notifying and meeting work here" if usable else "not usable as it is"
    output.emit(output.style(verdict, "green" if usable else "red", "bold"))


def _machine(machine: _Machine) -> Iterator[Finding]:
    here = machine.host
    version = f"Xen {here.xen_version}" if here.xen_version else "Xen"
    if machine.kind == "embedded":
        yield Finding("machine", "kind", "ok", f"an embedded machine, {machine.url}")
    elif machine.kind == "none":
        yield Finding(
            "machine",
            "kind",
            "MISSING",
            "this kernel does not run on Xen",
            "see it work without Xen: xengrant demo. To develop without it: start `xengrant machine` and set "
            "XENGRANT_URL to what it prints",
        )
    elif machine.kind == "qemu":
        yield Finding(
            "machine",
            "kind",
            "warn",
            f"QEMU's emulation of {version}, a guest of KVM",
            "it maps and copies no grants: pages can only be shared with QEMU itself",
        )
    else:
        what = "dom0" if machine.kind == "dom0" else "a guest"
        yield Finding("machine", "kind", "ok", f"{what} of {version}, {here.guest_type or 'type unknown'}")


def _program(machine: _Machine) -> Iterator[Finding]:
    release = os.uname().release
    if machine.kind not in ("embedded", "none") and host.predates_xsa_396(release):
        yield Finding(
            "kernel",
            "version",
            "warn",
            f"Linux {release} is older than the fix of XSA-396",
            "unless the distribution has backported it, upgrade: a peer can keep using revoked pages",
        )
    else:
        yield Finding("kernel", "version", "ok", f"Linux {release}")
    if machine.host.page_size != xengrant.PAGE_SIZE:
        remedy = "boot a kernel with pages of 4096 bytes, Xen's own"
        yield Finding("kernel", "pages", "MISSING", f"pages of {machine.host.page_size} bytes", remedy)
    if struct.calcsize("P") == 4 and platform.machine() in ("x86_64", "aarch64"):
        text = "a 32-bit program on a 64-bit kernel, whose grant devices answer ENOTTY"
        yield Finding("python", "size", "MISSING", text, "use a 64-bit Python")
    python = f"Python {platform.python_version()}"
    yield Finding("xengrant", "version", "ok", f"{xengrant.__version__}, {python}, {Path(_native.__file__ or '').name}")


def _devices(machine: _Machine) -> Iterator[Finding]:
    """The files; whether they work is tried afterwards."""
    if machine.kind == "embedded":
        return
    for name in _DEVICES:
        module = MODULES.get(name)
        text = host.device_file(_ROOT, name, module)
        if text is not None:
            yield Finding("device", name, "ok", text)
        elif name == "privcmd":
            yield Finding("device", name, "note", "no /dev/xen/privcmd, which only dom0 can use")
        else:
            remedy = f"modprobe {module}" if module else "use a kernel that has it, or the host's /dev/xen"
            yield Finding("device", name, "MISSING", f"no /dev/xen/{name}", remedy)


def _tries(domain: xengrant.Domain) -> Iterator[Finding]:
    """What a program needs, each tried; the names are what the JSON calls `works`."""
    yield _try("share", lambda: _share(domain))
    yield _try("map", lambda: _map(domain))
    yield _try("notify", lambda: _notify(domain))
    yield _try("meet", lambda: _meet(domain))


def _try(name: str, action: Callable[[], str]) -> Finding:
    try:
        return Finding("try", name, "ok", _within(_SECONDS, action))
    except (xengrant.GrantError, OSError, ValueError) as error:
        return Finding("try", name, "MISSING", getattr(error, "strerror", None) or str(error))


def _within(seconds: float, action: Callable[[], _T]) -> _T:
    """What `action` returns or raises, or `TimeoutError`: some of these calls wait in the kernel for ever."""
    results: list[_T] = []
    errors: list[BaseException] = []

    def work() -> None:
        try:
            results.append(action())
        except BaseException as error:  # raised again below
            errors.append(error)

    thread = threading.Thread(target=work, daemon=True)
    thread.start()
    thread.join(seconds)
    if thread.is_alive():
        raise TimeoutError(f"no answer in {seconds:g} seconds; does xenstored run?")
    if errors:
        raise errors[0]
    return results[0]


def _share(domain: xengrant.Domain) -> str:
    # A domid that nobody has: the page is granted to no one.
    with domain.gntshr() as gntshr, gntshr.share_pages(DOMID_FIRST_RESERVED - 1, writable=False) as share:
        return f"/dev/xen/gntalloc: a page was shared (ref {share.refs[0]}) and taken back"


def _map(domain: xengrant.Domain) -> str:
    with domain.gnttab() as gnttab:
        try:
            gnttab.map((0, 0xFFFFFFFF), writable=False).close()
        except xengrant.MapError:
            return "/dev/xen/gntdev: the hypervisor answers"
        raise ValueError("/dev/xen/gntdev: the hypervisor mapped a ref that cannot be")


def _notify(domain: xengrant.Domain) -> str:
    with domain.evtchn() as evtchn, evtchn.bind_unbound(0) as port:
        return f"/dev/xen/evtchn: port {port.number} was bound and closed"


def _meet(domain: xengrant.Domain) -> str:
    return f"/dev/xen/xenbus: xenstore says that this is domain {domain.domid}"


def _limits(domain: xengrant.Domain, machine: _Machine) -> Iterator[Finding]:
    limit = _parameter(domain, "xen_gntalloc", "limit")
    if limit is not None:
        text = f"{limit} pages that all processes of this domain may share together{_used(machine, 'gntalloc')}"
        yield Finding("limit", "gntalloc", "note", text)
    limit = _parameter(domain, "xen_gntdev", "limit")
    if limit is not None:
        yield Finding("limit", "gntdev", "note", f"{limit} grants in one map{_used(machine, 'gntdev')}")
    freed = _parameter(domain, "grant_table", "free_per_iteration")
    if freed is not None:
        text = "all at once" if freed == "0" else f"{freed} pages a second"
        yield Finding("limit", "reclaim", "note", f"{text}, of pages revoked while the peer mapped them")
    yield from _tables(domain)


def _parameter(domain: xengrant.Domain, module: str, name: str) -> str | None:
    with contextlib.suppress(xengrant.GrantError, OSError):
        return domain.system.parameter(module, name)
    return None


def _used(machine: _Machine, device: str) -> str:
    if machine.kind == "embedded":
        return ""
    pages = host.mapped_pages(_ROOT, device)
    users = sorted(pages, key=lambda user: -pages[user])[:3]
    if not users:
        return ""
    named = ", ".join(f"{user}: {pages[user]}" for user in users)
    return f"; {sum(pages.values())} pages mapped by {len(pages)} processes ({named})"


def _tables(domain: xengrant.Domain) -> Iterator[Finding]:
    """The size of every domain's grant table, which only dom0 may ask."""
    try:
        device = _within(_SECONDS, lambda: domain.system.open("privcmd"))
    except (xengrant.GrantError, OSError) as error:
        yield Finding("table", "size", "note", f"cannot be asked: {getattr(error, 'strerror', None) or error}")
        return
    try:
        frames, most = _query_size(device, DOMID_SELF)
        yield Finding("table", "size", *_fullness("this domain's grant table", frames, most))
        for domid, name in _domains(domain):
            with contextlib.suppress(OSError):
                frames, most = _query_size(device, domid)
                yield Finding("table", f"of domain {domid}", *_fullness(f"{name}'s grant table", frames, most))
    except OSError as error:
        text = f"only dom0 may ask the hypervisor: {error.strerror}"
        yield Finding("table", "size", "note", text)
    finally:
        device.close()


def _fullness(whose: str, frames: int, most: int) -> tuple[Status, str, str | None]:
    text = f"{whose} has {frames} of {most} frames ({frames * abi.V1_ENTRIES_PER_FRAME} entries of version 1)"
    if frames < most:
        return "ok", text, None
    return "warn", text, "the table cannot grow: raise max_grant_frames in the domain's configuration"


def _query_size(device: Device, domid: int) -> tuple[int, int]:
    """(frames, most frames) of a domain's grant table; OSError where the hypervisor or the kernel refuses."""
    query = abi.pack_query_size(domid)
    arg = privcmd.pack_hypercall(HYPERVISOR_GRANT_TABLE_OP, abi.QUERY_SIZE, 0, 1)
    device.ioctl(privcmd.HYPERCALL, arg, [Pointer(arg, privcmd.hypercall_argument(1), query, "inout")])
    frames, most, status = abi.query_size_result(query)
    if status != abi.GNTST_OKAY:
        raise OSError(f"GNTTABOP_query_size: status {status}")
    return frames, most


def _domains(domain: xengrant.Domain) -> list[tuple[int, str]]:
    """(domid, name) of the other domains, as dom0 sees them; none elsewhere."""

    def ask() -> list[tuple[int, str]]:
        with domain.xenstore() as store:
            domids = sorted(int(name) for name in store.directory("/local/domain") if is_domid(name))
            others = [domid for domid in domids if domid != domain.domid]
            return [(domid, domain_name(store, domid) or f"domain {domid}") for domid in others]

    try:
        return _within(_SECONDS, ask)
    except (xengrant.GrantError, OSError):
        return []


def _log(domain: xengrant.Domain) -> Iterator[Finding]:
    """What the kernel complained of in the last hour."""
    lines: list[str] = []
    with contextlib.suppress(xengrant.GrantError, OSError):
        lines = domain.system.kernel_log(3600)
    full = [line for line in lines if "max_grant_frames reached" in line]
    if full:
        yield Finding(
            "log", "table full", "warn", full[-1].strip(), "raise max_grant_frames in the domain's configuration"
        )
    pending = [line for line in lines if "still pending" in line or "still in use" in line]
    if pending:
        yield Finding(
            "log",
            "revoked pages",
            "warn",
            f"{len(pending)} times a peer still mapped what was revoked: {pending[-1].strip()}",
            "look in the peer for a program that keeps the pages mapped",
        )
