"""Agents by import path."""

from __future__ import annotations

import sys
from pathlib import Path

import pytest

from agentlightning.agent import AgentLoadError
from agentlightning.agent.loading import import_path_of, load_object


@pytest.fixture
def folder(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    monkeypatch.chdir(tmp_path)
    monkeypatch.setattr(sys, "path", [entry for entry in sys.path if entry])
    before = set(sys.modules)
    yield tmp_path
    for name in set(sys.modules) - before:
        del sys.modules[name]


def test_module_in_the_current_folder_is_found(folder: Path):
    (folder / "loadable_one.py").write_text("class Box:\n    def agent(self): ...\n")
    found = load_object("loadable_one:Box.agent")
    assert found.__qualname__ == "Box.agent"
    assert import_path_of(found) == "loadable_one:Box.agent"


def test_file_is_loaded_once_and_may_be_called_like_a_module_of_python(folder: Path):
    (folder / "sub").mkdir()
    path = folder / "sub" / "json.py"
    path.write_text("import helper_beside\ndef agent(task): return helper_beside.VALUE\n")
    (folder / "sub" / "helper_beside.py").write_text("VALUE = 5\n")
    agent = load_object(f"{path}:agent")
    assert agent(None) == 5
    assert sys.modules["json"].__name__ == "json"
    assert import_path_of(agent) == f"{path}:agent"
    plain = folder / "plain_agent.py"
    plain.write_text("def agent(task): return 1\n")
    assert load_object("plain_agent.py:agent") is load_object("plain_agent.py:agent")


@pytest.mark.parametrize(
    ("path", "says"),
    [
        ("no_colon", "does not name an agent"),
        (":name", "does not name an agent"),
        ("no_such_module_here:agent", "no module 'no_such_module_here'"),
        ("needs_more:agent", "needs 'package_that_is_not_there', which is not installed"),
        ("broken:agent", "Importing broken failed: ZeroDivisionError"),
        ("fine:other", r"fine has no 'other'. It has: agent"),
        ("missing.py:agent", "no file missing.py"),
        ("broken.py:agent", r"broken.py failed: ZeroDivisionError"),
    ],
)
def test_what_goes_wrong_is_said(folder: Path, path: str, says: str):
    (folder / "needs_more.py").write_text("import package_that_is_not_there\n")
    (folder / "broken.py").write_text("1 / 0\n")
    (folder / "fine.py").write_text("def agent(task): ...\n")
    with pytest.raises(AgentLoadError, match=says):
        load_object(path)


def test_what_cannot_be_imported_has_no_path():
    def local(): ...

    assert import_path_of(local) is None
    assert import_path_of(lambda: 1) is None
    assert import_path_of(3) is None
    local.__qualname__ = "load_object"
    local.__module__ = "agentlightning.agent.loading"
    assert import_path_of(local) is None
    local.__module__ = "not.loaded"
    assert import_path_of(local) is None
    assert import_path_of(load_object) == "agentlightning.agent.loading:load_object"
