"""The sandbox attacked (case A24): every attempt, by root's server and by another user's, through each mechanism.

Each combination is one server of its own (`sandbox_world.py`); the tests read what came of each attempt. The controls
show that the same program, outside, by the same user, does succeed.
"""

import functools
import json
import os
import shutil
import subprocess
import sys
import sysconfig
import tempfile
from pathlib import Path

import pytest

from agentlightning.tools.sandbox import SandboxError
from agentlightning.tools.sandbox.interpreter import copied_interpreter
from agentlightning.tools.sandbox.setup import prepare
from tests.unit.tools.sandbox_attacks import ATTACKS

ROOT = Path(__file__).resolve().parents[3]
NOBODY = 65_534
NEWEST = 99
AS_ROOT = os.geteuid() == 0
NEEDED = ("pyseccomp", "pydantic", "pydantic_core", "annotated_types", "typing_extensions", "typing_inspection")
BY_NAME = {attack.name: attack for attack in ATTACKS}

# Who the server runs as, the mechanism, the newest Landlock rules used. All combinations in the slow run.
ME, OTHER = ("root", "user") if AS_ROOT else ("user", "root")
QUICK = [(ME, "bubblewrap", NEWEST)]
SLOW = [
    (ME, "landlock", NEWEST),
    (OTHER, "bubblewrap", NEWEST),
    (OTHER, "landlock", NEWEST),
    ("user", "landlock", 1),  # as on the oldest kernel that has it
]

pytestmark = [
    pytest.mark.xdist_group("sandbox_attacks"),  # each worker would run them all
    pytest.mark.skipif(sys.platform != "linux", reason="the sandbox is Linux'"),
    pytest.mark.skipif(os.uname().machine != "x86_64", reason="the attacks name system calls by x86-64's numbers"),
    pytest.mark.timeout(300),
]


def combinations(names=None) -> list:
    """Every attack in every combination."""
    found = []
    for who, mechanism, version in QUICK + SLOW:
        marks = [pytest.mark.slow] if (who, mechanism, version) in SLOW else []
        for attack in ATTACKS:
            if attack.only in ("", mechanism):
                label = f"{who}-{mechanism}{version if version != NEWEST else ''}-{attack.name}"
                found.append(pytest.param(who, mechanism, version, attack.name, id=label, marks=marks))
    return found


@functools.cache
def readable_place() -> tuple[Path, object]:
    """A Python and the sources where a user that owns nothing can read them."""
    interpreter = copied_interpreter(NEEDED)
    place = Path(tempfile.mkdtemp(prefix="agl-sources-"))
    for folder in ("kit", "tools"):
        shutil.copytree(
            ROOT / "src/agentlightning" / folder,
            place / "agentlightning" / folder,
            ignore=shutil.ignore_patterns("__pycache__"),
        )
    shutil.copy(ROOT / "src/agentlightning/__init__.py", place / "agentlightning/__init__.py")
    target = place / "tests/unit/tools"
    target.mkdir(parents=True)
    for name in ("sandbox_attacks.py", "sandbox_world.py"):
        shutil.copy(Path(__file__).with_name(name), target / name)
    for path in (place, *place.rglob("*")):
        path.chmod(0o755 if path.is_dir() else 0o644)
    return place, interpreter


def report(who: str, mechanism: str, version: int) -> dict:
    """What came of the attacks on one server."""
    done = attacked(who, mechanism, version)
    assert done.returncode == 0, done.stderr[-4000:]
    return json.loads(done.stdout)


@functools.cache
def attacked(who: str, mechanism: str, version: int) -> subprocess.CompletedProcess:
    if who == "root" and not AS_ROOT:
        pytest.skip("only root can run a server as root")
    if mechanism != "none":
        try:
            prepare(mechanism)  # pyright: ignore[reportArgumentType]
        except SandboxError as error:
            pytest.skip(f"not on this machine: {error}")
    program, place, more, environment = sys.executable, ROOT, {}, {}
    path = [str(ROOT / "src"), str(ROOT)]
    if who == "user" and AS_ROOT:
        place, interpreter = readable_place()
        program = interpreter.program
        more = {"user": NOBODY, "group": NOBODY, "extra_groups": []}
        path = [str(place), *interpreter.packages]
        environment = {"LD_LIBRARY_PATH": interpreter.libraries}
    elif who == "user":
        path.append(sysconfig.get_path("purelib"))
    return subprocess.run(
        [program, "-m", "tests.unit.tools.sandbox_world", mechanism, str(version)],
        cwd=place,
        env={"PATH": os.environ["PATH"], "PYTHONPATH": os.pathsep.join(path), **environment},
        capture_output=True,
        text=True,
        timeout=240,
        check=False,
        **more,
    )


@pytest.mark.parametrize(("who", "mechanism", "version", "name"), combinations())
def test_a24_the_attack_comes_to_nothing(who, mechanism, version, name):
    result = report(who, mechanism, version)["results"][name]
    assert BY_NAME[name].failed(result), result


@pytest.mark.parametrize(
    ("who", "mechanism", "version"), [*QUICK, *(pytest.param(*one, marks=pytest.mark.slow) for one in SLOW)]
)
class TestAfterwards:
    def test_the_world_outside_is_as_it_was(self, who, mechanism, version):
        assert report(who, mechanism, version)["damage"] == []

    def test_nothing_is_left_running_or_lying_about(self, who, mechanism, version):
        assert report(who, mechanism, version)["left"] == []

    def test_nobody_got_the_secret(self, who, mechanism, version):
        results = report(who, mechanism, version)["results"]
        assert [
            name for name, result in results.items() if "battery-canary" in result["stdout"] + result["stderr"]
        ] == []

    def test_output_and_files_are_bounded(self, who, mechanism, version):
        for result in report(who, mechanism, version)["results"].values():
            assert result["kept"] <= 2 * 64 * 1024
            assert sum(result["files"].values()) <= 32 * 2**20


@pytest.mark.parametrize("who", [ME, pytest.param(OTHER, marks=pytest.mark.slow)])
def test_outside_the_same_programs_succeed(who):
    """What cannot succeed on this kernel even outside says nothing; that most do, does."""
    told = report(who, "none", 0)
    failed = [name for name, result in told["results"].items() if "ESCAPED" not in result["stdout"]]
    assert set(failed) <= NOT_EVERYWHERE, {name: told["results"][name] for name in failed}
    assert len(told["results"]) - len(failed) > 50
    assert len(told["damage"]) > 5


# Some kernels refuse these to everybody, or to all but root.
NOT_EVERYWHERE = {
    "a namespace for users",
    "a namespace by clone",
    "bpf",
    "page faults in user space",
    "io_uring",
    "list devices",
    "read the kernel's log",
    "the kernel's messages",
    "compare with a process",
    "read by a hard link",
}


def test_the_battery_is_large():
    assert len(ATTACKS) >= 40
    assert len(BY_NAME) == len(ATTACKS)
