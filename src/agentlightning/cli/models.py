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
