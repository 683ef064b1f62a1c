"""Which route a request is for: found once, for guard and router, so that what is checked is what is called.

Routes are tried in their order, as Starlette does; those whose fixed beginning differs from the path are not tried.
"""

from __future__ import annotations

from collections.abc import Iterable, MutableSequence
from typing import Any

from starlette.routing import BaseRoute, Match, Router
from starlette.types import Receive, Scope, Send

_DEPTH = 4  # segments of a path that are told apart
_FOUND = "agl.route"
_Key = tuple[str, ...]


class Routes:
    """The routes of an app, which may grow.

    Args:
        routes: The router's own list.
    """

    def __init__(self, routes: MutableSequence[BaseRoute]) -> None:
        self._routes = routes
        self._count = -1
        self._beginnings: dict[_Key, list[BaseRoute]] = {}

    def find(self, scope: Scope) -> BaseRoute | None:
        """The route that takes the request, with path and method; noted in `scope` for `Dispatch`."""
        # All of them before it is said that there is none: the router must not find what the guard has not.
        for routes in (self._candidates(scope), self._routes):
            for route in routes:
                match, child = route.matches(scope)
                if match is Match.FULL:
                    scope[_FOUND] = (route, child)
                    return route
        return None

    def _candidates(self, scope: Scope) -> Iterable[BaseRoute]:
        if scope.get("root_path"):
            return self._routes
        if self._count != len(self._routes):
            self._sort()
        key = tuple(scope["path"].split("/")[1 : _DEPTH + 1])
        while key not in self._beginnings:
            key = key[:-1]
        return self._beginnings[key]

    def _sort(self) -> None:
        fixed = [(_beginning(str(getattr(route, "path", ""))), route) for route in self._routes]
        keys = {beginning[:length] for beginning, _ in fixed for length in range(len(beginning) + 1)} | {()}
        # A longer beginning than the key is not the path's: its key would have been found.
        self._beginnings = {
            key: [route for beginning, route in fixed if beginning == key[: len(beginning)]] for key in keys
        }
        self._count = len(self._routes)


class Dispatch:
    """Calls the route that was found; without one the router answers 404 or 405 as ever."""

    def __init__(self, router: Router) -> None:
        self._router = router
        self._otherwise = router.middleware_stack

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        found: tuple[BaseRoute, dict[str, Any]] | None = scope.pop(_FOUND, None)
        if found is None:
            await self._otherwise(scope, receive, send)
            return
        scope.setdefault("router", self._router)
        route, child = found
        scope["route"] = route
        scope.update(child)
        await route.handle(scope, receive, send)


def _beginning(path: str) -> _Key:
    """The segments before the first one that varies."""
    segments = path.split("/")[1:]
    fixed = next((place for place, segment in enumerate(segments) if "{" in segment), len(segments))
    return tuple(segments[: min(fixed, _DEPTH)])
