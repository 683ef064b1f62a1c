"""Whole stores on the move: export to files and back, and copies from one database to another.

Works on any table there is; what it has to know about them stands in `plan`.
"""

from agentlightning.store.transfer.copying import copy_store
from agentlightning.store.transfer.export import export_store
from agentlightning.store.transfer.importing import import_store
from agentlightning.store.transfer.selection import Selection

__all__ = ["Selection", "copy_store", "export_store", "import_store"]
