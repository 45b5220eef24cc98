"""Shared pages as a Python buffer: `Mapping`, which every device's mmap() returns and every share and mapped grant
exposes. It is written in C, in `src/native/mapping.c` and its neighbours; this module is its public home.
"""

from xengrant._native import Mapping

__all__ = ["PAGE_SIZE", "Mapping"]

PAGE_SIZE = 4096
