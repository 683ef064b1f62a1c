"""Where a command finds its store: one option, one rule, for every command. Knows no rows."""

from __future__ import annotations

from typing import TYPE_CHECKING, Annotated, Any

import typer

if TYPE_CHECKING:
    from agentlightning.config import Settings

_HELP = "File or postgresql://user@host/database?schema=name (default: $AGL_STORE, else store.db in $AGL_HOME)."

StoreOption = Annotated[str | None, typer.Option("--store", metavar="FILE_OR_URL", help=_HELP, show_default=False)]
StoreArgument = Annotated[str | None, typer.Argument(metavar="[STORE]", help=_HELP, show_default=False)]


def chosen_location(store: str | None) -> str:
    """What the user named, else what the settings say."""
    from agentlightning.config import Settings

    return store or Settings().store_location


def settings_with(store: str | None) -> Settings:
    """The settings, with the store that the user named, if any."""
    from agentlightning.config import Settings

    return Settings(store=store) if store else Settings()


def open_existing(store: str | None) -> Any:
    """Open a store to look at it: nothing is created where there is none.

    Raises:
        NotFoundError: There is none.
    """
    from agentlightning.kit.errors import NotFoundError
    from agentlightning.store import SqlLightningStore
    from agentlightning.store.databases import parse_location, require_store

    location = parse_location(chosen_location(store))
    try:
        require_store(location)
    except NotFoundError as error:
        hint = error.hint if store else "Run `agl demo` here first, or give --store, AGL_STORE or AGL_HOME."
        raise NotFoundError(error.message, hint=hint, details=error.details) from error
    return SqlLightningStore(location)  # pyright: ignore[reportArgumentType] - memory was refused above
