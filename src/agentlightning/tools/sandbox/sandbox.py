"""The sandbox as others use it: finds out once which way works, by trying it, and runs programs that way."""

from __future__ import annotations

import asyncio
import os
import tempfile
from collections.abc import Mapping
from dataclasses import replace
from functools import cache
from typing import Any, Literal, cast
from weakref import WeakKeyDictionary

from agentlightning.kit.errors import AgentLightningError, ConfigError
from agentlightning.tools.sandbox.result import (
    Limits,
    Mechanism,
    SandboxResult,
    SandboxState,
    SandboxUnavailableError,
)
from agentlightning.tools.sandbox.run import run_in
from agentlightning.tools.sandbox.setup import MECHANISMS, Setup, prepare

Choice = Literal["auto", "bubblewrap", "landlock", "off"]

_PROBE = """
import os, socket
assert os.getuid() != 0 or os.geteuid() != 0, "it runs as root"
assert CANARY_NAME not in os.environ, "it sees the environment"
try:
    open(CANARY_FILE).close()
    raise SystemExit("it reads files outside its folder")
except OSError:
    pass
try:
    socket.socket(socket.AF_INET, socket.SOCK_STREAM)
    raise SystemExit("it has the network")
except OSError:
    pass
try:
    environments = open("/proc/1/environ", "rb").read()
    raise SystemExit("it reads the environment of others")
except OSError:
    pass
open("written", "w").write("yes")
print("confined")
"""


class Sandbox:
    """Runs Python programs in confinement.

    Args:
        mechanism: `auto` takes the first that works: bubblewrap, then Landlock; `off` never runs anything.
        limits: What a run may use unless it says otherwise.
        packages: Installed packages to take along where Python itself has to be copied, because it lies in a home
            that only its owner may enter. Elsewhere all installed packages can be imported.
    """

    def __init__(
        self, mechanism: Choice = "auto", *, limits: Limits | None = None, packages: tuple[str, ...] = ()
    ) -> None:
        if mechanism not in ("auto", "off", *MECHANISMS):
            raise ConfigError(f"{mechanism!r} is no sandbox.", hint=f"Choose auto, {', '.join(MECHANISMS)} or off.")
        self.limits = limits or Limits()
        self._choice: Choice = mechanism
        self._packages = packages
        self._setup: Setup | None = None
        self._state = SandboxState(None) if mechanism == "off" else None
        self._locks: WeakKeyDictionary[asyncio.AbstractEventLoop, asyncio.Lock] = WeakKeyDictionary()

    async def state(self) -> SandboxState:
        """Which way works here; tried on the first call, some tenths of a second, then remembered."""
        async with self._locks.setdefault(asyncio.get_running_loop(), asyncio.Lock()):
            if self._state is None:
                self._state = await self._probe()
        return self._state

    async def run(
        self,
        code: str,
        *,
        files: Mapping[str, bytes] | None = None,
        limits: Limits | None = None,
        show_last: bool = False,
    ) -> SandboxResult:
        """Run a program.

        Args:
            code: Its text; it runs as `main.py` in an empty folder.
            files: What it finds there, by relative names.
            limits: Instead of this sandbox's.
            show_last: Print the value of a last line that is an expression, as an interactive Python does.

        Raises:
            SandboxUnavailableError: No sandbox works here.
            SandboxError: The sandbox failed; the program did not run.
            BadInputError: The files cannot be put there.
        """
        state = await self.state()
        if self._setup is None:
            raise SandboxUnavailableError(
                f"Python cannot be run here: {state.reason}.", hint="Install bubblewrap, or a kernel with Landlock."
            )
        return await run_in(self._setup, code, files=files or {}, limits=limits or self.limits, show_last=show_last)

    async def _probe(self) -> SandboxState:
        reasons: dict[str, str] = {}
        for mechanism in MECHANISMS if self._choice == "auto" else (cast("Mechanism", self._choice),):
            try:
                setup = await asyncio.to_thread(prepare, mechanism, self._packages)
                await _check(setup)
            except AgentLightningError as error:
                reasons[mechanism] = str(error).rstrip(".")
                continue
            self._setup = setup
            return SandboxState(mechanism, reasons, f"Python {setup.interpreter.program}")
        return SandboxState(None, reasons)


async def _check(setup: Setup) -> None:
    """Run a program that tries to get out, and see that it runs and does not.

    Raises:
        SandboxUnavailableError: It did not run, or it got out.
    """
    with tempfile.NamedTemporaryFile(prefix="agl-canary-") as canary:
        os.fchmod(canary.fileno(), 0o644)
        code = f"CANARY_FILE = {canary.name!r}; CANARY_NAME = 'AGL_HOME'{_PROBE}"
        result = await run_in(setup, code, files={}, limits=Limits(timeout_s=20))
    if result.stdout.strip() != "confined" or result.files != {"written": b"yes"}:
        said = (result.stderr.strip().splitlines() or [result.killed_because or f"exit code {result.exit_code}"])[-1]
        raise SandboxUnavailableError(f"a trial run failed: {said}")


@cache
def shared_sandbox() -> Sandbox:
    """The one of this process, as `AGL_SANDBOX` (`auto`, `bubblewrap`, `landlock`, `off`) says."""
    return Sandbox(cast("Choice", os.environ.get("AGL_SANDBOX", "auto")))


async def run_python(
    code: str,
    *,
    files: Mapping[str, bytes] | None = None,
    timeout_s: float | None = None,
    memory_mb: int | None = None,
    processes: int | None = None,
    output_bytes: int | None = None,
    show_last: bool = False,
    sandbox: Sandbox | None = None,
) -> SandboxResult:
    """Run a program in `sandbox`, or in the process's shared one; see `Sandbox.run`. Limits as in `Limits`."""
    sandbox = sandbox or shared_sandbox()
    given: dict[str, Any] = {
        "timeout_s": timeout_s,
        "memory_mb": memory_mb,
        "processes": processes,
        "output_bytes": output_bytes,
    }
    limits = replace(sandbox.limits, **{name: value for name, value in given.items() if value is not None})
    return await sandbox.run(code, files=files, limits=limits, show_last=show_last)
