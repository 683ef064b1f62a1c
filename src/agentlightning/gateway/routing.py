"""Which targets answer for which model name, and in which order they are asked."""

from __future__ import annotations

import asyncio
import hashlib
import logging
import math
import random
import re
from collections.abc import Mapping, Sequence

from agentlightning.gateway.errors import CallError
from agentlightning.gateway.target import FAULTS_OF_THE_SERVER, Fault, Target, TargetState, fault_of
from agentlightning.gateway.upstream.base import Upstream
from agentlightning.kit.errors import ConfigError

_log = logging.getLogger(__name__)

_LIST_TIMEOUT_S = 10.0
DEFAULT_FALLBACK_ON: frozenset[Fault] = frozenset({*FAULTS_OF_THE_SERVER, "rate_limit"})


class Route:
    """The targets of one model name.

    Args:
        name: The model name; with a `*` a pattern.
        targets: Who answers, with weights: each call goes to one of them, the more often the greater its weight. The
            others stand in when that one fails.
        fallbacks: Who is asked after all of these, in this order.
        fallback_on: After which faults the next one is asked; other errors are the answer.

    Raises:
        ConfigError: There are no targets, or a weight is not above 0.
    """

    def __init__(
        self,
        name: str,
        targets: Sequence[tuple[Target, float]],
        *,
        fallbacks: Sequence[Target] = (),
        fallback_on: frozenset[Fault] = DEFAULT_FALLBACK_ON,
    ) -> None:
        if not targets or any(not (weight > 0 and math.isfinite(weight)) for _, weight in targets):
            raise ConfigError(f"The route {name!r} needs targets with weights above 0.")
        self.name = name
        self.fallbacks = tuple(fallbacks)
        self.fallback_on = fallback_on
        self._weighted = tuple(targets)
        self.targets: tuple[Target, ...] = tuple(dict.fromkeys((*(target for target, _ in targets), *fallbacks)))
        """All of them, fallbacks last, each once."""
        star = re.escape(name).replace(r"\*", "(.*)")
        self._pattern = re.compile(star, re.DOTALL) if "*" in name else None

    def __repr__(self) -> str:
        return f"Route({self.name!r}, {[target.name for target in self.targets]})"

    @property
    def is_pattern(self) -> bool:
        """Whether its name stands for many."""
        return self._pattern is not None

    def matches(self, model: str) -> bool:
        """Whether a pattern fits."""
        return self._pattern is not None and self._pattern.fullmatch(model) is not None

    def star(self, model: str) -> str | None:
        """What the first `*` of its name stands for."""
        found = self._pattern.fullmatch(model) if self._pattern is not None else None
        return found[1] if found else None

    def order(self, seed: int | None, sticky_to: str | None) -> Sequence[Target]:
        """The targets in the order in which they are asked for one call.

        Weighted sampling without replacement (Efraimidis & Spirakis 2006). With a seed and a rollout, the random
        numbers are hashes of both and the target's name (weighted rendezvous hashing): all calls of a rollout have the
        same order, and a target that comes or goes moves only the rollouts it gets or had.
        """
        if len(self._weighted) == 1:
            return self.targets
        if seed is None or sticky_to is None:
            scored = [(random.random() ** (1 / weight), target) for target, weight in self._weighted]
        else:
            scored = [(_hashed(seed, sticky_to, target.name) ** (1 / w), target) for target, w in self._weighted]
        scored.sort(key=lambda pair: -pair[0])
        return tuple(dict.fromkeys((*(target for _, target in scored), *self.fallbacks)))

    def falls_back_on(self, error: CallError) -> bool:
        """Whether the next target is asked after this error."""
        return fault_of(error) in self.fallback_on


class RoutingTable:
    """Model names, aliases and patterns to routes.

    A name leads to its own route, else to the upstream that knows it by itself, else to the pattern with the most
    letters that fits, else to the one upstream that answers for every name. Routes may be added and removed while calls
    are under way; those keep the targets they have.

    Args:
        upstreams: Upstreams by model name (several names may share one, and a name may be a pattern such as `gpt-*`),
            or upstreams that answer for the names they know themselves. One that knows none, such as a server fronted
            without naming a model, answers for every name that no other one knows.
        accept_any_model: Let the only upstream answer for every name.
        seed: Makes the choice among weighted targets depend on the rollout alone.
        may_be_empty: Routes are added later.

    Raises:
        ConfigError: There is no upstream, or more than one that would answer for every name.
    """

    def __init__(
        self,
        upstreams: Mapping[str, Upstream] | Sequence[Upstream] = (),
        *,
        accept_any_model: bool = False,
        seed: int | None = None,
        may_be_empty: bool = False,
    ) -> None:
        if not upstreams and not may_be_empty:
            raise ConfigError("The gateway has no upstream.", hint="Give it an engine or an OpenAI-compatible server.")
        self.seed = seed
        self._routes: dict[str, Route] = {}
        self._patterns: list[Route] = []
        self._aliases: dict[str, str] = {}
        self._known: dict[int, Route] = {}  # upstreams given as such, by identity: they may know names by themselves
        self._unnamed: list[Target] = []
        self._leaving: list[Target] = []
        self._for_any_name: Route | None = None
        if isinstance(upstreams, Mapping):
            for name, upstream in upstreams.items():
                self.add(name, upstream)
            nameless = [target for target in self.targets if accept_any_model]
        else:
            self._unnamed = [self._target(upstream, f"upstream-{i}") for i, upstream in enumerate(upstreams)]
            nameless = [target for target in self._unnamed if accept_any_model or not target.upstream.names()]
        nameless = list(dict.fromkeys(nameless))
        if len(nameless) > 1:
            raise ConfigError(
                "Only one upstream can answer for every model name.",
                hint="Route each model name to its upstream instead.",
            )
        if nameless:
            self._for_any_name = Route("*", [(nameless[0], 1.0)])

    def _target(self, upstream: Upstream, name: str) -> Target:
        route = self._known.get(id(upstream))
        if route is None:
            names = upstream.names()
            target = Target(names[0] if names else name, upstream)
            route = self._known[id(upstream)] = Route(target.name.replace("*", ""), [(target, 1.0)])
        return route.targets[0]

    @property
    def for_any_name(self) -> Route | None:
        """The route for names that no other one knows."""
        return self._for_any_name

    @property
    def routes(self) -> list[Route]:
        """All routes with a name or pattern of their own."""
        return [*self._routes.values(), *self._patterns]

    @property
    def targets(self) -> list[Target]:
        """All targets that a route leads to, each once."""
        everyone = [target for route in self.routes for target in route.targets] + self._unnamed
        return list(dict.fromkeys([*everyone, *(self._for_any_name.targets if self._for_any_name else ())]))

    @property
    def upstreams(self) -> list[Upstream]:
        """All upstreams, each once."""
        return list({id(target.upstream): target.upstream for target in self.targets}.values())

    def add(self, model: str, upstream: Upstream, *, aliases: Sequence[str] = ()) -> Upstream | None:
        """Route a model name (or pattern) to an upstream, replacing its earlier route.

        Returns:
            The upstream it led to before, if nothing leads there any more. Calls may still be under way there: close it
            after `wait_idle`.
        """
        return self.add_route(Route(model, [(self._target(upstream, model), 1.0)]), aliases=aliases)

    def add_route(self, route: Route, *, aliases: Sequence[str] = ()) -> Upstream | None:
        """Add a route, replacing the one of that name; returns what `add` returns."""
        before = self._take_out(route.name)
        if route.is_pattern:
            # Most letters first, so that the first match is the most specific one.
            self._patterns = sorted([*self._patterns, route], key=lambda r: (r.name.count("*") - len(r.name), r.name))
        else:
            self._routes[route.name] = route
        self._aliases.update(dict.fromkeys(aliases, route.name))
        return self._retire(before)

    def remove(self, model: str) -> Upstream | None:
        """Remove a route and its aliases; unknown names are ignored. Returns what `add` returns."""
        before = self._take_out(model)
        self._aliases = {alias: name for alias, name in self._aliases.items() if model not in (alias, name)}
        return self._retire(before)

    def accept_any(self, route: Route) -> None:
        """Let a route answer for every name that no other one knows."""
        self._for_any_name = route

    async def wait_idle(self, upstream: Upstream, timeout_s: float = 600.0) -> None:
        """Return when no call is under way at an upstream.

        Raises:
            TimeoutError: There still was one after `timeout_s`.
        """
        async with asyncio.timeout(timeout_s):
            for target in (*self.targets, *self._leaving):
                if target.upstream is upstream:
                    await target.places.wait_idle()

    def _take_out(self, name: str) -> Route | None:
        route = self._routes.pop(name, None)
        if route is None:
            route = next((pattern for pattern in self._patterns if pattern.name == name), None)
            self._patterns = [pattern for pattern in self._patterns if pattern is not route]
        return route

    def _retire(self, route: Route | None) -> Upstream | None:
        self._leaving = [target for target in self._leaving if target.places.taken]
        if route is None:
            return None
        used = self.targets
        unused = [target for target in route.targets if target not in used]
        for target in unused:
            target.is_retired = True
            self._known.pop(id(target.upstream), None)
        self._leaving += unused
        return unused[0].upstream if unused else None

    def find(self, model: str) -> Route:
        """The route for a model name.

        Raises:
            CallError: 404; the message lists the names there are.
        """
        route = self._routes.get(model) or self._routes.get(self._aliases.get(model, ""))
        return route if route is not None else self._find_elsewhere(model)

    def resolve(self, model: str) -> Upstream:
        """The upstream that a name's route names first; raises what `find` raises."""
        return self.find(model).targets[0].upstream

    def _find_elsewhere(self, model: str) -> Route:
        for route in self._known.values():
            if model in route.targets[0].upstream.names():
                return route
        aliased = self._aliases.get(model)
        for route in self._patterns:
            if route.name == aliased or route.matches(model):
                return route
        if self._for_any_name is not None:
            return self._for_any_name
        known = ", ".join(f"'{name}'" for name in (*self.names(), *(route.name for route in self._patterns)))
        raise CallError(
            f"The model '{model}' does not exist. Models here: {known or 'none'}.",
            status=404,
            param="model",
            reason="model_not_found",
        )

    def names(self) -> list[str]:
        """All names that are known without asking a server."""
        names = dict.fromkeys((*self._routes, *self._aliases))
        for route in self._known.values():
            names.update(dict.fromkeys(route.targets[0].upstream.names()))
        return list(names)

    async def list_models(self) -> list[str]:
        """All names, including those that servers behind patterns report when asked."""
        open_routes = [*self._patterns, *([self._for_any_name] if self._for_any_name else [])]
        asked = dict.fromkeys([target for route in open_routes for target in route.targets])
        names = dict.fromkeys(self.names())
        for found in await asyncio.gather(*(_models_of(target) for target in asked)):
            names.update(dict.fromkeys(name for name in found if self._for_any_name or self._fits_a_pattern(name)))
        return list(names)

    def _fits_a_pattern(self, name: str) -> bool:
        return any(route.matches(name) for route in self._patterns)

    def states(self) -> list[TargetState]:
        """How the targets are doing."""
        return [target.state() for target in self.targets]


async def _models_of(target: Target) -> list[str]:
    try:
        async with asyncio.timeout(_LIST_TIMEOUT_S):
            return await target.upstream.list_models()
    except (CallError, TimeoutError) as error:  # a server that is down must not hide the others' models
        _log.warning("Cannot list the models of %s: %s", target.name, error or "it does not answer")
        return []


def _hashed(seed: int, sticky_to: str, name: str) -> float:
    """A number in (0, 1]."""
    digest = hashlib.blake2b(f"{seed}\0{sticky_to}\0{name}".encode(), digest_size=7).digest()
    return (int.from_bytes(digest, "big") + 1) / 2**56
