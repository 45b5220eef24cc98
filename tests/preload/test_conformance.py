"""The conformance suite on the kernel's devices, `xen:`, which the preload library serves: `devices/kernel.py` and the
native calls of `_native.Descriptor` do here, with no Xen, what they do in the lab on real Xen.
"""

from __future__ import annotations

import json
import subprocess
import sys

from xengrant.embedded import Machine

from .programs import Actor, Preload, need

pytestmark = need()

# What no preload library serves: /sys/module and /dev/kmsg; and whose page local memory is, which the kernel looks up.
NOT_HERE = "share.limit_is_named,share.whole_limit,copy.mapped_destination"

SUITE = 240.0  # seconds, where it takes some fifteen


def selftest(preload: Preload, machine: Machine, domid: int, *options: str) -> subprocess.Popen[str]:
    # A URL in the environment of the tests would lead past the kernel's devices.
    return preload.start([sys.executable, "-m", "xengrant", "selftest", *options], machine.url(domid), XENGRANT_URL="")


def test_the_suite_passes_on_the_kernels_devices(machine: Machine, preload: Preload) -> None:
    machine.create(3)
    with Actor(selftest(preload, machine, 1, "--agent", "--peer", "2")):
        options = ("--peer", "1", "--third", "3", "--except", NOT_HERE, "--json")
        with Actor(selftest(preload, machine, 2, *options)) as runner:
            out, error = runner.process.communicate(timeout=SUITE)
    results = [json.loads(line) for line in out.splitlines()]
    *cases, _summary = results
    assert [case for case in cases if case["outcome"] == "failed"] == [], error
    passed = {case["case"] for case in cases if case["outcome"] == "passed"}
    assert {"share.process_end_revokes", "map.order_asked", "copy.offsets", "fork.child_cannot_use"} <= passed
    assert len(passed) > 100, f"only {len(passed)} cases could be run"
