"""One way to run programs here, with everything it needs prepared; and how it is found out which ways work."""

from __future__ import annotations

import os
import shutil
import sys
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from typing import IO, cast

from agentlightning.kit.errors import AgentLightningError
from agentlightning.tools.sandbox import launch
from agentlightning.tools.sandbox.interpreter import (
    Interpreter,
    copied_interpreter,
    own_interpreter,
    readable_by_others,
)
from agentlightning.tools.sandbox.result import Limits, Mechanism, SandboxUnavailableError
from agentlightning.tools.sandbox.seccomp import build_filter

MECHANISMS: tuple[Mechanism, ...] = ("bubblewrap", "landlock")
ANY_LANDLOCK = 99


@dataclass(frozen=True)
class Setup:
    """A mechanism, its filter and its interpreter.

    Attributes:
        program: Where bubblewrap is.
        landlock_version: No rules newer than that are used.
    """

    mechanism: Mechanism
    filter: bytes
    interpreter: Interpreter
    program: str = ""
    landlock_version: int = ANY_LANDLOCK

    def filter_file(self) -> IO[bytes]:
        """The filter as a file to hand over, read from its beginning."""
        file = os.fdopen(os.memfd_create("filter"), "w+b")
        file.write(self.filter)
        file.seek(0)
        return cast("IO[bytes]", file)

    def launch(
        self, filter_file: IO[bytes], work: Path, temporary: Path, limits: Limits, user: int | None
    ) -> launch.Launch:
        """How to start a run in these folders."""
        if self.mechanism == "bubblewrap":
            number = filter_file.fileno()
            return launch.bubblewrap(self.program, self.interpreter, work, temporary, number, limits, user)
        return launch.landlock(self.filter, self.interpreter, work, temporary, limits, user, self.landlock_version)


def prepare(mechanism: Mechanism, packages: tuple[str, ...] = (), *, copy: bool | None = None) -> Setup:
    """Everything for a mechanism. Whether it works, only a run tells.

    Args:
        mechanism: Which.
        packages: Installed packages to take along when Python has to be copied.
        copy: Whether to copy Python; by default if another user could not read it.

    Raises:
        SandboxUnavailableError: Something that it needs is missing.
    """
    if sys.platform != "linux":
        raise SandboxUnavailableError(f"it needs Linux, and this is {sys.platform}")
    try:
        program = build_filter(strict=mechanism == "landlock")
        interpreter = _interpreter(packages, copy)
    except (AgentLightningError, OSError) as error:
        raise SandboxUnavailableError(str(error)) from error
    return _SETUPS[mechanism](program, interpreter)


def _interpreter(packages: tuple[str, ...], copy: bool | None) -> Interpreter:
    own = own_interpreter()
    if copy or (copy is None and os.geteuid() == 0 and not readable_by_others(own)):
        return copied_interpreter(packages)
    return own


def _with_bubblewrap(program: bytes, interpreter: Interpreter) -> Setup:
    found = shutil.which(launch.BUBBLEWRAP)
    if found is None:
        raise SandboxUnavailableError("bwrap is not installed (Debian and Ubuntu: apt install bubblewrap)")
    return Setup("bubblewrap", program, interpreter, os.path.realpath(found))


def _with_landlock(program: bytes, interpreter: Interpreter) -> Setup:
    from agentlightning.tools.sandbox.inside import landlock_version, system

    if landlock_version(system()) < 1:
        raise SandboxUnavailableError(
            "this kernel has no Landlock, or it is switched off (Linux 5.13 and newer have it)"
        )
    return Setup("landlock", program, interpreter)


_SETUPS: dict[Mechanism, Callable[[bytes, Interpreter], Setup]] = {
    "bubblewrap": _with_bubblewrap,
    "landlock": _with_landlock,
}
