"""The rules of the repository, as tests: what is imported when, how large files get, what never stands in them."""

import ast
import json
import re
import subprocess
import sys
import tomllib
from pathlib import Path

import pytest

import agentlightning

ROOT = Path(__file__).resolve().parents[2]
SRC = ROOT / "src" / "agentlightning"
SOURCES = sorted(SRC.rglob("*.py"))
ROOMS = sorted(
    path for path in SRC.iterdir() if path.is_dir() and path.name != "__pycache__" and any(path.rglob("*.py"))
)
MAX_LINES = 600
HEAVY = ("torch", "transformers", "fastapi", "starlette", "uvicorn", "openai", "sqlalchemy", "aiohttp", "pydantic")
PROJECT = tomllib.loads((ROOT / "pyproject.toml").read_text(encoding="utf-8"))["project"]

# Written in pieces, so that this file passes its own test.
MACHINE_PATHS = re.compile(
    "|".join(["/wo" + "rk/", "/ro" + "ot/", "/op" + "t/pypi", "/op" + "t/wheels", "/ho" + r"me/\w"])
)


def relative(path: Path) -> str:
    return str(path.relative_to(ROOT))


def modules_after(code: str) -> set[str]:
    """Top-level modules that a fresh interpreter has loaded after `code`."""
    report = "import json, sys; print(json.dumps(sorted({name.split('.')[0] for name in sys.modules})))"
    done = subprocess.run(
        [sys.executable, "-c", f"{code}\n{report}"], capture_output=True, text=True, check=True, timeout=60
    )
    return set(json.loads(done.stdout.splitlines()[-1]))


def text_files() -> list[Path]:
    """Everything a clone would hold: tracked files, and new ones that git does not ignore."""
    if not (ROOT / ".git").exists():
        pytest.skip("not a clone, so there is no telling what belongs to the repository")
    listed = subprocess.run(
        ["git", "ls-files", "-z", "--cached", "--others", "--exclude-standard"],
        cwd=ROOT,
        capture_output=True,
        check=True,
        timeout=30,
    )
    paths = [ROOT / name for name in listed.stdout.decode().split("\0") if name]
    return [path for path in paths if path.is_file() and b"\0" not in path.read_bytes()[:4096]]


def test_importing_the_package_loads_nothing_heavy():
    assert modules_after("import agentlightning").isdisjoint(HEAVY)


def test_using_every_public_name_does_not_load_torch():
    code = "import agentlightning as agl\nfor name in agl.__all__: getattr(agl, name)"
    assert modules_after(code).isdisjoint({"torch", "transformers"})


def test_the_command_line_shows_its_help_without_a_model_library():
    code = "import sys; sys.argv = ['agl', '--help']; from agentlightning.cli.main import main\n"
    code += "try: main()\nexcept SystemExit: pass"
    assert modules_after(code).isdisjoint({"torch", "transformers", "sqlalchemy", "openai"})


@pytest.mark.parametrize("name", agentlightning.__all__)
def test_every_public_name_resolves(name):
    assert getattr(agentlightning, name) is not None


def test_public_names_are_listed_for_completion():
    assert set(agentlightning.__all__) <= set(dir(agentlightning))


def test_an_unknown_name_is_an_attribute_error():
    with pytest.raises(AttributeError, match="no attribute 'Trainr'"):
        _ = agentlightning.Trainr  # pyright: ignore[reportAttributeAccessIssue]


@pytest.mark.parametrize("room", ROOMS, ids=lambda path: path.name)
def test_every_room_says_what_it_is(room):
    assert ast.get_docstring(ast.parse((room / "__init__.py").read_text(encoding="utf-8")))


@pytest.mark.parametrize("path", SOURCES, ids=relative)
def test_every_module_says_what_it_is_and_stays_readable(path):
    text = path.read_text(encoding="utf-8")
    assert ast.get_docstring(ast.parse(text)), "the first line says what the module is"
    assert text.count("\n") <= MAX_LINES, f"more than {MAX_LINES} lines: split it"


def escaped(path: Path, line: int) -> bool:
    """Whether the line says that it prints on purpose, as a module with a command line of its own does."""
    return "noqa: T201" in path.read_text(encoding="utf-8").splitlines()[line - 1]


def test_nothing_prints_but_the_command_line():
    printing = [
        f"{relative(path)}:{node.lineno}"
        for path in SOURCES
        if path.relative_to(SRC).parts[0] != "cli"
        for node in ast.walk(ast.parse(path.read_text(encoding="utf-8")))
        if isinstance(node, ast.Call)
        and isinstance(node.func, ast.Name)
        and node.func.id == "print"
        and not escaped(path, node.lineno)
    ]
    assert printing == []


def test_no_file_names_a_path_of_somebodys_machine():
    found = [
        f"{relative(path)}:{number}: {line.strip()[:80]}"
        for path in text_files()
        for number, line in enumerate(path.read_text(encoding="utf-8", errors="replace").splitlines(), start=1)
        if MACHINE_PATHS.search(line)
    ]
    assert found == []


def test_the_package_has_the_version_it_was_released_as():
    assert PROJECT["version"] == agentlightning.__version__


def test_every_core_dependency_is_pinned_for_development():
    def name(requirement: str) -> str:
        return re.split(r"[\[<>=!~; ]", requirement, maxsplit=1)[0].lower().replace("_", "-")

    lines = (ROOT / "constraints.txt").read_text(encoding="utf-8").splitlines()
    pinned = {name(line) for line in lines if "==" in line}
    assert {name(requirement) for requirement in PROJECT["dependencies"]} - pinned == set()


def test_the_changelog_speaks_of_this_version():
    assert f"## {PROJECT['version']}" in (ROOT / "CHANGELOG.md").read_text(encoding="utf-8")
