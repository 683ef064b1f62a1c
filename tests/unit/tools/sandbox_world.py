"""`python sandbox_world.py MECHANISM LANDLOCK`: a server with secrets, on which every attack is made; prints results.

Runs as whoever starts it. MECHANISM `none` is the control: the same programs in plain processes.
"""

import asyncio
import json
import os
import signal
import socket
import subprocess
import sys
import tempfile
import time
from pathlib import Path

from tests.unit.tools.sandbox_attacks import ATTACKS, PRELUDE, Attack

CANARY = "AGL_BATTERY_CANARY"
AT_ONCE = 3


class World:
    """What can be stolen, broken or reached."""

    def __init__(self) -> None:
        self.top = Path(tempfile.mkdtemp(prefix="agl-world-", dir="/tmp"))
        self.top.chmod(0o755)
        self.secret, self.public, self.open_file = (self.top / name for name in ("secret", "public", "open_file"))
        self.open_dir = self.top / "open"
        self.open_dir.mkdir()
        for path, mode in ((self.secret, 0o600), (self.public, 0o644), (self.open_file, 0o666)):
            path.write_text("battery-canary")
            path.chmod(mode)
            os.utime(path, (1_000_000_000, 1_000_000_000))
        for name in ("bait", "bait2"):
            (self.open_dir / name).write_text("bait")
        self.open_dir.chmod(0o777)
        self.victims = [subprocess.Popen(["sleep", "600"]) for _ in range(2)]
        self.streams = [self._bound(2, 1, ("127.0.0.1", 0)), self._bound(1, 1, str(self.top / "unix"))]
        self.streams.append(self._bound(1, 1, f"\0agl-battery-{os.getpid()}"))
        self.datagrams = [self._bound(2, 2, ("127.0.0.1", 0)), self._bound(1, 2, str(self.top / "unix_dgram"))]
        self.datagrams.append(self._bound(1, 2, f"\0agl-battery-dgram-{os.getpid()}"))
        for name in ("unix", "unix_dgram"):
            (self.top / name).chmod(0o777)

    def _bound(self, family: int, kind: int, where) -> socket.socket:
        made = socket.socket(family, kind)
        made.bind(where)
        made.setblocking(False)
        if kind == 1:
            made.listen(50)
        return made

    @property
    def facts(self) -> dict:
        return {
            "server": os.getpid(),
            "victim": self.victims[0].pid,
            "victim2": self.victims[1].pid,
            "top": str(self.top),
            "secret": str(self.secret),
            "public": str(self.public),
            "open_dir": str(self.open_dir),
            "open_file": str(self.open_file),
            "tcp": self.streams[0].getsockname()[1],
            "udp": self.datagrams[0].getsockname()[1],
            "unix": str(self.top / "unix"),
            "unix_dgram": str(self.top / "unix_dgram"),
            "abstract": f"\0agl-battery-{os.getpid()}",
            "abstract_dgram": f"\0agl-battery-dgram-{os.getpid()}",
            "canary": CANARY,
        }

    def damage(self) -> list[str]:
        """What is not as it was."""
        found = [f"connection to {n}" for n, made in enumerate(self.streams) if self._got(made.accept)]
        found += [
            f"datagram to {n}" for n, made in enumerate(self.datagrams) if self._got(lambda made=made: made.recv(9))
        ]
        found += [f"victim {n} is dead" for n, victim in enumerate(self.victims) if victim.poll() is not None]
        for path in (self.secret, self.public, self.open_file):
            told = path.stat()
            if path.read_text() != "battery-canary" or told.st_mtime != 1_000_000_000 or told.st_mode & 0o111:
                found.append(f"{path.name} was changed")
        entries = sorted(path.name for path in self.open_dir.iterdir())
        found += [] if entries == ["bait", "bait2"] else [f"the open folder has {entries}"]
        priority = os.getpriority(os.PRIO_PROCESS, self.victims[0].pid) if self.victims[0].poll() is None else 0
        found += [] if priority == os.getpriority(os.PRIO_PROCESS, 0) else ["a priority was changed"]
        return found

    def _got(self, take) -> bool:
        try:
            take()
        except OSError:
            return False
        return True

    def close(self) -> None:
        for victim in self.victims:
            victim.send_signal(signal.SIGKILL)
            victim.wait()


def left_behind(setup) -> list[str]:
    """Programs of attacks that still run. By the interpreter, of which this server may have made a copy of its own."""
    if setup is None:
        return []
    found = []
    for path in Path("/proc").glob("[0-9]*/cmdline"):
        try:
            line = path.read_bytes()
        except OSError:
            continue
        if b"agl-battery-daemon" in line or (setup.interpreter.program.encode() in line and b"landlock_" in line):
            found.append(line.decode(errors="replace")[:60])
    return found


async def inside(attack: Attack, facts: dict, setup) -> dict:
    from agentlightning.tools.sandbox import Limits
    from agentlightning.tools.sandbox.run import run_in

    limits = Limits(timeout_s=attack.timeout_s, memory_mb=512)
    result = await run_in(setup, f"P = {facts!r}\n{PRELUDE}{attack.program}", files={}, limits=limits)
    return {
        "stdout": result.stdout[-2000:],
        "stderr": result.stderr[-2000:],
        "kept": len(result.stdout) + len(result.stderr),
        "exit_code": result.exit_code,
        "killed": result.killed_because,
        "files": {name: len(content) for name, content in result.files.items()},
        "seconds": result.seconds,
    }


async def outside(attack: Attack, facts: dict) -> dict:
    with tempfile.TemporaryDirectory() as folder:
        done = await asyncio.to_thread(
            subprocess.run,
            [sys.executable, "-c", f"P = {facts!r}\n{PRELUDE}{attack.program}"],
            cwd=folder,
            capture_output=True,
            text=True,
            timeout=30,
            check=False,
        )
    return {"stdout": done.stdout, "stderr": done.stderr, "exit_code": done.returncode, "killed": None}


async def main() -> None:
    mechanism, version = sys.argv[1], int(sys.argv[2])
    os.environ[CANARY] = "battery-canary"
    world = World()
    facts = world.facts
    gate = asyncio.Semaphore(AT_ONCE)
    who = "root" if os.geteuid() == 0 else "user"
    setup = None
    if mechanism == "none":
        chosen = [attack for attack in ATTACKS if attack.control in ("user", who) and attack.control]
    else:
        from dataclasses import replace

        from agentlightning.tools.sandbox.setup import prepare

        setup = replace(prepare(mechanism), landlock_version=version)
        chosen = [attack for attack in ATTACKS if attack.only in ("", mechanism)]

    async def one(attack: Attack) -> dict:
        async with gate:
            return await (outside(attack, facts) if mechanism == "none" else inside(attack, facts, setup))

    try:
        started = time.monotonic()
        results = await asyncio.gather(*(one(attack) for attack in chosen))
        report = {attack.name: result for attack, result in zip(chosen, results, strict=True)}
        seconds = time.monotonic() - started
        print(json.dumps({"results": report, "damage": world.damage(), "left": left_behind(setup), "seconds": seconds}))
    finally:
        world.close()


if __name__ == "__main__":
    asyncio.run(main())
