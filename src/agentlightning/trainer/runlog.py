"""What a run leaves on disk: its record (run.json), its metrics (metrics.jsonl) and TensorBoard events.

Knows nothing of algorithms; events are plain dicts.
"""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import orjson

from agentlightning.kit.clock import now
from agentlightning.kit.errors import StorageError
from agentlightning.kit.files import write_atomic

_LOGGED = ("step", "eval", "held_out")


class RunRecord:
    """`run.json`: one mapping, rewritten atomically at each update."""

    def __init__(self, directory: Path) -> None:
        self.path = directory / "run.json"
        self.data: dict[str, Any] = self._read()

    def _read(self) -> dict[str, Any]:
        if not self.path.exists():
            return {}
        try:
            return json.loads(self.path.read_text())
        except (OSError, json.JSONDecodeError) as error:
            raise StorageError(
                f"The run record {self.path} is unreadable: {error}.",
                hint="Start afresh with --fresh or another run id.",
            ) from error

    def update(self, **values: Any) -> None:
        """Merge values and write."""
        self.data.update(values, updated_at=now())
        write_atomic(self.path, orjson.dumps(self.data, option=orjson.OPT_INDENT_2))


class MetricsLog:
    """Appends step and evaluation events to `metrics.jsonl` and, when TensorBoard is installed, to `tensorboard/`."""

    def __init__(self, directory: Path, *, tensorboard: bool = True) -> None:
        directory.mkdir(parents=True, exist_ok=True)
        self.path = directory / "metrics.jsonl"
        self._tensorboard_path = directory / "tensorboard"
        self._tensorboard = _open_tensorboard(self._tensorboard_path) if tensorboard else None

    def append(self, event: dict[str, Any]) -> None:
        """Write one event; other types than `step`, `eval` and `held_out` are ignored."""
        if event.get("type") not in _LOGGED:
            return
        try:
            with self.path.open("ab") as stream:
                stream.write(orjson.dumps({"time": now(), **event}) + b"\n")
        except OSError as error:
            raise StorageError(f"Cannot write {self.path}: {error.strerror}.", hint="Free some disk space.") from error
        if self._tensorboard is not None:
            _write_scalars(self._tensorboard, event)

    def rewind(self, step: int) -> None:
        """Forget what is after `step`, so that a resumed run does not log a step twice."""
        kept = [e for e in self.read() if e["step"] < step or (e["type"] == "step" and e["step"] == step)]
        if self.path.exists():
            write_atomic(self.path, b"".join(orjson.dumps(e) + b"\n" for e in kept))

    def read(self) -> list[dict[str, Any]]:
        """All events; a torn last line (after a crash) is left out."""
        if not self.path.exists():
            return []
        events: list[dict[str, Any]] = []
        for line in self.path.read_bytes().splitlines():
            try:
                events.append(orjson.loads(line))
            except orjson.JSONDecodeError:
                continue
        return events

    def close(self) -> None:
        """Flush and release the TensorBoard file."""
        if self._tensorboard is not None:
            self._tensorboard.close()
            self._tensorboard = None


def _open_tensorboard(directory: Path) -> Any:
    # The writer of the tensorboard package itself: torch's wrapper would pull torch into this process.
    try:
        from tensorboard.summary.writer.event_file_writer import EventFileWriter
    except ImportError:
        return None
    return EventFileWriter(str(directory))


def _write_scalars(writer: Any, event: dict[str, Any]) -> None:
    from tensorboard.compat.proto.event_pb2 import Event  # pyright: ignore[reportAttributeAccessIssue]
    from tensorboard.compat.proto.summary_pb2 import Summary  # pyright: ignore[reportAttributeAccessIssue]

    group = {"step": "train", "held_out": "held_out"}.get(event["type"], f"eval/{event.get('name', 'val')}")
    values = [
        Summary.Value(tag=f"{group}/{key}", simple_value=float(value))
        for key, value in event.items()
        if key not in ("step", "steps") and isinstance(value, int | float) and not isinstance(value, bool)
    ]
    writer.add_event(Event(wall_time=now(), step=event["step"], summary=Summary(value=values)))
