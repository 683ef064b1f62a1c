"""Which upstream answers for which model name."""

from __future__ import annotations

import logging
from collections.abc import Mapping

from agentlightning.gateway.errors import CallError
from agentlightning.gateway.upstream.base import Upstream
from agentlightning.kit.errors import ConfigError

_log = logging.getLogger(__name__)

DEFAULT_MODEL = "default"


class RoutingTable:
    """Model names and aliases to upstreams.

    Args:
        routes: Upstream by model name; several names may share one upstream. A single upstream answers for
        `default`.
        accept_any_model: Let the only upstream answer for every name. Names that it knows itself need no
        entry.

    Raises:
        ConfigError: There is no upstream, or `accept_any_model` with more than one.
    """

    def __init__(self, routes: Mapping[str, Upstream] | Upstream, *, accept_any_model: bool = False) -> None:
        self._routes = dict(routes) if isinstance(routes, Mapping) else {DEFAULT_MODEL: routes}
        self._accept_any_model = accept_any_model
        if not self._routes:
            raise ConfigError("The gateway has no upstream.", hint="Give it an engine or an OpenAI-compatible server.")
        if accept_any_model and len(self.upstreams) > 1:
            raise ConfigError(
                "accept_any_model needs exactly one upstream.",
                hint="Route each model name to its upstream instead.",
            )

    @property
    def upstreams(self) -> list[Upstream]:
        """All upstreams, each once."""
        return list({id(upstream): upstream for upstream in self._routes.values()}.values())

    def add(self, model: str, upstream: Upstream) -> None:
        """Route a model name (or alias) to an upstream, replacing its earlier route."""
        self._routes[model] = upstream

    def resolve(self, model: str) -> Upstream:
        """The upstream for a model name.

        Raises:
            CallError: 404; the message lists the names there are.
        """
        upstream = self._routes.get(model)
        if upstream is not None:
            return upstream
        if self._accept_any_model:
            return next(iter(self._routes.values()))
        for candidate in self.upstreams:
            if model in candidate.names():
                return candidate
        known = ", ".join(f"'{name}'" for name in self.names())
        raise CallError(
            f"The model '{model}' does not exist. Models here: {known}.",
            status=404,
            param="model",
            reason="model_not_found",
        )

    def names(self) -> list[str]:
        """All names that are known without asking a server."""
        names = dict.fromkeys(self._routes)
        for upstream in self.upstreams:
            names.update(dict.fromkeys(upstream.names()))
        return list(names)

    async def list_models(self) -> list[str]:
        """All names, including those the upstreams report when asked."""
        names = dict.fromkeys(self.names())
        for upstream in self.upstreams:
            try:
                names.update(dict.fromkeys(await upstream.list_models()))
            except CallError as error:  # a server that is down must not hide the others' models
                _log.warning("Cannot list the models of an upstream: %s", error)
        return list(names)
