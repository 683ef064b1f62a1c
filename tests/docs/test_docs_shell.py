"""Shell lines of the documentation: the commands, options, targets and files they name exist."""

import re
import shlex
import tomllib

import pytest
import typer

from agentlightning.cli import main as cli
from agentlightning.integrations.tongyi import cli as tongyi_cli
from tests.docs.pages import PAGES, ROOT, Block, commands, read_page

_STOP = {"|", "||", "&&", ";", "&", ">", ">>", "<", "#"}


def cases() -> list:
    found = []
    for path in PAGES:
        if not path.exists():
            continue
        page = read_page(path)
        for block in page.blocks:
            if block.is_shell:
                found += [pytest.param(block, line, id=f"{page.name}:{line[:60]}") for line in commands(block.code)]
    return found


def words(line: str) -> list[list[str]]:
    """The simple commands of a line as words, without leading variable assignments."""
    lexer = shlex.shlex(line, posix=True, punctuation_chars=True)
    lexer.whitespace_split = True
    parts: list[list[str]] = [[]]
    for token in lexer:
        if token == "#":
            break
        if token in _STOP:
            parts.append([])
        else:
            parts[-1].append(token)
    for part in parts:
        while part and re.fullmatch(r"\w+=.*", part[0]):
            part.pop(0)
    return [part for part in parts if part]


@pytest.fixture(scope="module")
def group():
    if not cli.app.registered_commands:
        cli._register()
    return typer.main.get_command(cli.app)


def parse_agl(group, arguments: list[str]) -> None:
    """Parse as the command line itself does, without running anything.

    Raises:
        Exception: A usage error: unknown command or option, missing argument, wrong type.
    """
    if not arguments or arguments[0].startswith("-"):
        return
    command = group
    context = command.make_context("agl", list(arguments[:1]), resilient_parsing=True)
    rest = list(arguments)
    while hasattr(command, "resolve_command"):
        name, command, rest = command.resolve_command(context, rest)
        if "--help" in rest or "-h" in rest:
            return
        context = command.make_context(name, list(rest), parent=context, resilient_parsing=hasattr(command, "commands"))


def check_words(group, part: list[str]) -> None:
    program, *arguments = part
    if program == "agl":
        parse_agl(group, arguments)
    elif program == "tongyi-cli":
        typer.main.get_command(tongyi_cli.app).make_context(program, list(arguments))
    elif program == "make":
        targets = re.findall(r"^([\w-]+):", (ROOT / "Makefile").read_text(), flags=re.MULTILINE)
        wanted = [word for word in arguments if "=" not in word and not word.startswith("-")]
        assert set(wanted) <= set(targets), f"no such target: {wanted}"
    elif program.startswith("python") and arguments and arguments[0].startswith(("benchmarks/", "tools/", "examples/")):
        assert (ROOT / arguments[0]).is_file(), f"no such file: {arguments[0]}"
    elif "pip" in part:
        extras = tomllib.loads((ROOT / "pyproject.toml").read_text())["project"]["optional-dependencies"]
        for named in re.findall(r"(?:agentlightning|\.)\[([\w,]+)\]", " ".join(part)):
            assert set(named.split(",")) <= set(extras), f"no such extra: {named}"


@pytest.mark.parametrize(("block", "line"), cases())
def test_line_would_be_understood(group, block: Block, line):
    if block.directive == "no-run":
        pytest.skip(block.argument)
    for part in words(line):
        check_words(group, part)


@pytest.mark.parametrize(
    "line",
    [
        "agl trian --data x",
        "agl train --dataa x",
        "agl train --runners many",
        "agl show",
        "agl serve --port many",
        "make dmo",
        "tongyi-cli --trian x",
    ],
)
def test_a_wrong_line_is_noticed(group, line):
    with pytest.raises((Exception, SystemExit)):
        check_words(group, words(line)[0])
