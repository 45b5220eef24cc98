"""xen/include/public/io/console.h: struct xencons_interface, the page that a guest's console is."""

from __future__ import annotations

# Each of two rings of bytes, and where its indices lie; in and out are the guest's words.
IN = 0
IN_SIZE = 1024
OUT = 1024
OUT_SIZE = 2048
IN_CONS = 3072
IN_PROD = 3076
OUT_CONS = 3080
OUT_PROD = 3084

# A byte that Xen 4.21 has put behind them. Before, it was 0, as everything that follows the indices.
CONNECTION = 3088
CONNECTED = 0
DISCONNECTED = 1
