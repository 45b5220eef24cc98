"""The embedded machine: a small hypervisor for development, tests and demonstrations without Xen.

`Machine` is all that others need. From the bottom: `memory` (sealed memfds and frame numbers), `domain` (the record of
a domain), `grants` and `event_channels` (Xen's side), `hypervisor` (all domains), `linux` (a domain's kernel),
`gntalloc`, `gntdev`, `grant_copy`, `evtchn` and `privcmd` (its devices, each an open `files.File`), `xenstored`,
`stream`, `connection` and `xenbus` (a client's socket), `directory`, `server` and `machine`.
"""

from xengrant.embedded.machine import Machine

__all__ = ["Machine"]
