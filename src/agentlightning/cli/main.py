"""`agl`: the command line. The composition root; nothing imports it. Commands load what they need when they run."""

from __future__ import annotations

import sys
from typing import Annotated, Any

import typer

from agentlightning import __version__

app = typer.Typer(
    name="agl",
    help="Train any AI agent: trace it, evaluate it, improve its prompts and weights.",
    epilog="Start with: agl demo    Then: agl runs, agl rollouts, agl show ROLLOUT, agl chat",
    no_args_is_help=True,
    add_completion=False,
    pretty_exceptions_enable=False,
    context_settings={"help_option_names": ["-h", "--help"]},
)


def _version(value: bool) -> None:
    if value:
        typer.echo(f"agentlightning {__version__}")
        raise typer.Exit


@app.callback()
def _root(
    version: Annotated[
        bool, typer.Option("--version", callback=_version, is_eager=True, help="Print the version and exit.")
    ] = False,
) -> None:
    del version


def _register() -> None:
    from agentlightning.cli import (
        ab,
        agents_shipped,
        ask,
        chat,
        demo,
        doctor,
        evaluate,
        exchange,
        knowledge,
        lineage,
        migrate_json,
        models,
        nano,
        optimize,
        records,
        runner,
        serve,
        store,
        tools,
        train,
        up,
    )

    for module in (
        demo,
        train,
        optimize,
        lineage,
        evaluate,
        ab,
        ask,
        chat,
        records,
        models,
        serve,
        runner,
        doctor,
        nano,
        store,
        exchange,
        up,
        migrate_json,
        knowledge,
        tools,
        agents_shipped,
    ):
        module.register(app)


def main() -> None:
    """Entry point: runs a command and turns known errors into a message, a next step and an exit code.

    Exit codes: 0 done, 1 failed, 2 wrong usage, 130 stopped by the user.
    """
    _register()
    _configure_logging()
    try:
        app()
    except KeyboardInterrupt:
        sys.exit(130)
    except Exception as error:  # ours and the usual are explained in a line, the others raised again
        code = _explain(error)
        if code is None:
            raise
        sys.exit(code)


TOO_TALKATIVE = ("httpcore", "hpack", "aiosqlite")
"""Loggers that write headers and the values of statements when they are turned up: keys may be among them."""


def _configure_logging() -> None:
    """Warnings as single lines; `AGL_DEBUG=1` adds tracebacks and everything below."""
    import logging
    import os

    class OneLine(logging.Formatter):
        def formatException(self, ei: Any) -> str:  # noqa: N802 - logging's name
            return f"  {ei[0].__name__}: {ei[1]}" if ei and ei[0] else ""

    debug = os.environ.get("AGL_DEBUG", "") not in ("", "0")
    handler = logging.StreamHandler()
    formatter = logging.Formatter if debug else OneLine
    handler.setFormatter(formatter("%(levelname)s %(name)s: %(message)s"))
    logging.basicConfig(level=logging.DEBUG if debug else logging.WARNING, handlers=[handler])
    for name in TOO_TALKATIVE:
        logging.getLogger(name).setLevel(logging.INFO)


def _explain(error: Exception) -> int | None:
    from agentlightning.kit.errors import AgentLightningError

    if not isinstance(error, AgentLightningError):
        return None
    stopped = error.code == "RUN_STOPPED"
    typer.secho(f"{'stopped' if stopped else 'error'}: {error.message}", err=True, fg="yellow" if stopped else "red")
    if error.hint:
        typer.secho(f"next:  {error.hint}", err=True)
    return 130 if stopped else 1


if __name__ == "__main__":
    main()
