"""The one door: every request is matched to a route, the table says what that asks for, and nobody else gets through.

It stands before the router, so docs, metrics, mounted apps and websockets pass it like everything else. A route that is
not in the table is refused to everybody.
"""

from __future__ import annotations

from starlette.types import ASGIApp, Receive, Scope, Send

from agentlightning.kit.errors import AgentLightningError, ForbiddenError, UnauthorizedError
from agentlightning.platform.auth.identify import Identifier, credential
from agentlightning.platform.auth.permissions import (
    AUTHENTICATED,
    BEFORE_PASSWORD_CHANGE,
    HEALTH,
    KINDS,
    LOGIN,
    PUBLIC,
    TABLE,
    may,
    mount_of,
    rule_of,
)
from agentlightning.platform.auth.repository import note
from agentlightning.platform.auth.tickets import Tickets, ticket_of
from agentlightning.platform.context import Identity, RequestContext
from agentlightning.platform.database import Database
from agentlightning.platform.envelope import HttpError
from agentlightning.platform.limits import Limiter, TooManyError
from agentlightning.platform.middleware import refuse
from agentlightning.platform.routing import Routes
from agentlightning.platform.settings import PlatformSettings

_WINDOW_S = 60.0


class RouteNotListedError(ForbiddenError):
    """Nobody has said who may use this route."""

    code = "ROUTE_NOT_LISTED"


class PasswordChangeRequiredError(ForbiddenError):
    """The one-time password has to be replaced first."""

    code = "PASSWORD_CHANGE_REQUIRED"


class GuardMiddleware:
    """Lets a request through or answers 401, 403 or 429."""

    def __init__(
        self,
        app: ASGIApp,
        *,
        routes: Routes,
        identifier: Identifier,
        tickets: Tickets,
        limiter: Limiter,
        settings: PlatformSettings,
        database: Database,
    ) -> None:
        self._app = app
        self._routes = routes
        self._identifier = identifier
        self._tickets = tickets
        self._limiter = limiter
        self._settings = settings
        self._database = database

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        if scope["type"] in ("http", "websocket"):
            try:
                await self._check(scope)
            except AgentLightningError as error:
                await refuse(error, scope, receive, send)
                return
        await self._app(scope, receive, send)

    async def _check(self, scope: Scope) -> None:
        context: RequestContext = scope["state"]["context"]
        found = self._routes.find(scope)
        if found is None:  # the router answers 404 or 405, and calls nothing
            await self._limit(context, f"address:{context.address}", self._settings.anonymous_per_minute)
            if scope["type"] == "websocket":  # which the router would close without a word
                raise HttpError(404, "There is no websocket here.", hint="Events are at /ws/agents.")
            return
        context.route = route = str(getattr(found, "path", "")) or "unnamed"
        method = scope.get("method", "WEBSOCKET")
        rule = rule_of(method, route)
        if rule is None:
            raise RouteNotListedError("This is not open to anybody.")
        if rule == PUBLIC:
            # Probes are counted by themselves: strangers behind one proxy must not make a healthy server look dead.
            kind = "health:" if route in HEALTH else ""
            await self._limit(context, f"{kind}address:{context.address}", self._settings.anonymous_per_minute)
            return
        mount = mount_of("GET" if method == "HEAD" else method, route) if (method, route) not in TABLE else None
        context.kind = KINDS.get((method, route), "") if mount is None else mount.kind
        context.identity = identity = await self._identify(scope, context)
        who = f"user:{identity.user_id}" if identity.key_id is None else f"key:{identity.key_id}"
        await self._limit(context, f"{context.kind}{who}", self._settings.per_minute(context.kind))
        _authorise(identity, rule, method, route)
        if mount is not None and not mount.kind and method not in ("GET", "HEAD"):
            async with self._database.write() as session:  # these routes know of no audit log
                note(session, "models.change", f"{method} {scope['path']}")

    async def _identify(self, scope: Scope, context: RequestContext) -> Identity:
        try:
            if scope["type"] == "websocket" and (ticket := ticket_of(scope.get("subprotocols", []))) is not None:
                return await self._tickets.take(ticket)
            return await self._identifier.identify(credential(scope["headers"]))
        except UnauthorizedError:
            await self._limit(context, f"address:{context.address}", self._settings.anonymous_per_minute)
            raise

    async def _limit(self, context: RequestContext, key: str, limit: int) -> None:
        verdict = await self._limiter.hit(f"requests:{key}", limit, _WINDOW_S)
        context.headers.update(verdict.headers)
        if not verdict.allowed:
            raise TooManyError("Too many requests.", hint=f"Try again in {verdict.headers['Retry-After']} s.")


def _authorise(identity: Identity, rule: str, method: str, route: str) -> None:
    if identity.must_change_password and (method, route) not in BEFORE_PASSWORD_CHANGE:
        raise PasswordChangeRequiredError("The one-time password has to be changed first.", hint="PUT /auth/password")
    if rule == LOGIN:
        if identity.session_id is None:
            raise ForbiddenError("An API key may not do this.", hint="POST /auth/login")
    elif rule != AUTHENTICATED and not may(identity.role, identity.scopes, rule):
        raise ForbiddenError("You may not do this.", details={"permission": rule})
