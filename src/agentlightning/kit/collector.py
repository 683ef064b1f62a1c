"""Python's cycle collector, set for servers and stores: it runs less often while one of them is up.

A request makes thousands of containers that reference counting frees at once. With Python's default the collector
walks them every 700 allocations and finds next to nothing: a quarter of the CPU time of a gateway call, a sixth of that
of a rollout's life in the store.
"""

from __future__ import annotations

import gc
import threading

_SERVING = (10_000, 20, 50)

_lock = threading.RLock()  # a collection may begin in here, and end a store that nobody closed
_servers = 0
_before: tuple[int, int, int] | None = None


def relax_collector() -> None:
    """Collect less often until `restore_collector` was called as many times. Somebody's own higher setting stays."""
    global _servers, _before
    with _lock:
        _servers += 1
        now = gc.get_threshold()
        if _servers == 1 and 0 < now[0] < _SERVING[0]:
            _before = now
            gc.set_threshold(*_SERVING)


def restore_collector() -> None:
    """Undo one `relax_collector`; the last one brings back the setting from before, unless it was changed since."""
    global _servers, _before
    with _lock:
        _servers -= 1
        if _servers == 0 and _before is not None:
            if gc.get_threshold() == _SERVING:
                gc.set_threshold(*_before)
            _before = None
