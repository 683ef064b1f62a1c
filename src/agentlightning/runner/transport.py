"""How an agent travels to a fresh interpreter: by import path where it has one, else by value, else by its script.

Knows nothing of processes.
"""

from __future__ import annotations

import functools
import runpy
import sys
from dataclasses import dataclass
from pathlib import Path
from types import ModuleType
from typing import Any, Literal

import cloudpickle

from agentlightning.agent.errors import AgentLoadError
from agentlightning.agent.loading import import_path_of, load_object

_SCRIPT_NAME = "__mp_main__"
"""What a script is called when it is run again for its definitions, as `multiprocessing` does."""


@dataclass(frozen=True)
class Parcel:
    """Something on its way to another process."""

    kind: Literal["import", "value", "script"]
    content: Any


def pack(obj: Any) -> Parcel:
    """Prepare an object for the journey.

    Raises:
        AgentLoadError: It has no import path and cannot be pickled.
    """
    if isinstance(obj, str):
        return Parcel("import", obj)
    path = import_path_of(obj)
    if path is not None:
        return Parcel("import", path)
    try:
        return Parcel("value", cloudpickle.dumps(obj))
    except Exception as error:  # what an object's own pickling raises
        script = _script_of(obj)
        if script is not None:
            return Parcel("script", script)
        raise AgentLoadError(
            f"{obj!r} cannot be sent to a runner process: {type(error).__name__}: {error}",
            hint="Define it at the top level of a module, or pass 'module:name'.",
        ) from error


def pack_by_value(obj: Any) -> Parcel:
    """Prepare an object for a machine that does not have its source: the modules beside it travel with it.

    What cannot be pickled (a module that holds a client, a lock) goes by import path, and is looked for there.

    Raises:
        AgentLoadError: It does not load here, or there is no way to send it.
    """
    loaded = load_object(obj) if isinstance(obj, str) else obj
    modules = _modules_beside(loaded)
    for module in modules:
        cloudpickle.register_pickle_by_value(module)
    try:
        return Parcel("value", cloudpickle.dumps(loaded))
    except Exception as error:  # as above
        path = obj if isinstance(obj, str) else import_path_of(obj)
        if path is None:
            raise AgentLoadError(
                f"{obj!r} cannot be sent to another machine: {type(error).__name__}: {error}",
                hint="Make clients and locks inside the function, or define it in a module and send its folder along "
                "(working_dir).",
            ) from error
        return Parcel("import", path)
    finally:
        for module in modules:
            cloudpickle.unregister_pickle_by_value(module)


def _modules_beside(obj: Any) -> list[ModuleType]:
    """Loaded modules of the user's own project: those below the folder that the object's module is imported from."""
    module = sys.modules.get(getattr(obj, "__module__", None) or type(obj).__module__)
    if module is None or module.__name__ == "__main__" or _is_installed(module):
        return []
    top = sys.modules.get(module.__name__.partition(".")[0], module)
    folder = _folder_of(top) or _folder_of(module)
    if folder is None:
        return [module]
    return [m for m in list(sys.modules.values()) if m.__name__ != "__main__" and _is_beside(m, folder)]


def _is_beside(module: ModuleType, folder: Path) -> bool:
    file: str | None = getattr(module, "__file__", None)
    return file is not None and not _is_installed(module) and Path(file).resolve().is_relative_to(folder)


def _folder_of(module: ModuleType) -> Path | None:
    file: str | None = getattr(module, "__file__", None)
    if file is None:
        return None
    path = Path(file).resolve()
    return path.parent.parent if path.name == "__init__.py" else path.parent


def _is_installed(module: ModuleType) -> bool:
    """Whether other machines have it too: Python's own, this package, and what pip installs."""
    name = module.__name__.partition(".")[0]
    file: str | None = getattr(module, "__file__", None)
    if file is None or name == "agentlightning" or name in sys.stdlib_module_names:
        return True
    return bool({"site-packages", "dist-packages"} & set(Path(file).parts))


def _script_of(obj: Any) -> tuple[str, str] | None:
    """Script and name, when the running script defines the object at its top level."""
    main = sys.modules.get("__main__")
    name: str | None = getattr(obj, "__qualname__", None)
    file = getattr(main, "__file__", None)
    if getattr(obj, "__module__", None) != "__main__" or not name or "<" in name or not file:
        return None
    return str(Path(file).resolve()), name


def unpack(parcel: Parcel) -> Any:
    """The object, in the other process.

    Raises:
        AgentLoadError: Importing failed.
    """
    if parcel.kind == "import":
        return load_object(parcel.content)
    if parcel.kind == "script":
        script, name = parcel.content
        return functools.reduce(getattr, name.split("."), _run_script(script))
    try:
        return cloudpickle.loads(parcel.content)
    except Exception as error:  # as above
        raise AgentLoadError(
            f"The agent cannot be rebuilt in the runner process: {type(error).__name__}: {error}",
            hint="Define it at the top level of a module, or pass 'module:name'.",
        ) from error


@functools.cache
def _run_script(script: str) -> Any:
    module = type(sys)(_SCRIPT_NAME)
    try:
        module.__dict__.update(runpy.run_path(script, run_name=_SCRIPT_NAME))
    except Exception as error:  # a script may raise anything; its author gets to read it
        raise AgentLoadError(
            f"Running {script} in the runner process failed: {type(error).__name__}: {error}",
            hint='Start training under `if __name__ == "__main__":`.',
        ) from error
    sys.modules[_SCRIPT_NAME] = module
    return module
