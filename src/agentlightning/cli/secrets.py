"""`agl platform secrets`: keys of providers and tools, kept encrypted in the database. Values are never shown."""

from __future__ import annotations

import sys
from collections.abc import Coroutine
from pathlib import Path
from typing import Annotated, Any, TypeVar

import typer

from agentlightning.cli.platform_parts import platform_at

T = TypeVar("T")

HomeOption = Annotated[Path | None, typer.Option(help="Folder of the database and secrets; else AGL_HOME.")]
NameArgument = Annotated[str, typer.Argument(help="Name of the environment variable it stands for: OPENAI_API_KEY ...")]


def register(platform: typer.Typer) -> None:
    """Add the commands below `agl platform`."""
    group = typer.Typer(
        help="Keys that the platform keeps encrypted; models get them at once, tools at its next start."
    )
    group.command("set", help="Keep a secret: asked for without showing it, or read from standard input.")(keep)
    group.command("list", help="Names of the secrets; values are never shown.")(listed)
    group.command("delete", help="Keep a secret no longer.")(remove)
    group.command("rotate", help="Encrypt all anew with AGL_SECRET_KEY; AGL_OLD_SECRET_KEYS still decrypts.")(rotate)
    platform.add_typer(group, name="secrets", no_args_is_help=True)


def keep(
    name: NameArgument,
    stdin: Annotated[bool, typer.Option("--stdin", help="Read the value from standard input.")] = False,
    home: HomeOption = None,
) -> None:
    from agentlightning.platform.system.stored import check_name

    check_name(name)
    value = sys.stdin.read().rstrip("\r\n") if stdin else typer.prompt(f"Value of {name}", hide_input=True)

    async def run() -> None:
        async with platform_at(home) as platform:
            await platform.secrets.set(name, value)

    _run(run())
    typer.echo(f"{name} is kept encrypted, and used unless the variable is set")
    typer.echo("  a platform that runs: by its models within ten seconds, by everything else from the next start on")


def listed(home: HomeOption = None) -> None:
    async def run() -> Any:
        async with platform_at(home) as platform:
            return await platform.secrets.list()

    for about in _run(run()):
        note = "" if about.is_readable else f"   encrypted with another key ({about.key_id})"
        typer.echo(f"{about.name:<32} {about.updated_at:%Y-%m-%d %H:%M} {about.updated_by}{note}")


def remove(name: NameArgument, home: HomeOption = None) -> None:
    async def run() -> None:
        async with platform_at(home) as platform:
            await platform.secrets.delete(name)

    _run(run())
    typer.echo(f"{name} is deleted")


def rotate(home: HomeOption = None) -> None:
    async def run() -> int:
        async with platform_at(home) as platform:
            return await platform.secrets.rotate()

    count = _run(run())
    typer.echo(f"{count} encrypted anew; AGL_OLD_SECRET_KEYS is not needed any more")


def _run(work: Coroutine[Any, Any, T]) -> T:
    from agentlightning.kit.bridge import run_sync

    return run_sync(work)
