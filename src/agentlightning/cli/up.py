"""`agl up`: the platform's API in one process; `agl platform`: its database and its passwords."""

from __future__ import annotations

import contextlib
from collections.abc import Coroutine
from dataclasses import dataclass
from pathlib import Path
from typing import Annotated, Any

import typer

from agentlightning.cli import processes, secrets
from agentlightning.cli.platform_parts import platform_parts
from agentlightning.cli.serve import (
    AnthropicUrlOption,
    BaseUrlOption,
    ConfigOption,
    DeviceOption,
    EngineOption,
    LazyOption,
    LitellmOption,
    MaskOption,
    ModelOption,
    RoutesOption,
    model_specs,
)

HELP = """Start the platform: the API with users and roles, tasks, models, gateway and store on one port.

Without settings it keeps everything in SQLite files in AGL_HOME; DATABASE_URL and REDIS_URL name PostgreSQL and Redis
instead. The first start makes the user admin and prints a password that has to be changed at the first login. Models
are given as for agl serve; without any, agents that work on the embedded one can be used."""

EPILOG = """Examples:

  agl up

  agl up --base-url https://api.openai.com/v1 --default-model gpt-4.1-mini

  agl up --model ./Qwen3-0.6B --workers 2

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
    secrets.register(platform)
    app.add_typer(platform, name="platform")


def up(
    model: ModelOption = None,
    base_url: BaseUrlOption = None,
    routes: RoutesOption = None,
    anthropic_url: AnthropicUrlOption = None,
    litellm: LitellmOption = None,
    default_model: Annotated[
        str | None, typer.Option(help="The model of agents that name none; else the first one configured.")
    ] = None,
    mask: MaskOption = None,
    config: ConfigOption = None,
    engine: EngineOption = "auto",
    device: DeviceOption = "auto",
    lazy: LazyOption = False,
    host: Annotated[str, typer.Option(help="Address to listen on.")] = "127.0.0.1",
    port: Annotated[int, typer.Option(help="Port to listen on; 0 takes a free one.", min=0, max=65535)] = 8000,
    workers: Annotated[int, typer.Option(help="Processes that answer on the port.", min=1, max=64)] = 1,
    home: HomeOption = None,
) -> None:
    from agentlightning.kit.bridge import run_sync
    from agentlightning.modelservice.fronts import Fronts
    from agentlightning.platform.system.stored import supply

    settings = _settings(home, default_model, mask)
    supply(settings)
    fronts = Fronts(base_url=base_url, anthropic_url=anthropic_url, litellm=tuple(litellm or ()), routes=routes)
    if not fronts.any and not model and config is None:
        fronts = Fronts.of_environment()
    common = {"engine": engine, "device": device, "lazy": lazy, "adapter": None}
    specs = model_specs(model or [], config, common, fronted=True)  # the embedded one is there anyway

    def served(place: Listening) -> Coroutine[Any, Any, None]:
        from agentlightning.platform.mounts import ModelSetup

        setup = ModelSetup(specs=tuple(specs), fronts=fronts, serve_registered=lazy)
        return _up(settings, setup, place)

    inherited = processes.inherited()
    if inherited is not None:
        run_sync(served(Listening(host, inherited)))
    elif workers == 1:
        run_sync(served(Listening(host, None, port)))
    else:
        _check_shareable(routes)
        run_sync(_up_several(settings, host, port, workers, has_models=bool(specs) or fronts.any or lazy))


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


def _settings(home: Path | None, default_model: str | None = None, mask: str | None = None) -> Any:
    from agentlightning.platform.settings import load_settings

    given = {"home": home, "default_model": default_model, "mask": mask}
    return load_settings(**{name: value for name, value in given.items() if value is not None})


@dataclass(frozen=True)
class Listening:
    """Where to listen: a port, or a socket that the parent process has bound."""

    host: str
    bound: Any = None
    port: int = 0


def _check_shareable(routes: Path | None) -> None:
    """Refuse what would hold in each process for itself.

    Raises:
        ConfigError: Caps on spending.
    """
    from agentlightning.gateway import RoutingTable, load_routes
    from agentlightning.kit.errors import ConfigError

    if routes is None:
        return
    if load_routes(routes, table=RoutingTable(may_be_empty=True)).budgets is not None:
        raise ConfigError(
            f"The caps of {routes} hold within one process.",
            hint="Run one worker; or run agl serve with that file and point --base-url at it.",
        )


async def _up(settings: Any, setup: Any, place: Listening) -> None:
    import asyncio

    from agentlightning.kit.http import HttpServer
    from agentlightning.kit.signals import stop_requests
    from agentlightning.platform.app import create_app
    from agentlightning.platform.migrations import migrate as run_migrations

    stopped = asyncio.Event()
    app = create_app(settings, setup)
    is_alone = place.bound is None
    if is_alone:
        await asyncio.to_thread(run_migrations, settings.location)
    async with contextlib.AsyncExitStack() as stack:
        stack.enter_context(stop_requests(lambda number: stopped.set()))
        await stack.enter_async_context(app.router.lifespan_context(app))
        server = await stack.enter_async_context(
            HttpServer(app, host=place.host, port=place.port, bound=place.bound, websockets=True)
        )
        app.state.platform.url = server.url
        if is_alone:
            _greet(server.url, place.host, await app.state.platform.auth.first_admin())
            for line in app.state.platform.about_models():
                typer.echo(f"  {line}")
        await stopped.wait()
        if is_alone:
            typer.echo("stopping: calls under way are finished")


async def _up_several(settings: Any, host: str, port: int, workers: int, *, has_models: bool) -> None:
    """Migrate and bind once; then children answer, and one that dies is replaced."""
    import asyncio

    from agentlightning.kit.http import bind_socket
    from agentlightning.platform.app import create_app
    from agentlightning.platform.migrations import migrate as run_migrations
    from agentlightning.platform.models_config import NO_MODEL, WAYS

    app = create_app(settings)  # says what is missing or wrong before anybody starts
    await asyncio.to_thread(run_migrations, settings.location)
    password = await app.state.platform.auth.first_admin()
    await app.state.platform.close()
    with contextlib.closing(bind_socket(host, port)) as bound:

        def ready() -> None:
            _greet(processes.url_of(host, bound), host, password)
            typer.echo(f"  workers: {workers}")
            for line in () if has_models else (NO_MODEL, *WAYS):
                typer.echo(f"  {line}")

        await processes.supervise(bound, workers, ready)


def _greet(url: str, host: str, password: str | None) -> None:
    from agentlightning.store.access import is_loopback

    typer.echo(f"listening on {url}   docs: {url}/docs   stop: Ctrl-C")
    if password is not None:
        typer.echo("  first login: admin")
        typer.echo(f"  one-time password: {password}   (shown once; PUT /auth/password replaces it)")
    if not is_loopback(host):
        typer.echo("  other machines reach this without encryption: put a proxy that ends TLS in front of it")


async def _reset(settings: Any, username: str) -> str:
    from agentlightning.kit.errors import NotFoundError
    from agentlightning.platform.auth import repository

    async with platform_parts(settings) as platform:
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
    async with platform_parts(settings) as platform:
        _, password = await platform.users.create(name, "admin", None)
        return str(password)
