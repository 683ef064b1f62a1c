"""How agents travel to another interpreter."""

from __future__ import annotations

import subprocess
import sys
import threading

import pytest

from agentlightning import LitAgent, rollout
from agentlightning.agent import AgentLoadError
from agentlightning.runner.transport import Parcel, pack, unpack


@rollout
def decorated(task):
    return 1.0


class Stateful(LitAgent[str]):
    def __init__(self, bonus: float) -> None:
        super().__init__()
        self.bonus = bonus

    def rollout(self, task, resources, rollout):
        return self.bonus


def test_what_can_be_imported_travels_by_path():
    assert pack(decorated) == Parcel("import", f"{__name__}:decorated")
    assert unpack(pack(decorated)) is decorated
    assert pack("module:name") == Parcel("import", "module:name")


def test_objects_and_closures_travel_by_value():
    bonus = 0.5
    assert unpack(pack(Stateful(0.25))).bonus == 0.25
    assert unpack(pack(lambda task: bonus))(None) == 0.5


def test_what_cannot_travel_says_so():
    lock = threading.Lock()
    with pytest.raises(AgentLoadError, match=r"cannot be sent.*pickle.*top level"):
        pack(lambda task: lock)


def test_what_does_not_arrive_whole_says_so():
    with pytest.raises(AgentLoadError, match="cannot be rebuilt"):
        unpack(Parcel("value", b"no pickle"))


SCRIPT = """
import pickle, subprocess, sys, threading
from agentlightning.runner.transport import pack
CLIENT = threading.Lock()  # something that cannot be pickled

def agent(task):
    return CLIENT and "from the script"

{start}
    parcel = pack(agent)
    print(parcel.kind)
    code = "import pickle, sys; from agentlightning.runner.transport import unpack; " \\
        "print(unpack(pickle.loads(sys.stdin.buffer.read()))(1))"
    done = subprocess.run([sys.executable, "-c", code], input=pickle.dumps(parcel), capture_output=True)
    print(done.stdout.decode(), done.stderr.decode())
"""


def _run(path, text) -> str:
    path.write_text(text)
    done = subprocess.run([sys.executable, str(path)], capture_output=True, text=True, timeout=60, check=False)
    assert done.returncode == 0, done.stderr
    return done.stdout


def test_agent_of_a_script_with_a_client_of_its_own_travels_by_script(tmp_path):
    out = _run(tmp_path / "main.py", SCRIPT.format(start='if __name__ == "__main__":'))
    assert out.split("\n")[:2] == ["script", "from the script"]


def test_script_that_breaks_when_it_is_run_again_says_so(tmp_path):
    text = SCRIPT.format(start='if __name__ != "__main__":\n    1 / 0\nelse:')
    out = _run(tmp_path / "main.py", text)
    assert "in the runner process failed: ZeroDivisionError" in out
    assert "__main__" in out
