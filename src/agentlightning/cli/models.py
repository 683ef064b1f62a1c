"""`agl models`: look at registered model versions and change their stage; load and unload them in a running service."""

from __future__ import annotations

from typing import Annotated, Any

import typer

from agentlightning.cli.output import percent, print_json, print_table

HELP = """Model versions: list them, put one into production, take it back.

A running `agl serve` follows promotions and rollbacks of the models it serves without dropping a request."""

app = typer.Typer(help=HELP, no_args_is_help=True)

Ref = Annotated[str, typer.Argument(help="NAME@VERSION, e.g. demo@v3.")]
Reason = Annotated[str, typer.Option(help="Why; kept in the history.")]
AsJson = Annotated[bool, typer.Option("--json", help="Print JSON.")]
Force = Annotated[bool, typer.Option("--force", help="Even if it is in production.")]


def register(root: typer.Typer) -> None:
    """Add the group of commands."""
    root.add_typer(app, name="models")


@app.command("list", epilog="Examples:  agl models list  |  agl models list demo --json")
def list_models(
    name: Annotated[str | None, typer.Argument(help="Only this model.")] = None, as_json: AsJson = False
) -> None:
    """List registered versions with their stage and results."""
    registry = _registry()
    if name is not None:
        registry.get(name)  # a name that does not exist is an error
    versions = [v for n in ([name] if name else registry.names()) for v in registry.versions(n)]
    if as_json:
        print_json([_facts(version) for version in versions])
        return
    print_table(
        "",
        ("model", "stage", "before", "after", "parent", "run", "step"),
        (
            (v.ref, v.stage, _score(v, "before"), _score(v, "after"), v.parent or v.base, v.run_id, v.step)
            for v in versions
        ),
        empty="No model versions registered yet. A training run registers one when it gained.",
    )


@app.command(epilog="Examples:  agl models show demo  |  agl models show demo@v2 --json")
def show(ref: Ref, as_json: AsJson = False) -> None:
    """Show one version: lineage, results, and the history of its model."""
    import msgspec

    from agentlightning.cli.view import measures
    from agentlightning.kit.clock import iso

    registry = _registry()
    version = registry.get(ref)
    history = registry.history(version.name)
    if as_json:
        print_json({**_facts(version), "history": [msgspec.structs.asdict(change) for change in history]})
        return
    typer.echo(f"{version.ref}  {version.stage}\n  path    {version.path}")
    typer.echo(f"  base    {version.base}\n  parent  {version.parent or '-'}")
    typer.echo(f"  run     {version.run_id}  step {version.step}  {iso(version.created_at)}")
    for when in ("before", "after"):
        for key, evaluation in (version.metrics.get(when) or {}).items():
            typer.echo(f"  {when:7} {key}: {percent(evaluation.get('accuracy'))}")
    learning = version.metrics.get("learning") or {}
    for when in ("before", "after"):
        if learning.get(when):
            typer.echo(f"  {when:7} held-out {learning['unit']}: {measures(learning[when])}")
    print_table(
        "\nhistory",
        ("when", "what", "version", "instead of", "reason"),
        ((iso(c.at), c.action, c.version, c.replaced, c.reason or None) for c in history),
        empty="never promoted",
    )


@app.command(epilog="Example:  agl models promote demo@v3 --reason 'better on the April tests'")
def promote(ref: Ref, reason: Reason = "", as_json: AsJson = False) -> None:
    """Put a version into production; the one that was there is archived."""
    _report(_registry().promote(ref, reason=reason), as_json=as_json)


@app.command(epilog="Example:  agl models rollback demo --reason 'timeouts since v3'")
def rollback(
    name: Annotated[str, typer.Argument(help="The model.")], reason: Reason = "", as_json: AsJson = False
) -> None:
    """Put the earlier production version back."""
    _report(_registry().rollback(name, reason=reason), as_json=as_json)


@app.command(epilog="Example:  agl models archive demo@v1")
def archive(ref: Ref, reason: Reason = "", force: Force = False, as_json: AsJson = False) -> None:
    """Archive a version."""
    _report(_registry().archive(ref, reason=reason, force=force), as_json=as_json)


@app.command(epilog="Example:  agl models delete demo@v1")
def delete(ref: Ref, reason: Reason = "", force: Force = False, as_json: AsJson = False) -> None:
    """Delete a version and its files."""
    registry = _registry()
    version = registry.get(ref)
    registry.delete(version.ref, reason=reason, force=force)
    if as_json:
        print_json({**_facts(version), "stage": "deleted"})
    else:
        typer.echo(f"{version.ref} is deleted")


Name = Annotated[str, typer.Argument(help="What the service calls the model.")]
Url = Annotated[str, typer.Option(help="Where `agl serve` listens.")]
Token = Annotated[
    str | None, typer.Option(envvar="AGL_STORE_TOKEN", help="The service's token; better by environment.")
]
_SERVICE = "http://127.0.0.1:8005"


@app.command(epilog="Examples:  agl models load demo  |  agl models load judge --source ./Qwen3-0.6B")
def load(
    name: Name,
    source: Annotated[
        str | None, typer.Option(help="Serve a new model from this directory, hub id or registered name.")
    ] = None,
    url: Url = _SERVICE,
    token: Token = None,
    as_json: AsJson = False,
) -> None:
    """Load a model in a running service, and wait until it is ready."""
    if source is None:
        facts = _ask(url, token, "POST", f"/models/{name}/load?wait=true")
    else:
        facts = _ask(url, token, "POST", "/models?wait=true", {"name": name, "source": source})
    _report_served(facts, as_json=as_json)


@app.command(epilog="Example:  agl models unload demo")
def unload(name: Name, url: Url = _SERVICE, token: Token = None, as_json: AsJson = False) -> None:
    """Let a running service finish the model's calls and free its memory."""
    _report_served(_ask(url, token, "POST", f"/models/{name}/unload"), as_json=as_json)


@app.command(epilog="Example:  agl models served --json")
def served(url: Url = _SERVICE, token: Token = None, as_json: AsJson = False) -> None:
    """List the models of a running service with their state."""
    models = _ask(url, token, "GET", "/models")
    if as_json:
        print_json(models)
        return
    print_table(
        "",
        ("model", "state", "version", "calls", "in flight", "memory", "error"),
        (
            (m["id"], m["state"], m["version"], m["calls"], m["in_flight"], _megabytes(m["memory_mb"]), m["error"])
            for m in models
        ),
        empty="The service serves no model. Add one: agl models load NAME --source ./Qwen3-0.6B",
    )


def _ask(url: str, token: str | None, method: str, path: str, body: Any = None) -> Any:
    """The data of a service's answer.

    Raises:
        AgentLightningError: The service's own error, or it does not answer.
    """
    import httpx

    from agentlightning.kit.errors import AgentLightningError, UpstreamError

    headers = {"Authorization": f"Bearer {token}"} if token else {}
    try:
        answer = httpx.request(method, f"{url.rstrip('/')}{path}", json=body, headers=headers, timeout=1800).json()
    except (httpx.HTTPError, ValueError) as error:
        raise UpstreamError(f"No model service answers at {url}: {error}", hint="Start one: agl serve") from error
    if not isinstance(answer, dict) or not answer.get("success"):
        error = answer.get("error") if isinstance(answer, dict) else None
        told: dict[str, Any] = error if isinstance(error, dict) else {"message": f"{url} is no model service."}
        raise AgentLightningError(told["message"], hint=told.get("hint") or "")
    return answer["data"]


def _report_served(facts: dict[str, Any], *, as_json: bool) -> None:
    if as_json:
        print_json(facts)
    else:
        version = f" ({facts['version']})" if facts["version"] else ""
        typer.echo(f"{facts['id']} is {facts['state']}{version}")


def _megabytes(value: float | None) -> str | None:
    return None if value is None else f"{value:.0f} MB"


def _registry() -> Any:
    from agentlightning.config import Settings
    from agentlightning.registry import ModelRegistry

    return ModelRegistry(Settings().models_path)


def _facts(version: Any) -> dict[str, Any]:
    from dataclasses import asdict

    return {"ref": version.ref, **asdict(version)}


def _report(version: Any, *, as_json: bool) -> None:
    if as_json:
        print_json(_facts(version))
    else:
        typer.echo(f"{version.ref} is in stage {version.stage}")


def _score(version: Any, when: str) -> str:
    evaluations = version.metrics.get(when) or {}
    return percent(next((e.get("accuracy") for e in evaluations.values()), None))
