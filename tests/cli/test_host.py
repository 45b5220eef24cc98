"""Which machine this is, as told by other machines' /sys and /proc."""

from __future__ import annotations

from pathlib import Path

import pytest

from xengrant.cli import host


def tree(root: Path, files: dict[str, str]) -> Path:
    for name, text in files.items():
        path = root / name
        path.parent.mkdir(parents=True, exist_ok=True)
        path.write_text(text)
    return root


XEN = {
    "sys/hypervisor/type": "xen\n",
    "sys/hypervisor/version/major": "4\n",
    "sys/hypervisor/version/minor": "17\n",
    "sys/hypervisor/version/extra": ".3\n",
}
MACHINES = [
    ("none", {}),
    ("none", {"sys/hypervisor/type": "kvm\n"}),
    ("dom0", {**XEN, "sys/hypervisor/guest_type": "PV\n", "proc/xen/capabilities": "control_d\n"}),
    ("dom0", {**XEN, "sys/hypervisor/guest_type": "PVH\n", "sys/hypervisor/start_flags/initdomain": "1\n"}),
    (
        "dom0",  # real Xen under QEMU
        {**XEN, "proc/xen/capabilities": "control_d\n", "sys/class/dmi/id/sys_vendor": "QEMU\n"},
    ),
    ("guest", {**XEN, "sys/hypervisor/guest_type": "PVH\n", "proc/xen/capabilities": "\n"}),
    ("guest", {**XEN, "sys/hypervisor/guest_type": "HVM\n", "sys/class/dmi/id/sys_vendor": "Xen\n"}),
    ("qemu", {**XEN, "sys/hypervisor/guest_type": "HVM\n", "sys/class/dmi/id/sys_vendor": "QEMU\n"}),
]


@pytest.mark.parametrize(("kind", "files"), MACHINES)
def test_the_kind_of_machine_is_told(tmp_path: Path, kind: str, files: dict[str, str]) -> None:
    assert host.look(tree(tmp_path, files), 4096).kind == kind


def test_xens_version_is_read(tmp_path: Path) -> None:
    assert host.look(tree(tmp_path, XEN), 4096).xen_version == "4.17.3"
    assert host.look(tmp_path / "elsewhere", 4096).xen_version is None


def test_a_device_file_tells_who_may_open_it_and_where_its_driver_is(tmp_path: Path) -> None:
    tree(tmp_path, {"dev/xen/gntdev": "", "sys/module/xen_gntdev/parameters/limit": "65536"})
    (tmp_path / "dev/xen/gntdev").chmod(0o660)
    text = host.device_file(tmp_path, "gntdev", "xen-gntdev")
    assert text is not None
    assert text.startswith("-rw-rw---- ")
    assert text.endswith(", module xen-gntdev")
    assert host.device_file(tmp_path, "gntalloc", "xen-gntalloc") is None
    tree(tmp_path, {"dev/xen/xenbus": ""})
    assert str(host.device_file(tmp_path, "xenbus", None)).endswith(", built into the kernel")


def test_pages_that_processes_map_are_counted(tmp_path: Path) -> None:
    maps = (
        "7f0000000000-7f0000002000 rw-s 00000000 00:05 12   /dev/xen/gntalloc\n"
        "7f0000010000-7f0000011000 rw-s 00002000 00:05 12   /dev/xen/gntalloc\n"
        "7f0000020000-7f0000030000 rw-s 00002000 00:05 13   /dev/xen/gntdev\n"
        "7f0000030000-7f0000040000 r--p 00000000 00:05 13   /tmp/dev/xen/gntalloc.txt\n"
    )
    tree(tmp_path, {"proc/7/maps": maps, "proc/7/comm": "server\n", "proc/8/maps": "", "proc/self/maps": maps})
    assert host.mapped_pages(tmp_path, "gntalloc") == {"7 server": 3}
    assert host.mapped_pages(tmp_path, "gntdev") == {"7 server": 16}
    assert host.mapped_pages(tmp_path, "evtchn") == {}


@pytest.mark.parametrize(
    ("release", "old"),
    [
        ("4.19.0", True),
        ("5.10.104-qubes", True),
        ("5.10.105", False),
        ("5.16.13", True),
        ("5.16.14", False),
        ("6.1.0-18-amd64", False),
        ("strange", False),
    ],
)
def test_kernels_older_than_the_fix_of_xsa_396_are_known(release: str, old: bool) -> None:
    assert host.predates_xsa_396(release) is old
