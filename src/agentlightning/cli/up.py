"""`agl up`: the platform's API in one process; `agl platform`: its database and its passwords."""

from __future__ import annotations

import contextlib
from collections.abc import AsyncGenerator
from pathlib import Path
from typing import Annotated, Any

import typer

HELP = """Start the platform: the API with users, roles and the audit log.

Without settings it keeps everything in one SQLite file in AGL_HOME; DATABASE_URL and REDIS_URL name PostgreSQL and
Redis instead. The first start makes the user admin and prints a password that has to be changed at the first login."""

EPILOG = """Examples:

  agl up

  agl up --host 0.0.0.0 --port 8000

  DATABASE_URL=postgresql://… REDIS_URL=redis://… AGL_JWT_SECRETS=k1:$(openssl rand -hex 32) agl up"""

HomeOption = Annotated[Path | None, typer.Option(help="Folder of the database and secrets; else AGL_HOME.")]


def register(app: typer.Typer) -> None:
    """Add the commands."""
    app.command(help=HELP, epilog=EPILOG)(up)
    platform = typer.Typer(help="The platform's database and passwords.", no_args_is_help=True)
    platform.command("migrate", help="Create or upgrade the platform's tables. One process at a time; safe to repeat.")(
        migrate
    )
    platform.command("reset-password", help="Make a one-time password for a user, e.g. an admin who lost theirs.")(
        reset_password
    )
    platform.command("create-admin", help="Make an admin and print its one-time password, e.g. the first one.")(
        create_admin
    )
    app.add_typer(platform, name="platform")


def up(
    host: Annotated[str, typer.Option(help="Address to listen on.")] = "127.0.0.1",
    port: Annotated[int, typer.Option(help="Port to listen on; 0 takes a free one.", min=0, max=65535)] = 8000,
    home: HomeOption = None,
) -> None:
    from agentlightning.kit.bridge import run_sync

    run_sync(_up(_settings(home), host, port))


def migrate(home: HomeOption = None) -> None:
    from agentlightning.platform.migrations import migrate as run

    before, after = run(_settings(home).location)
    typer.echo(f"version {after}" if before == after else f"{before or 'no tables'} -> version {after}")


def reset_password(
    username: Annotated[str, typer.Argument(help="Whose.")],
    home: HomeOption = None,
) -> None:
    from agentlightning.kit.bridge import run_sync

    typer.echo(f"one-time password: {run_sync(_reset(_settings(home), username))}")


def create_admin(
    username: Annotated[str, typer.Argument(help="The new user's name.")] = "admin",
    home: HomeOption = None,
) -> None:
    from agentlightning.kit.bridge import run_sync

    typer.echo(f"one-time password: {run_sync(_create(_settings(home), username))}")


def _settings(home: Path | None) -> Any:
    from agentlightning.platform.settings import load_settings

    return load_settings(**({} if home is None else {"home": home}))


async def _up(settings: Any, host: str, port: int) -> None:
    import asyncio

    from agentlightning.kit.http import HttpServer
    from agentlightning.kit.signals import stop_requests
    from agentlightning.platform.app import create_app
    from agentlightning.platform.migrations import migrate as run_migrations
    from agentlightning.store.access import is_loopback

    stopped = asyncio.Event()
    app = create_app(settings)
    await asyncio.to_thread(run_migrations, settings.location)
    async with contextlib.AsyncExitStack() as stack:
        stack.enter_context(stop_requests(lambda number: stopped.set()))
        await stack.enter_async_context(app.router.lifespan_context(app))
        server = await stack.enter_async_context(HttpServer(app, host=host, port=port))
        password = await app.state.platform.auth.first_admin()
        typer.echo(f"listening on {server.url}   docs: {server.url}/docs   stop: Ctrl-C")
        if password is not None:
            typer.echo("  first login: admin")
            typer.echo(f"  one-time password: {password}   (shown once; PUT /auth/password replaces it)")
        if not is_loopback(host):
            typer.echo("  other machines reach this without encryption: put a proxy that ends TLS in front of it")
        await stopped.wait()
        typer.echo("stopping: calls under way are finished")


async def _reset(settings: Any, username: str) -> str:
    from agentlightning.kit.errors import NotFoundError
    from agentlightning.platform.auth import repository

    async with _platform(settings) as platform:
        async with platform.database.read() as session:
            user = await repository.user_named(session, username)
        if user is None:
            raise NotFoundError(f"There is no user {username!r}.", hint="Make an admin: agl platform create-admin NAME")
        _, password = await platform.users.change(user.id, reset_password=True)
        return str(password)


async def _create(settings: Any, username: str) -> str:
    from pydantic import TypeAdapter, ValidationError

    from agentlightning.kit.errors import BadInputError
    from agentlightning.platform.api.schemas import Username

    try:
        name = TypeAdapter(Username).validate_python(username)
    except ValidationError as error:
        raise BadInputError("A username has 2 to 64 letters, digits, dots, dashes, _ or @.") from error
    async with _platform(settings) as platform:
        _, password = await platform.users.create(name, "admin", None)
        return str(password)


@contextlib.asynccontextmanager
async def _platform(settings: Any) -> AsyncGenerator[Any]:
    """The platform's parts, without a server."""
    from agentlightning.platform.app import create_app  # says which package is missing, if one is
    from agentlightning.platform.migrations import check_revision

    platform = create_app(settings).state.platform
    try:
        await check_revision(platform.database)
        yield platform
    finally:
        await platform.close()
