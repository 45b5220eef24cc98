"""Data between domains, not bytes: NumPy arrays and Arrow tables in shared pages, Python objects over a vchan.

Arrays need numpy and tables pyarrow (`pip install numpy pyarrow`), which are imported by the first call that needs
them. What the peer says of its pages is checked before it is used.
"""

from xengrant.data.arrays import MappedArray, SharedArray, map_array, new_array, share_array
from xengrant.data.objects import recv_object, send_object
from xengrant.data.tables import MappedTable, SharedTable, map_table, share_table

__all__ = [
    "MappedArray",
    "MappedTable",
    "SharedArray",
    "SharedTable",
    "map_array",
    "map_table",
    "new_array",
    "recv_object",
    "send_object",
    "share_array",
    "share_table",
]
