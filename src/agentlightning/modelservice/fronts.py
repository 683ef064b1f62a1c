"""What `agl serve` puts behind its gateway (other servers) and around it (a cache, masking), as its options say."""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path
from typing import Any

_MODES = ("train", "val", "test")
_UNATTRIBUTED = "unattributed"
_OPENAI, _ANTHROPIC = "https://api.openai.com/v1", "https://api.anthropic.com"


@dataclass(frozen=True, kw_only=True)
class Fronts:
    """Servers that answer for models which are not loaded here."""

    base_url: str | None = None
    anthropic_url: str | None = None
    litellm: tuple[str, ...] = ()
    """LiteLLM's names of models, `NAME=...` before those that agents ask for under another name."""
    routes: Path | None = None

    @classmethod
    def of_environment(cls) -> Fronts:
        """The servers that OpenAI's and Anthropic's own clients would ask: by their URL and key variables."""
        import os

        url, key = os.environ.get("OPENAI_BASE_URL"), os.environ.get("OPENAI_API_KEY")
        other, other_key = os.environ.get("ANTHROPIC_BASE_URL"), os.environ.get("ANTHROPIC_API_KEY")
        return cls(
            base_url=url or (_OPENAI if key else None), anthropic_url=other or (_ANTHROPIC if other_key else None)
        )

    @property
    def any(self) -> bool:
        """Whether there are some, so that no model has to be loaded."""
        return any((self.base_url, self.anthropic_url, self.litellm, self.routes))

    def add_to(self, table: Any) -> list[str]:
        """Route to all but those of the file; what was added, a line for each.

        Raises:
            ConfigError: Two servers would answer for one name, or a URL is none.
            MissingExtraError: LiteLLM is not installed.
        """
        from agentlightning.gateway import AnthropicUpstream, OpenAIUpstream, Route, Target

        told: list[str] = []
        if self.base_url is not None:
            _check_url("--base-url", self.base_url)
            upstream = OpenAIUpstream(self.base_url)
            table.accept_any(Route("*", [(Target(upstream.base_url, upstream), 1.0)]))
            told.append(f"all other models: {upstream.base_url}")
        if self.anthropic_url is not None:
            _check_url("--anthropic-url", self.anthropic_url)
            anthropic = AnthropicUpstream(self.anthropic_url)
            target = Target(anthropic.base_url, anthropic)
            if self.base_url is None:
                table.accept_any(Route("*", [(target, 1.0)]))
            else:
                table.add_route(Route("claude*", [(target, 1.0)]))
            told.append(
                f"{'all other models' if self.base_url is None else 'claude*'} (Anthropic): {anthropic.base_url}"
            )
        return told + self._add_litellm(table)

    def _add_litellm(self, table: Any) -> list[str]:
        from agentlightning.gateway import LiteLLMUpstream
        from agentlightning.kit.errors import ConfigError

        told: list[str] = []
        for text in self.litellm:
            name, _, model = text.rpartition("=")
            name = name or model
            if not model:
                raise ConfigError(
                    f"--litellm {text} names no model.", hint="For example --litellm fast=gemini/gemini-2.5-flash"
                )
            if name in table.names():
                raise ConfigError(
                    f"Two models are called {name!r}.", hint=f"Give one another name: --litellm other={model}"
                )
            table.add(name, LiteLLMUpstream(model, name=name))
            told.append(f"{name} (LiteLLM): {model}")
        return told

    def add_routes(self, table: Any, ledger: Path) -> Any:
        """The file's routes too; its budgets, if it has caps.

        Raises:
            ConfigError: The file has faults, or says who answers for all other names though an option does.
        """
        from agentlightning.gateway import load_routes
        from agentlightning.kit.errors import ConfigError

        if self.routes is None:
            return None
        before = table.for_any_name
        budgets = load_routes(self.routes, table=table, ledger=ledger).budgets
        if before is not None and table.for_any_name is not before:
            option = "--base-url" if self.base_url is not None else "--anthropic-url"
            raise ConfigError(
                f"{option} and accept_any_model in {self.routes} both say who answers for all other names.",
                hint="Leave one of them out.",
            )
        return budgets


def _check_url(option: str, url: str) -> None:
    from urllib.parse import urlsplit

    from agentlightning.kit.errors import ConfigError

    parts = urlsplit(url)
    if parts.scheme not in ("http", "https") or not parts.hostname:
        raise ConfigError(f"{option} has to be a URL.", hint=f"For example {option} http://127.0.0.1:8000/v1")


def response_cache(where: str | None, modes: str | None, version: str | None) -> Any:
    """The cache that the options ask for, or `None`.

    Args:
        where: `memory` or a Redis URL.
        modes: Modes with commas between, `unattributed` for calls of no rollout.
        version: Name of the weights that servers behind the gateway have.

    Raises:
        ConfigError: An option is wrong, or given without `--cache`.
        MissingExtraError: Redis's client is not installed.
    """
    from agentlightning.gateway import ResponseCache
    from agentlightning.kit.errors import ConfigError

    if where is None:
        given = {"--cache-modes": modes, "--cache-version": version}
        alone = [option for option, value in given.items() if value is not None]
        if alone:
            raise ConfigError(f"{' and '.join(alone)} without --cache.", hint="Add --cache memory or --cache redis://…")
        return None
    names = [name.strip() for name in (modes or "val,test").split(",") if name.strip()]
    unknown = sorted(set(names) - {*_MODES, _UNATTRIBUTED})
    if unknown or not names:
        raise ConfigError(
            f"Unknown modes to cache: {', '.join(unknown) or 'none given'}.",
            hint=f"Use some of: {', '.join((*_MODES, _UNATTRIBUTED))}.",
        )
    return ResponseCache(
        where,
        modes=[name for name in names if name != _UNATTRIBUTED],
        unattributed=_UNATTRIBUTED in names,
        model_versions={"*": version} if version else None,
    )


def masking_policy(kinds: str | None, cache: str | None) -> Any:
    """The policy that `--mask` asks for, or `None`.

    Raises:
        ConfigError: A kind is unknown, or answers would be kept unmasked in Redis.
    """
    from agentlightning.gateway import MaskingPolicy
    from agentlightning.kit.errors import ConfigError

    if kinds is None:
        return None
    if cache not in (None, "memory"):
        raise ConfigError(
            "--mask and a cache in Redis exclude each other: answers would be kept there unmasked.",
            hint="Use --cache memory.",
        )
    return MaskingPolicy.parse(kinds)
