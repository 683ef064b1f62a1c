"""Finds agents, data sets and models named on the command line."""

from __future__ import annotations

import contextlib
import importlib
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
    """Read tasks from a file or folder; see `read_dataset`.

    Args:
        path: The file.
        columns: Keys each task has to have.

    Raises:
        NotFoundError: There is no such file.
        BadInputError: The file cannot be read, is empty, or a row lacks a column; the line is named.
    """
    from agentlightning.algorithm.datasets import read_dataset

    return read_dataset(path, columns=columns or ())


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
