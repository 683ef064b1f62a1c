"""`agl serve`: the model service: models, gateway and store on one port."""

from __future__ import annotations

from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any

import typer

from agentlightning.cli.locations import StoreOption, chosen_location

if TYPE_CHECKING:
    from agentlightning.modelservice.fronts import Fronts

HELP = """Serve models, and record every call of a rollout.

OpenAI- and Anthropic-compatible at /v1, rollout-scoped at /rollout/{id}/attempt/{id}/v1, the store at /v1/agl, the
management of models at /models and /registry (described at /docs), /health and /metrics."""

EPILOG = """Examples:

  agl serve --model nano --port 8005

  agl serve --model demo --model judge=./Qwen3-0.6B --idle-unload 600

  agl serve --model demo@v1 --lazy

  agl serve --config models.toml

  agl serve --base-url http://127.0.0.1:11434/v1

  agl serve --anthropic-url https://api.anthropic.com --litellm fast=gemini/gemini-2.5-flash

  agl serve --routes routes.toml --mask email,phone

  agl serve --model demo --cache memory --cache-modes val,test

  AGL_STORE_TOKEN=$(openssl rand -hex 32) AGL_GATEWAY_KEYS=me=$(openssl rand -hex 16) agl serve --host 0.0.0.0"""


ModelOption = Annotated[
    list[str] | None,
    typer.Option(help="Model directory, hub id, registered name or nano; NAME=… gives it a name. Repeatable."),
]
BaseUrlOption = Annotated[
    str | None, typer.Option(help="Front this OpenAI-compatible server for all other model names.")
]
RoutesOption = Annotated[
    Path | None,
    typer.Option(help="TOML file of targets, routes, prices and caps; loaded models are targets by their names."),
]
AnthropicUrlOption = Annotated[
    str | None,
    typer.Option(
        help="Front this server of Anthropic's API for all other model names; beside --base-url for claude*.",
    ),
]
LitellmOption = Annotated[
    list[str] | None,
    typer.Option(help="Reach a provider's model through LiteLLM, e.g. gemini/…; NAME=… renames it. Repeatable."),
]
MaskOption = Annotated[
    str | None,
    typer.Option(help="Mask these in records and logs: all, or some of secret,email,iban,card,ip,phone."),
]
ConfigOption = Annotated[Path | None, typer.Option(help="TOML file with a [[models]] table for each model.")]
EngineOption = Annotated[str, typer.Option(help="builtin, vllm or auto (vLLM where it and CUDA are there).")]
DeviceOption = Annotated[str, typer.Option(help="auto, cpu, cuda, cuda:1 ...")]
LazyOption = Annotated[
    bool, typer.Option("--lazy", help="Load models with their first call; every registered one may be called.")
]


def register(app: typer.Typer) -> None:
    """Add the command."""
    app.command(help=HELP, epilog=EPILOG)(serve)


def serve(
    model: ModelOption = None,
    base_url: BaseUrlOption = None,
    routes: RoutesOption = None,
    anthropic_url: AnthropicUrlOption = None,
    litellm: LitellmOption = None,
    cache: Annotated[
        str | None, typer.Option(help="Answer repeated calls again without the model: memory or redis://host:port/0.")
    ] = None,
    cache_modes: Annotated[
        str | None,
        typer.Option(
            help="Whose calls are cached: train, val, test, unattributed (of no rollout). [default: val,test]",
            show_default=False,
        ),
    ] = None,
    cache_version: Annotated[
        str | None,
        typer.Option(help="What the weights of fronted servers are called; without it their calls are not cached."),
    ] = None,
    mask: MaskOption = None,
    config: ConfigOption = None,
    host: Annotated[str, typer.Option(help="Address to listen on.")] = "127.0.0.1",
    port: Annotated[int, typer.Option(help="Port to listen on; 0 takes a free one.", min=0, max=65535)] = 8005,
    engine: EngineOption = "auto",
    device: DeviceOption = "auto",
    dtype: Annotated[str, typer.Option(help="auto, float32, bfloat16 or float16.")] = "auto",
    adapter: Annotated[str | None, typer.Option(help="LoRA adapter (directory or hub id) for the model.")] = None,
    lazy: LazyOption = False,
    idle_unload: Annotated[
        float | None, typer.Option(help="Unload models after so many seconds without a call.", min=0.1)
    ] = None,
    max_rows: Annotated[int, typer.Option(help="Most sequences decoded together, per model.", min=1)] = 256,
    max_context: Annotated[int | None, typer.Option(help="Use less of the models' context.", min=1)] = None,
    max_memory_mb: Annotated[int | None, typer.Option(help="Memory for keys and values, per model.", min=1)] = None,
    store: StoreOption = None,
    token: Annotated[
        str | None,
        typer.Option(
            envvar="AGL_STORE_TOKEN",
            help="Ask for this token on the store's and the management's routes; better by environment.",
        ),
    ] = None,
    is_open: Annotated[
        bool,
        typer.Option("--open", help="Let other machines use gateway, store and management without keys and token."),
    ] = False,
) -> None:
    from agentlightning.kit.bridge import run_sync
    from agentlightning.modelservice.fronts import Fronts, masking_policy, response_cache

    common = {
        "engine": engine,
        "device": device,
        "dtype": dtype,
        "adapter": adapter,
        "lazy": lazy,
        "idle_unload_s": idle_unload,
        "max_rows": max_rows,
        "max_context": max_context,
        "max_memory_mb": max_memory_mb,
    }
    fronts = Fronts(base_url=base_url, anthropic_url=anthropic_url, litellm=tuple(litellm or ()), routes=routes)
    specs = model_specs(model or [], config, common, fronted=fronts.any)
    around = {"masking": masking_policy(mask, cache), "cache": response_cache(cache, cache_modes, cache_version)}
    run_sync(_serve(specs, fronts, around, host, port, store, token, is_open=is_open, lazy=lazy))


def model_specs(models: list[str], config: Path | None, common: dict[str, Any], *, fronted: bool) -> list[Any]:
    """The models named on the command line and in the file; the embedded one if there are none.

    Raises:
        BadInputError: The file cannot be read.
        ConfigError: A setting is wrong, unknown, or given to several models though it fits one.
    """
    from agentlightning.config import ModelSpec
    from agentlightning.kit.errors import ConfigError

    named = [(name, source) for name, _, source in (text.rpartition("=")[::1] for text in models)]
    specs = [ModelSpec(**common, name=name or _name_of(source), source=source) for name, source in named]
    specs += [ModelSpec(**{**common, **table}) for table in _tables(config)]
    if not specs and not fronted and not common["lazy"]:
        specs = [ModelSpec(**common, name="nano")]
    if common["adapter"] is not None and len(specs) > 1:
        raise ConfigError("--adapter fits one model.", hint="Set adapter for each model in a file: --config.")
    if specs and not any("default" in (spec.name, *spec.aliases) for spec in specs):
        specs[0] = specs[0].model_copy(update={"aliases": [*specs[0].aliases, "default"]})
    return specs


def _name_of(source: str) -> str:
    """What a model is called that was given no name: its path's last part, or the hub id or registered name."""
    path = Path(source).expanduser()
    return path.resolve().name if path.is_dir() or source.startswith((".", "/", "~")) else source


def _tables(path: Path | None) -> list[dict[str, Any]]:
    import tomllib

    from agentlightning.kit.errors import BadInputError

    if path is None:
        return []
    try:
        content = tomllib.loads(path.read_text(encoding="utf-8"))
    except (OSError, ValueError) as error:
        raise BadInputError(f"{path} cannot be read: {error}") from error
    tables = content.get("models")
    if set(content) != {"models"} or not isinstance(tables, list):
        raise BadInputError(f"{path} has to hold [[models]] tables and nothing else.")
    return tables


async def _serve(
    specs: list[Any],
    fronts: Fronts,
    around: dict[str, Any],
    host: str,
    port: int,
    location: str | None,
    token: str | None,
    *,
    is_open: bool,
    lazy: bool,
) -> None:
    import asyncio
    import contextlib
    from functools import partial

    from agentlightning.config import Settings
    from agentlightning.gateway import KeyRing
    from agentlightning.kit.signals import stop_requests
    from agentlightning.modelservice.composition import composed
    from agentlightning.modelservice.routes import service_routes
    from agentlightning.store.access import check_exposure, store_token
    from agentlightning.store.routes import store_routes

    token = store_token(token)
    check_exposure(host, token, is_open=is_open)
    stopped = asyncio.Event()
    keys = KeyRing.of(None)
    async with contextlib.AsyncExitStack() as stack:
        stack.enter_context(stop_requests(lambda number: stopped.set()))
        parts = await stack.enter_async_context(
            composed(
                chosen_location(location),
                specs,
                fronts,
                home=Settings().home,
                serve_registered=lazy,
                host=host,
                port=port,
                extra_routes=partial(store_routes, token=token),
                keys=keys,
                is_open=is_open,
                **around,
            )
        )
        gateway, service, loads = parts.gateway, parts.service, parts.service.models
        # Before the gateway's own: some paths are in both.
        gateway.app.router.routes[:0] = service_routes(service, gateway=parts.facts, token=token, keys=keys)
        service.start()
        await gateway.start()
        stack.push_async_callback(gateway.stop)
        typer.echo(f"listening on {gateway.url}   stop: Ctrl-C")
        await _load_all([served for served in loads if not served.spec.lazy], stopped)
        if not stopped.is_set():
            _check_any(service.models, fronted=fronts.any)
            _greet(gateway.url, service, parts.fronted)
            if fronts.routes is not None:
                typer.echo(f"  routes of {fronts.routes}: {', '.join(route.name for route in parts.routes.routes)}")
            if keys is not None:
                typer.echo(f"  keys: {', '.join(keys.names)}")
        await stopped.wait()
        typer.echo("stopping: calls under way are finished")


async def _load_all(models: list[Any], stopped: Any) -> None:
    """Load the models beside each other, unless the user stops. What cannot be loaded says so in its state."""
    import asyncio

    async with asyncio.TaskGroup() as group:
        tasks = [group.create_task(_loaded(served)) for served in models]
        ending = group.create_task(stopped.wait())
        loads = asyncio.gather(*tasks, return_exceptions=True)
        await asyncio.wait({ending, loads}, return_when=asyncio.FIRST_COMPLETED)
        for task in (*tasks, ending):
            task.cancel()


async def _loaded(served: Any) -> None:
    import contextlib

    from agentlightning.kit.errors import AgentLightningError

    with contextlib.suppress(AgentLightningError):  # it is in `served.error`, which `_check_any` tells
        await served.load()


def _check_any(models: list[Any], *, fronted: bool) -> None:
    """Go on without a model that cannot be loaded, but not without any.

    Raises:
        ModelError: All failed.
    """
    from agentlightning.kit.errors import ModelError

    failed = [served for served in models if served.state == "failed"]
    if models and len(failed) == len(models) and not fronted:
        raise ModelError("; ".join(served.error for served in failed))
    for served in failed:
        typer.secho(f"  {served.spec.name} is not available: {served.error}", err=True, fg="red")


def _greet(url: str, service: Any, fronted: list[str]) -> None:
    for served in service.models:
        names = ", ".join((served.spec.name, *served.spec.aliases))
        typer.echo(f"  model {names}: {served.state}" + (f" ({served.version})" if served.version else ""))
    for line in fronted:
        typer.echo(f"  {line}")
    typer.echo(f"  OPENAI_BASE_URL={url}/v1   ANTHROPIC_BASE_URL={url}")
    typer.echo(f"  store: {url}/v1/agl   models: {url}/models   docs: {url}/docs   health: {url}/health")
