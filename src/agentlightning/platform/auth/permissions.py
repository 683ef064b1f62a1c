"""Who may do what: the roles, and one table of every route. What is not in the table is refused. Pure data."""

from __future__ import annotations

from collections.abc import Iterable, Mapping
from types import MappingProxyType

from agentlightning.kit.grants import permits

ROLES: Mapping[str, tuple[str, ...]] = MappingProxyType(
    {
        "admin": ("*",),
        "developer": ("agent:*", "rl:*", "workflow:*", "knowledge:*", "system:read"),
        "user": ("agent:read", "agent:assign", "knowledge:read", "workflow:read"),
    }
)

PUBLIC = "public"
"""Anybody, without a token."""
AUTHENTICATED = "authenticated"
"""Everybody who says who it is, whatever the role."""
LOGIN = "login"
"""Everybody with a login of their own; an API key is not enough."""

TABLE: Mapping[tuple[str, str], str] = MappingProxyType(
    {
        ("POST", "/auth/login"): PUBLIC,
        ("POST", "/auth/refresh"): PUBLIC,  # the refresh token in the body is what it asks for
        ("GET", "/auth/profile"): AUTHENTICATED,
        ("POST", "/auth/logout"): LOGIN,
        ("PUT", "/auth/password"): LOGIN,
        ("GET", "/api/v2/users"): "user:read",
        ("POST", "/api/v2/users"): "user:write",
        ("GET", "/api/v2/users/{user_id}"): "user:read",
        ("PATCH", "/api/v2/users/{user_id}"): "user:write",
        ("DELETE", "/api/v2/users/{user_id}"): "user:write",
        ("GET", "/api/v2/api-keys"): LOGIN,  # a key that leaked can neither list nor make others
        ("POST", "/api/v2/api-keys"): LOGIN,
        ("DELETE", "/api/v2/api-keys/{key_id}"): LOGIN,
        ("GET", "/api/v2/audit"): "audit:read",
        ("GET", "/api/v2/health"): PUBLIC,
        ("GET", "/docs"): PUBLIC,
        ("GET", "/docs/style.css"): PUBLIC,
        ("GET", "/openapi.json"): PUBLIC,
        ("GET", "/metrics"): "system:read",
    }
)

BEFORE_PASSWORD_CHANGE = frozenset({("PUT", "/auth/password"), ("POST", "/auth/logout")})
"""All that may be done with a one-time password."""


def rule_of(method: str, route: str) -> str | None:
    """What the table asks for; `None` if the route is not in it."""
    return TABLE.get(("GET" if method == "HEAD" else method, route))


def may(role: str, scopes: Iterable[str] | None, wanted: str) -> bool:
    """Whether `role`, and the key's `scopes` if there are any, both cover `wanted`. Unknown roles may nothing."""
    return permits(ROLES.get(role, ()), wanted) and (scopes is None or permits(scopes, wanted))


def granted_to(role: str, scopes: Iterable[str] | None = None) -> list[str]:
    """What to tell somebody that they may do."""
    return list(ROLES.get(role, ()) if scopes is None else scopes)
