"""Which upstream answers for which model name."""

from __future__ import annotations

import logging
from collections.abc import Mapping, Sequence

from agentlightning.gateway.errors import CallError
from agentlightning.gateway.upstream.base import Upstream
from agentlightning.kit.errors import ConfigError

_log = logging.getLogger(__name__)


class RoutingTable:
    """Model names and aliases to upstreams.

    Args:
        upstreams: Upstreams by model name (several names may share one), or upstreams that answer for the
            names
            they know themselves. One that knows none, such as a server fronted without naming a model,
            answers for every name that no other one knows.
        accept_any_model: Let the only upstream answer for every name.

    Raises:
        ConfigError: There is no upstream, or more than one that would answer for every name.
    """

    def __init__(
        self, upstreams: Mapping[str, Upstream] | Sequence[Upstream], *, accept_any_model: bool = False
    ) -> None:
        if not upstreams:
            raise ConfigError("The gateway has no upstream.", hint="Give it an engine or an OpenAI-compatible server.")
        self._routes: dict[str, Upstream] = {}
        self._unnamed: list[Upstream] = []
        if isinstance(upstreams, Mapping):
            self._routes.update(upstreams)
            nameless = list(self._routes.values()) if accept_any_model else []
        else:
            self._unnamed = list(upstreams)
            nameless = [upstream for upstream in self._unnamed if accept_any_model or not upstream.names()]
        nameless = list({id(upstream): upstream for upstream in nameless}.values())
        if len(nameless) > 1:
            raise ConfigError(
                "Only one upstream can answer for every model name.",
                hint="Route each model name to its upstream instead.",
            )
        self._for_any_name = nameless[0] if nameless else None

    @property
    def upstreams(self) -> list[Upstream]:
        """All upstreams, each once."""
        everyone = [*self._routes.values(), *self._unnamed]
        return list({id(upstream): upstream for upstream in everyone}.values())

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
        for candidate in self.upstreams:
            if model in candidate.names():
                return candidate
        if self._for_any_name is not None:
            return self._for_any_name
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
