"""Finds agents, data sets and models named on the command line."""

from __future__ import annotations

import contextlib
import importlib
import json
import os
import re
import sys
from collections.abc import Generator
from pathlib import Path
from typing import Any

from agentlightning.kit.errors import BadInputError, NotFoundError


def load_object(reference: str) -> Any:
    """Import `package.module:name` or `path/to/file.py:name`.

    Raises:
        BadInputError: The reference has the wrong form, or importing it fails; the cause is named.
        NotFoundError: File, module or name do not exist; the message lists the callables there are.
    """
    target, separator, name = reference.rpartition(":")
    if not separator or not name.isidentifier():
        raise BadInputError(
            f"{reference!r} names no agent.", hint="Use path/to/file.py:function or package.module:function."
        )
    module = _load_module(target)
    if not hasattr(module, name):
        callables = [n for n, v in vars(module).items() if callable(v) and not n.startswith("_")]
        raise NotFoundError(f"{target} has no {name!r}.", hint=f"It defines: {', '.join(callables) or 'no callable'}.")
    return getattr(module, name)


def _load_module(target: str) -> Any:
    path = Path(target)
    if path.suffix == ".py":
        if not path.is_file():
            raise NotFoundError(f"There is no file {target}.", hint="Check the path; it is relative to this folder.")
        folder = str(path.resolve().parent)
        if folder not in sys.path:
            sys.path.insert(0, folder)
        target = path.stem
    elif "" not in sys.path:
        sys.path.insert(0, "")
    try:
        return importlib.import_module(target)
    except ModuleNotFoundError as error:
        if error.name == target.split(".")[0]:
            raise NotFoundError(
                f"There is no module {target!r}.", hint="Check the name, or give a file path."
            ) from error
        raise BadInputError(
            f"Importing {target} failed: it needs {error.name!r}.", hint=f"pip install {error.name}"
        ) from error
    except Exception as error:  # a module may raise anything; its author gets to read it
        if _lacks_key(error):
            with _placeholder_keys():
                return _load_module(target)
        raise BadInputError(f"Importing {target} failed: {type(error).__name__}: {error}") from error


_KEYS = ("OPENAI_API_KEY", "ANTHROPIC_API_KEY")


def _lacks_key(error: Exception) -> bool:
    """Whether a client that the agent makes when it is imported wants a key; runners give it one, here is none."""
    return (
        any(name not in os.environ for name in _KEYS) and re.search("api_?key", str(error), re.IGNORECASE) is not None
    )


@contextlib.contextmanager
def _placeholder_keys() -> Generator[None]:
    missing = [name for name in _KEYS if name not in os.environ]
    os.environ.update(dict.fromkeys(missing, "unused"))
    try:
        yield
    finally:
        for name in missing:
            os.environ.pop(name, None)


def load_dataset(path: Path, *, columns: list[str] | None = None) -> list[Any]:
    """Read tasks from JSONL, a JSON array or CSV.

    Args:
        path: The file.
        columns: Keys each task has to have.

    Raises:
        NotFoundError: There is no such file.
        BadInputError: The file cannot be read, is empty, or a row lacks a column; the line is named.
    """
    if not path.is_file():
        raise NotFoundError(f"There is no file {path}.", hint="Give a .jsonl, .json or .csv file with one task a row.")
    try:
        rows = _READERS[path.suffix.lower()](path)
    except KeyError:
        raise BadInputError(
            f"{path.name}: unknown format {path.suffix!r}.", hint="Use .jsonl, .json or .csv."
        ) from None
    if not rows:
        raise BadInputError(f"{path} has no tasks.")
    for number, row in enumerate(rows, start=1):
        missing = [c for c in columns or [] if not isinstance(row, dict) or c not in row]
        if missing:
            has = ", ".join(row) if isinstance(row, dict) else type(row).__name__
            raise BadInputError(
                f"{path}: task {number} lacks the column(s) {', '.join(missing)} that the agent asks for.",
                hint=f"It has: {has}.",
            )
    return rows


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
    import csv

    with path.open(newline="", encoding="utf-8") as stream:
        return list(csv.DictReader(stream))


_READERS = {".jsonl": _read_jsonl, ".json": _read_json, ".csv": _read_csv}


def resolve_model(name: str | None) -> str:
    """Resolve a model argument.

    None or `nano` is the embedded model, `name[@version]` a registered one, anything else a path or hub id.
    """
    from agentlightning.config import Settings
    from agentlightning.registry import ModelRegistry

    if name in (None, "nano"):
        from agentlightning import nano

        return str(nano.model_path())
    assert name is not None
    if Path(name).exists():
        return name
    registry = ModelRegistry(Settings().models_path)
    if registry.versions(name.partition("@")[0]):
        return str(registry.get(name).path)
    return name


def required_columns(agent: Any) -> list[str]:
    """Names a plain function's tasks have to have, when it takes more than the whole task.

    Decorated functions, `LitAgent`s and commands take the task as a whole and need no column.
    """
    import inspect

    if not inspect.isfunction(agent):
        return []
    required = [
        parameter.name
        for parameter in inspect.signature(agent).parameters.values()
        if parameter.default is inspect.Parameter.empty
        and parameter.kind in (inspect.Parameter.POSITIONAL_OR_KEYWORD, inspect.Parameter.KEYWORD_ONLY)
    ]
    return required if len(required) > 1 else []
