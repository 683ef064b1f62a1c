"""Finds an object by import path, and the import path of an object."""

from __future__ import annotations

import functools
import importlib
import importlib.util
import sys
import zlib
from importlib.machinery import PathFinder
from pathlib import Path
from typing import Any

from agentlightning.agent.errors import AgentLoadError


def load_object(path: str) -> Any:
    """Import `package.module:name` or `folder/file.py:name`; names may be dotted.

    The current folder counts as importable, as it does for `python -m`.

    Raises:
        AgentLoadError: The path is malformed, the module is missing or fails to import, or has no such name.
    """
    module_name, separator, name = path.rpartition(":")
    if not separator or not module_name or not name:
        raise AgentLoadError(
            f"{path!r} does not name an agent.", hint="Write 'package.module:name' or 'folder/file.py:name'."
        )
    module = _load_file(Path(module_name)) if module_name.endswith(".py") else _load_module(module_name)
    try:
        return functools.reduce(getattr, name.split("."), module)
    except AttributeError:
        public = ", ".join(sorted(n for n in vars(module) if not n.startswith("_"))[:20])
        raise AgentLoadError(f"{module_name} has no {name!r}.", hint=f"It has: {public}.") from None


def _load_module(name: str) -> Any:
    here = str(Path.cwd())
    if here not in sys.path and "" not in sys.path:
        sys.path.insert(0, here)
    try:
        return importlib.import_module(name)
    except ModuleNotFoundError as error:
        if error.name is not None and (name == error.name or name.startswith(f"{error.name}.")):
            raise AgentLoadError(
                f"There is no module {name!r}.", hint="Run from the folder that holds it, or install it."
            ) from error
        raise _failed(f"Importing {name}", error) from error
    except Exception as error:  # a module may raise anything; its author gets to read it
        raise _failed(f"Importing {name}", error) from error


def _failed(what: str, error: Exception) -> AgentLoadError:
    if isinstance(error, ModuleNotFoundError) and error.name:
        return AgentLoadError(
            f"{what} failed: it needs {error.name!r}, which is not installed.",
            hint=f"Install it, e.g. pip install {error.name}.",
        )
    return AgentLoadError(f"{what} failed: {type(error).__name__}: {error}")


def _load_file(path: Path) -> Any:
    if not path.is_file():
        raise AgentLoadError(f"There is no file {path}.")
    path = path.resolve()
    name = path.stem
    loaded = sys.modules.get(name)
    if loaded is not None and getattr(loaded, "__file__", None) == str(path):
        return loaded
    if loaded is not None:  # a file may be called like a module of Python's own
        name = f"{name}_{zlib.crc32(str(path).encode()):08x}"
    spec = importlib.util.spec_from_file_location(name, path)
    if spec is None or spec.loader is None:
        raise AgentLoadError(f"{path} is no Python file.")
    module = importlib.util.module_from_spec(spec)
    if str(path.parent) not in sys.path:
        sys.path.insert(0, str(path.parent))
    sys.modules[name] = module
    try:
        spec.loader.exec_module(module)
    except Exception as error:  # as above
        del sys.modules[name]
        raise _failed(f"Running {path}", error) from error
    return module


def import_path_of(obj: Any) -> str | None:
    """`module:name` under which another process finds this very object, or `None`."""
    module_name = getattr(obj, "__module__", None)
    qualified = getattr(obj, "__qualname__", None)
    if not module_name or not qualified or module_name == "__main__" or "<" in qualified:
        return None
    try:
        found = functools.reduce(getattr, qualified.split("."), sys.modules[module_name])
    except (AttributeError, KeyError):
        return None
    if found is not obj:
        return None
    spec = getattr(sys.modules[module_name], "__spec__", None)
    if spec is None:
        return None
    if "." in module_name or PathFinder.find_spec(module_name) is not None:
        return f"{module_name}:{qualified}"
    return f"{spec.origin}:{qualified}" if spec.origin and spec.origin.endswith(".py") else None
