"""Kernel parameters for Linux under emulation. Read by `lab.machine` for dom0 and by `lab.dom0.guest`."""

__all__ = ["QUICK"]

QUICK = "mitigations=off rodata=off nokaslr cryptomgr.notests apparmor=0 random.trust_cpu=on"
"""Leaves out what costs seconds of emulated time at each boot and has no part in what the lab tests."""
