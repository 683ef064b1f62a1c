"""What a running sandbox uses, as the kernel tells it: memory of all its processes, what lies in its folders."""

from __future__ import annotations

import contextlib
import os
import resource
from pathlib import Path

from agentlightning.tools.sandbox.result import KilledBecause, Limits

_PAGE = resource.getpagesize()
_ENTRY_BYTES = 4096  # what an empty file costs at most


def exceeded(pid: int, folders: tuple[Path, ...], limits: Limits) -> KilledBecause | None:
    """Which limit the run is over, if any. Reads; call it in a thread."""
    size, count = folder_use(folders, limits.files_count)
    if size > limits.files_mb * 2**20 or count > limits.files_count:
        return "disk"
    if memory_use(pid) > limits.memory_mb * 2**20:
        return "memory"
    return None


def memory_use(pid: int) -> int:
    """Resident bytes of a process and all that descend from it. Shared pages count once for each."""
    total, waiting = 0, [pid]
    while waiting:
        one = waiting.pop()
        with contextlib.suppress(OSError, ValueError, IndexError):  # it has ended meanwhile
            total += int(Path(f"/proc/{one}/statm").read_text().split()[1]) * _PAGE
            waiting += children(one)
    return total


def children(pid: int) -> list[int]:
    """The processes that a process started and that are still there."""
    found: list[int] = []
    with contextlib.suppress(OSError):
        for thread in os.listdir(f"/proc/{pid}/task"):
            found += [int(one) for one in Path(f"/proc/{pid}/task/{thread}/children").read_text().split()]
    return found


def folder_use(folders: tuple[Path, ...], enough: int) -> tuple[int, int]:
    """Bytes and number of entries below, without following links; stops counting soon after `enough` entries."""
    size = count = 0
    waiting = [str(folder) for folder in folders]
    while waiting and count <= enough:
        with contextlib.suppress(OSError), os.scandir(waiting.pop()) as entries:
            for entry in entries:
                count += 1
                if count > enough:
                    break
                with contextlib.suppress(OSError):
                    told = entry.stat(follow_symlinks=False)
                    size += max(told.st_blocks * 512, _ENTRY_BYTES)
                    if entry.is_dir(follow_symlinks=False):
                        waiting.append(entry.path)
    return size, count
