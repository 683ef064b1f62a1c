"""Data sets: reading them from files, splitting them, and noticing when the same example is on both sides.

Knows nothing of what the examples mean. A split depends on the content of an example and the seed, not on its place.
"""

from __future__ import annotations

import csv
import hashlib
import json
import re
from collections.abc import Callable, Mapping, Sequence
from pathlib import Path
from typing import Any

from agentlightning.kit.errors import BadInputError, MissingExtraError, NotFoundError

_FORMATS = ".jsonl, .json, .csv, .parquet, or a folder saved by Hugging Face datasets"


def read_dataset(path: Path, *, columns: Sequence[str] = (), split: str | None = None) -> list[Any]:
    """Read tasks from JSONL, a JSON array, CSV, Parquet, or a Hugging Face folder.

    Args:
        path: File or folder. A folder was written by `save_to_disk`, or holds data files as the hub has them.
        columns: Keys each task has to have.
        split: Which part of a folder with several; by default `train`, or the only one.

    Raises:
        NotFoundError: There is no such file.
        BadInputError: It cannot be read, is empty, or a row lacks a column; the place is named.
        MissingExtraError: The format needs a package that is not installed.
    """
    if path.is_dir():
        rows = _read_folder(path, split)
    elif not path.is_file():
        raise NotFoundError(f"There is no file {path}.", hint=f"Give {_FORMATS}, with one task a row.")
    else:
        reader = _READERS.get(path.suffix.lower())
        if reader is None:
            raise BadInputError(f"{path.name}: unknown format {path.suffix!r}.", hint=f"Use {_FORMATS}.")
        try:
            rows = reader(path)
        except UnicodeDecodeError as error:
            raise BadInputError(f"{path} is not UTF-8 text: {error.reason} at byte {error.start}.") from error
    if not rows:
        raise BadInputError(f"{path} has no tasks.")
    _check_columns(path, rows, columns)
    return rows


def _check_columns(path: Path, rows: Sequence[Any], columns: Sequence[str]) -> None:
    for number, row in enumerate(rows, start=1):
        missing = [c for c in columns if not isinstance(row, Mapping) or c not in row]
        if missing:
            has = ", ".join(map(str, row)) if isinstance(row, Mapping) else type(row).__name__
            raise BadInputError(
                f"{path}: task {number} lacks the column(s) {', '.join(missing)} that the agent asks for.",
                hint=f"It has: {has}.",
            )


def _read_jsonl(path: Path) -> list[Any]:
    rows: list[Any] = []
    for number, line in enumerate(path.read_text(encoding="utf-8").splitlines(), start=1):
        if not line.strip():
            continue
        try:
            rows.append(json.loads(line))
        except json.JSONDecodeError as error:
            raise BadInputError(f"{path}, line {number} is not JSON: {error.msg}.") from error
    return rows


def _read_json(path: Path) -> list[Any]:
    try:
        value = json.loads(path.read_text(encoding="utf-8"))
    except json.JSONDecodeError as error:
        raise BadInputError(f"{path} is not JSON: {error.msg} (line {error.lineno}).") from error
    if not isinstance(value, list):
        raise BadInputError(
            f"{path} holds no array of tasks.", hint="Use [{...}, {...}] or one object a line (.jsonl)."
        )
    return value


def _read_csv(path: Path) -> list[Any]:
    with path.open(newline="", encoding="utf-8") as stream:
        return list(csv.DictReader(stream))


def _read_parquet(path: Path) -> list[Any]:
    try:
        from pyarrow import ArrowInvalid, parquet
    except ImportError as error:
        raise MissingExtraError("Parquet needs pyarrow.", hint="pip install 'agentlightning[parquet]'") from error
    try:
        return parquet.read_table(path).to_pylist()
    except ArrowInvalid as error:
        raise BadInputError(f"{path} is not Parquet: {error}.") from error


def _read_folder(path: Path, split: str | None) -> list[Any]:
    try:
        import datasets
    except ImportError as error:
        raise MissingExtraError(
            f"{path} is a folder; reading it needs Hugging Face datasets.", hint="pip install datasets"
        ) from error
    saved = (path / "dataset_info.json").exists() or (path / "dataset_dict.json").exists()
    try:
        loaded: Any = datasets.load_from_disk(str(path)) if saved else datasets.load_dataset(str(path))
    except (ValueError, OSError) as error:
        raise BadInputError(f"{path} is no Hugging Face data set: {error}", hint=f"Give {_FORMATS}.") from error
    if isinstance(loaded, Mapping):
        name = split or ("train" if "train" in loaded else next(iter(loaded)) if len(loaded) == 1 else None)
        if name not in loaded:
            raise BadInputError(f"{path} has no split {name!r}.", hint=f"There are: {', '.join(map(str, loaded))}.")
        loaded = loaded[name]
    return [dict(row) for row in loaded]


_READERS: dict[str, Callable[[Path], list[Any]]] = {
    ".jsonl": _read_jsonl,
    ".json": _read_json,
    ".csv": _read_csv,
    ".parquet": _read_parquet,
}


def example_key(example: Any) -> str:
    """What two examples share when they are the same but for case, spaces and the order of keys."""
    text = json.dumps(example, sort_keys=True, default=str, ensure_ascii=False)
    return hashlib.sha256(re.sub(r"\s+", " ", text).strip().lower().encode()).hexdigest()


def split_dataset(
    examples: Sequence[Any], fractions: Mapping[str, float], *, seed: int = 0, key: Callable[[Any], str] = example_key
) -> dict[str, list[Any]]:
    """Cut a data set into named parts; duplicates stay together, so no example is in two parts.

    Args:
        examples: What to cut.
        fractions: Share of each part, e.g. `{"train": 0.5, "val": 0.5}`; they sum up to 1.
        seed: Another seed is another split.
        key: Examples of the same key stay together (an author, a document); by default the content.

    Raises:
        BadInputError: The fractions do not sum up to 1, or there are fewer different examples than parts.
    """
    if not fractions or abs(sum(fractions.values()) - 1) > 1e-6 or min(fractions.values()) <= 0:
        raise BadInputError(f"The parts {dict(fractions)} do not sum up to 1.", hint="E.g. {'train': 0.6, 'val': 0.4}.")
    groups: dict[str, list[int]] = {}
    for index, example in enumerate(examples):
        groups.setdefault(key(example), []).append(index)
    if len(groups) < len(fractions):
        raise BadInputError(
            f"{len(groups)} different example(s) cannot be cut into {len(fractions)} parts.",
            hint="Add examples; a prompt that is chosen on what it learned from proves nothing.",
        )
    order = sorted(groups, key=lambda name: hashlib.sha256(f"{seed}/{name}".encode()).digest())
    parts: dict[str, list[Any]] = {}
    start, share = 0, 0.0
    for left, (name, fraction) in zip(range(len(fractions) - 1, -1, -1), fractions.items(), strict=True):
        share += fraction
        end = max(start + 1, min(round(share * len(order)), len(order) - left))
        parts[name] = [examples[index] for index in sorted(i for group in order[start:end] for i in groups[group])]
        start = end
    return parts


def check_leaks(parts: Mapping[str, Sequence[Any]], *, key: Callable[[Any], str] = example_key) -> None:
    """Make sure that no example is in two parts.

    Raises:
        BadInputError: One is; the message counts them and shows the first.
    """
    seen: dict[str, tuple[str, Any]] = {}
    leaks: list[tuple[str, str, Any]] = []
    for name, examples in parts.items():
        for example in examples:
            first, _ = seen.setdefault(key(example), (name, example))
            if first != name:
                leaks.append((first, name, example))
    if leaks:
        first, second, example = leaks[0]
        shown = json.dumps(example, default=str, ensure_ascii=False)
        raise BadInputError(
            f"{len(leaks)} example(s) of {second!r} are in {first!r} too, the first: {shown[:200]}.",
            hint="Take them out of one of the two: scores on examples that were learned from say nothing.",
        )
