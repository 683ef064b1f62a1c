"""Options that several commands share, and how their texts are read. Knows no stores."""

from __future__ import annotations

from typing import Annotated

import typer

AsJson = Annotated[bool, typer.Option("--json", help="Print JSON.")]
RolloutTimeout = Annotated[float, typer.Option("--timeout", help="Seconds a rollout may take.", min=0.1)]
NewRun = Annotated[str | None, typer.Option("--run-id", help="Name of the run (default: made from the arguments).")]
Fresh = Annotated[bool, typer.Option("--fresh", help="Start anew instead of continuing.")]
Runners = Annotated[int, typer.Option(help="Runner processes.", min=1)]
Concurrency = Annotated[int, typer.Option(help="Rollouts at once per runner.", min=1)]


def moment(text: str | None, option: str) -> float | None:
    """A date or time of ISO 8601, UTC unless it says otherwise, as Unix seconds.

    Args:
        text: What the user wrote; `None` stays `None`.
        option: Its option, for the message.

    Raises:
        BadInputError: It is none.
    """
    from datetime import UTC, datetime

    from agentlightning.kit.errors import BadInputError

    if text is None:
        return None
    try:
        found = datetime.fromisoformat(text)
    except ValueError as error:
        raise BadInputError(f"{option} {text!r} is no date.", hint="Write 2026-11-01, or 2026-11-01T12:00.") from error
    return (found if found.tzinfo else found.replace(tzinfo=UTC)).timestamp()
