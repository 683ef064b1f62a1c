"""Every Python snippet of the documentation runs: one page, one fresh process, in reading order."""

import os
import shutil
import subprocess
import sys
from pathlib import Path

import pytest

from tests.docs.pages import PAGES, ROOT, Block, Page, read_page

# Against hanging only: each snippet takes seconds, but several pages start an engine, and the machine may be busy.
TIMEOUT_S = 300
pytestmark = pytest.mark.timeout(TIMEOUT_S + 20)

SLOW = frozenset(
    f"docs/{name}.md"
    for name in (
        "how-to/train-your-agent",
        "how-to/connect-another-server",
        "how-to/evaluate",
        "how-to/fine-tune",
        "how-to/frameworks",
        "how-to/knowledge",
        "how-to/route-limit-budget",
        "how-to/serve-models",
        "reference/gateway",
    )
)
"""Pages whose snippets take more than six seconds."""

_HELPER = """
import subprocess, sys
def shell(code):
    done = subprocess.run(["bash", "-euo", "pipefail", "-c", code], capture_output=True, text=True, timeout=120)
    if done.returncode:
        sys.exit(f"exit code {done.returncode} of:\\n{code}\\n{done.stdout}{done.stderr}")
"""


def runnable(block: Block) -> bool:
    if block.directive in ("no-run", "file"):
        return False
    return block.language == "python" or (block.is_shell and block.directive == "run")


def script(page: Page) -> str:
    """The page as a program in which every line stands where it stands in the page."""
    lines = [""] * page.path.read_text(encoding="utf-8").count("\n")
    for block in filter(runnable, page.blocks):
        if block.is_shell:
            lines[block.line - 1] = f"from _docs_helper import shell; shell({block.code!r})"
        else:
            code = block.code.splitlines()
            lines[block.line - 1 : block.line - 1 + len(code)] = code
    return "\n".join(lines) + "\n"


def prepare(page: Page, folder: Path) -> dict[str, str]:
    """Write the page's files and our commands into `folder`; returns the environment to run in."""
    for block in page.blocks:
        if block.directive == "file":
            target = folder / block.argument
            target.parent.mkdir(parents=True, exist_ok=True)
            target.write_text(block.code, encoding="utf-8")
    (folder / "_docs_helper.py").write_text(_HELPER)
    tools = folder / ".bin"
    tools.mkdir()
    for name, module in (("agl", "agentlightning.cli.main"), ("tongyi-cli", "agentlightning.integrations.tongyi.cli")):
        (tools / name).write_text(f'#!/bin/sh\nexec "{sys.executable}" -m {module} "$@"\n')
        (tools / name).chmod(0o755)
    path = os.pathsep.join([str(tools), str(Path(sys.executable).parent), os.environ["PATH"]])
    kept = {key: value for key, value in os.environ.items() if not key.startswith(("AGL_", "OPENAI_", "TONGYI_"))}
    return {**kept, "PATH": path, "AGL_HOME": str(folder / "agl-home"), "OMP_NUM_THREADS": "1"}


def pages_with(test) -> list:
    pages = (read_page(path) for path in PAGES if path.exists())
    return [
        pytest.param(page, id=page.name, marks=[pytest.mark.slow] if test is runnable and page.name in SLOW else [])
        for page in pages
        if any(test(block) for block in page.blocks)
    ]


@pytest.mark.parametrize("page", pages_with(runnable))
def test_page_runs_from_top_to_bottom(page, tmp_path):
    environment = prepare(page, tmp_path)
    program = tmp_path / f"{page.path.stem.replace('-', '_')}.py"
    program.write_text(script(page), encoding="utf-8")
    done = subprocess.run(
        [sys.executable, str(program)],
        cwd=tmp_path,
        env=environment,
        capture_output=True,
        text=True,
        timeout=TIMEOUT_S,
        check=False,
    )
    assert done.returncode == 0, (
        f"{page.name} (line numbers are the page's)\n{done.stdout[-2000:]}\n{done.stderr[-4000:]}"
    )


@pytest.mark.parametrize("page", pages_with(lambda block: block.directive == "file" and block.argument.endswith(".py")))
def test_files_shown_on_a_page_can_be_imported(page, tmp_path):
    environment = prepare(page, tmp_path)
    names = [
        b.argument.removesuffix(".py") for b in page.blocks if b.directive == "file" and b.argument.endswith(".py")
    ]
    code = "; ".join(f"import {name.replace('/', '.')}" for name in names)
    subprocess.run([sys.executable, "-c", code], cwd=tmp_path, env=environment, check=True, timeout=60)


@pytest.mark.parametrize("page", pages_with(lambda block: block.directive == "no-run"))
def test_every_exemption_gives_its_reason_and_is_at_least_python(page):
    for block in page.blocks:
        if block.directive == "no-run":
            assert len(block.argument) > 10, f"{page.name}:{block.line}: say why it is not run"
            if block.language == "python":
                compile(block.code, page.name, "exec")


def test_a_broken_snippet_is_noticed(tmp_path):
    path = tmp_path / "page.md"
    path.write_text("# Title\n\n```python\nx = 1\n```\n\ntext\n\n```python\nassert x == 2\n```\n")
    source = script(read_page(path))
    assert source.splitlines()[9] == "assert x == 2"
    with pytest.raises(AssertionError):
        exec(compile(source, "page", "exec"), {})


def test_the_repository_is_where_the_pages_are():
    assert (ROOT / "pyproject.toml").exists()
    assert shutil.which("bash")
