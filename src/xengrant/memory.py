"""Shared pages as a Python buffer: `Mapping`, the object that every device's mmap() returns and that shares and
mapped grants expose. Its code is in `_native.c`; this module gives it its public name and ties it to `os.fork`.
"""

import os

from xengrant import _native
from xengrant._native import Mapping

__all__ = ["PAGE_SIZE", "Mapping"]

PAGE_SIZE = 4096

os.register_at_fork(
    before=_native.before_fork,
    after_in_parent=_native.after_fork_in_parent,
    after_in_child=_native.after_fork_in_child,
)
