"""The jailed workspace and the tool over it; A30."""

import os
import threading
import time

import pytest

from agentlightning.tools import ToolContext, ToolSettings, toolbox
from agentlightning.tools.base import ToolDeniedError
from agentlightning.tools.settings import FilesSettings
from agentlightning.tools.workspace import Workspace, workspace_of

GRANTED = frozenset({"agent:assign"})


@pytest.fixture
def outside(tmp_path):
    """A secret beside the workspace."""
    (tmp_path / "outside").mkdir()
    (tmp_path / "outside/secret").write_text("canary")
    return tmp_path / "outside"


@pytest.fixture
def root(tmp_path, outside):
    made = tmp_path / "space"
    made.mkdir()
    (made / "note.txt").write_text("one\ntwo\nthree\n")
    (made / "src").mkdir()
    (made / "src/a.py").write_text("print('Hello')\n")
    (made / "link").symlink_to(outside / "secret")
    (made / "folder_link").symlink_to(outside)
    os.mkfifo(made / "pipe")
    return made


@pytest.fixture
def files(root):
    tool = toolbox(ToolSettings())["files"]
    context = ToolContext(workspace=root, permissions=GRANTED)

    async def call(action, path=".", **more):
        return await tool.run({"action": action, "path": path, **more}, context)

    return call


BAD_PATHS = [
    "../outside/secret",
    "src/../../outside/secret",
    "/etc/passwd",
    "//etc/passwd",
    "..",
    "link",
    "./link",
    "folder_link/secret",
    "src/../folder_link/secret",
    "pipe",
    "note.txt/x",
    "note.txt\0.png",
    "\\\\server\\share",
    "..\\outside\\secret",
    "C:\\windows",
    "c:/windows",
    "a/" * 40 + "b",
    "x" * 1030,
    "\ud800",
    "line\nbreak",
]


@pytest.mark.parametrize("path", BAD_PATHS)
@pytest.mark.parametrize("action", ["read", "write", "append", "delete", "edit", "list", "search"])
async def test_a30_no_path_leads_out(files, outside, root, path, action):
    if action == "delete" and path in ("link", "./link", "pipe"):
        pytest.skip("a link itself may be removed")
    result = await files(action, path[:1024], content="overwritten", old="canary", new="x", pattern="canary")
    assert result.is_error or result.text == "Nothing found."
    assert "canary" not in result.text.replace("'", "")
    assert (outside / "secret").read_text() == "canary"
    assert sorted(path.name for path in outside.iterdir()) == ["secret"]


@pytest.mark.parametrize("path", ["..%2foutside%2fsecret", "%2e%2e/outside", "a#b", "a?b", "file:secret", "$HOME", "~"])
async def test_a30_what_looks_like_a_trick_is_a_name(files, root, path):
    assert not (await files("write", path, content="x")).is_error
    assert (root / path).read_text() == "x"


async def test_removing_a_link_leaves_what_it_points_at(files, root, outside):
    assert not (await files("delete", "link")).is_error
    assert not (root / "link").is_symlink()
    assert (outside / "secret").read_text() == "canary"


async def test_writing_over_a_link_is_refused(files, root, outside):
    result = await files("write", "link", content="x")
    assert result.data["code"] == "TOOL_DENIED"
    assert (root / "link").is_symlink()


async def test_a_folder_swapped_for_a_link_while_reading_gives_nothing_away(root, outside):
    """The race that a check of the path before the use loses."""
    workspace = Workspace(root)
    stop = threading.Event()

    def swap():
        while not stop.is_set():
            os.rename(root / "src", root / "real")
            os.symlink(outside, root / "src")
            os.unlink(root / "src")
            os.rename(root / "real", root / "src")
            time.sleep(0.0003)

    (root / "src/secret").write_text("mine")
    thread = threading.Thread(target=swap)
    thread.start()
    seen = set()
    try:
        for _ in range(1500):
            try:
                seen.add(workspace.read("src/secret", 100)[0])
            except (ToolDeniedError, ValueError) as error:
                seen.add(type(error).__name__)
    finally:
        stop.set()
        thread.join()
    assert b"canary" not in seen
    assert b"mine" in seen


async def test_reading(files):
    assert (await files("read", "note.txt")).text == "one\ntwo\nthree\n"
    part = await files("read", "note.txt", first_line=2, lines=1)
    assert part.text == "two\n\n[lines 2 to 2 of 3]"
    assert part.data == {"content": "two\n", "lines": 3, "whole": True}
    assert (await files("read", "src")).data["code"] == "TOOL_DENIED"
    assert (await files("read", "none")).data["code"] == "NOT_FOUND"


async def test_writing_and_editing(files, root):
    assert (await files("write", "new/deep/x.txt", content="a b a")).data["new"]
    assert (await files("append", "new/deep/x.txt", content=" c")).text == "new/deep/x.txt changed, 7 bytes."
    twice = await files("edit", "new/deep/x.txt", old="a", new="z")
    assert "2 times" in twice.text
    assert "0 times" in (await files("edit", "new/deep/x.txt", old="q", new="z")).text
    assert not (await files("edit", "new/deep/x.txt", old="b", new="z")).is_error
    assert (root / "new/deep/x.txt").read_text() == "a z a c"
    assert not list(root.rglob("*.tmp"))
    assert not (await files("delete", "new/deep/x.txt")).is_error
    assert not (await files("delete", "new/deep")).is_error
    assert (await files("delete", "src")).data["code"] == "BAD_INPUT"  # not empty


@pytest.mark.parametrize("action", ["write", "append", "edit", "glob", "search"])
async def test_what_an_action_needs_is_said(files, action):
    assert "needs" in (await files(action, "note.txt")).text


async def test_finding(files):
    assert (await files("list")).text.splitlines() == ["note.txt  14", "src/"]
    assert [one["path"] for one in (await files("glob", pattern="**/*.py")).data] == ["src/a.py"]
    assert [one["path"] for one in (await files("glob", pattern="**/*.txt")).data] == ["note.txt"]
    assert (await files("search", pattern="hello")).text == "src/a.py:1: print('Hello')"
    assert (await files("search", pattern="(a+)+$")).text == "Nothing found."  # text, not a regular expression


async def test_limits(root):
    settings = ToolSettings(files=FilesSettings(max_read_bytes=1024, max_write_bytes=2048, max_total_mb=1, max_files=6))
    tool = toolbox(settings)["files"]
    context = ToolContext(workspace=root, permissions=GRANTED)

    async def call(action, path, **more):
        return await tool.run({"action": action, "path": path, **more}, context)

    assert "2048 bytes" in (await call("write", "big", content="x" * 2049)).text
    assert not (await call("write", "big", content="x" * 2000)).is_error
    assert "[lines" in (await call("read", "big")).text
    assert "larger than" in (await call("append", "big", content="x")).text
    for n in range(4):
        last = await call("write", f"f{n}", content="x")
    assert "The workspace is full" in last.text
    (root / "binary").write_bytes(b"\0\1")
    assert "no text" in (await call("read", "binary")).text
    assert "no file can have" in (await call("write", "f0", content="\ud800")).text
    (root / "huge").write_bytes(bytes(2**20))
    assert "The workspace is full" in (await call("write", "f0", content="xx")).text


def test_each_user_has_a_folder_of_its_own(tmp_path):
    users = ["ada", "Ada", "../ada", "ada/..", "", "a" * 100, "ädä", "a.b"]
    places = {workspace_of(ToolContext(user=user), tmp_path, 1, 1).root for user in users}
    assert len(places) == len(users)
    assert all(place.parent == tmp_path for place in places)


async def test_without_a_workspace_it_says_so():
    result = await toolbox(ToolSettings())["files"].run({"action": "list"}, ToolContext(permissions=GRANTED))
    assert result.data["code"] == "TOOL_UNAVAILABLE"
