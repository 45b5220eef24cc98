"""What a job sees: it runs in dom0 of a real Xen, under dom0's own Python, and makes guests. Standard library only."""

from lab.dom0.guest import Command, Guest, GuestError, GuestTimeout
from lab.dom0.places import ARM64, BIN, GUEST_KIND, PROJECT, RELEASE, RESULTS, SITE, SITE_FILES, UNDER_TEST
from lab.dom0.xl import xl, xl_list

__all__ = [
    "ARM64",
    "BIN",
    "GUEST_KIND",
    "PROJECT",
    "RELEASE",
    "RESULTS",
    "SITE",
    "SITE_FILES",
    "UNDER_TEST",
    "Command",
    "Guest",
    "GuestError",
    "GuestTimeout",
    "xl",
    "xl_list",
]
