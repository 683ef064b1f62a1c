"""Who may do what: the roles, and one table of every route. What is not in the table is refused. Pure data."""

from __future__ import annotations

import functools
from collections.abc import Iterable, Mapping
from dataclasses import dataclass
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

HEALTH = frozenset({"/health", "/api/v2/health"})
"""What asks whether the platform works: every service answers the first; the second is of this API."""

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
        ("POST", "/api/v2/agents/assign"): "agent:assign",
        ("POST", "/api/v2/agents/execute"): "agent:assign",
        ("POST", "/agents/execute"): "agent:assign",
        ("GET", "/api/v2/tasks"): "agent:read",  # one's own, here and below
        ("GET", "/api/v2/tasks/{task_id}"): "agent:read",
        ("GET", "/api/v1/tasks/{task_id}"): "agent:read",
        ("POST", "/api/v2/tasks/{task_id}/cancel"): "agent:assign",
        ("GET", "/api/v2/tasks/{task_id}/result"): "agent:read",
        ("GET", "/api/v2/tasks/{task_id}/trace"): "agent:read",
        ("POST", "/api/v2/tasks/{task_id}/feedback"): "agent:assign",
        ("GET", "/api/v2/pool"): "system:read",
        ("POST", "/api/v2/ws-ticket"): "agent:read",
        ("GET", "/api/v2/events"): "agent:read",
        ("WEBSOCKET", "/ws/agents"): "agent:read",
        ("GET", "/agents"): "agent:read",
        ("GET", "/api/v2/agents"): "agent:read",
        ("POST", "/api/v2/agents"): "agent:write",
        ("POST", "/api/v2/agents/design"): "agent:write",
        ("GET", "/api/v2/agents/status"): "agent:read",
        ("GET", "/api/v2/agents/{agent_id}"): "agent:read",
        ("PUT", "/api/v2/agents/{agent_id}"): "agent:write",
        ("DELETE", "/api/v2/agents/{agent_id}"): "agent:write",
        ("POST", "/api/v2/agents/{agent_id}/restart"): "agent:write",
        ("GET", "/api/v2/agents/{agent_id}/versions"): "agent:read",
        ("GET", "/api/v2/agents/{agent_id}/versions/{version}"): "agent:read",
        ("POST", "/api/v2/agents/{agent_id}/rollback"): "agent:write",
        ("GET", "/api/v2/agents/{agent_id}/metrics"): "agent:read",
        ("POST", "/api/v2/agents/{agent_id}/evaluate"): "agent:write",
        ("GET", "/api/v2/agents/{agent_id}/evaluations"): "agent:read",
        ("GET", "/api/v2/agents/{agent_id}/evaluations/{evaluation_id}"): "agent:read",
        ("GET", "/health"): PUBLIC,
        ("GET", "/api/v2/health"): PUBLIC,
        # One's own only; agents use it, so whoever may use agents may use it.
        ("GET", "/api/v2/memory/sessions"): "agent:read",
        ("GET", "/api/v2/memory/sessions/{session_id}"): "agent:read",
        ("DELETE", "/api/v2/memory/sessions/{session_id}"): "agent:assign",
        ("GET", "/api/v2/memory/memories"): "agent:read",
        ("POST", "/api/v2/memory/memories"): "agent:assign",
        ("POST", "/api/v2/memory/memories/search"): "agent:read",
        ("GET", "/api/v2/memory/memories/{memory_id}"): "agent:read",
        ("PUT", "/api/v2/memory/memories/{memory_id}"): "agent:assign",
        ("DELETE", "/api/v2/memory/memories/{memory_id}"): "agent:assign",
        ("GET", "/api/v2/knowledge"): "knowledge:read",
        ("POST", "/api/v2/knowledge"): "knowledge:write",
        ("GET", "/api/v2/knowledge/search"): "knowledge:read",
        ("POST", "/api/v2/knowledge/import"): "knowledge:write",
        ("POST", "/api/v2/knowledge/import/file"): "knowledge:write",
        ("GET", "/api/v2/knowledge/imports/{import_id}"): "knowledge:read",
        ("GET", "/api/v2/knowledge/{item_id}"): "knowledge:read",
        ("PUT", "/api/v2/knowledge/{item_id}"): "knowledge:write",
        ("DELETE", "/api/v2/knowledge/{item_id}"): "knowledge:write",
        ("GET", "/api/v2/knowledge/{item_id}/versions"): "knowledge:read",
        ("GET", "/api/v2/tools"): "agent:read",
        ("POST", "/api/v2/tools/{name}/run"): "agent:assign",  # and what the tool itself asks for
        ("GET", "/docs"): PUBLIC,
        ("GET", "/docs/style.css"): PUBLIC,
        ("GET", "/openapi.json"): PUBLIC,
        ("GET", "/metrics"): "system:read",
        ("POST", "/api/v2/rl/auto-trigger"): "rl:execute",
        ("GET", "/api/v2/rl/auto-status"): "rl:read",
        ("GET", "/api/v2/rl/experiments"): "rl:read",
        ("POST", "/api/v2/rl/experiments"): "rl:execute",
        ("GET", "/api/v2/rl/experiments/{experiment_id}"): "rl:read",
        ("POST", "/api/v2/rl/experiments/{experiment_id}/stop"): "rl:execute",
        ("POST", "/api/v2/rl/experiments/{experiment_id}/apply"): "agent:write",
        ("POST", "/api/v2/rl/experiments/{experiment_id}/rollback"): "agent:write",
        ("GET", "/api/v2/system/status"): "system:read",
        ("GET", "/api/v2/system/stats"): "system:read",
        ("GET", "/api/v2/system/config"): "system:read",
        ("PUT", "/api/v2/system/config"): "system:write",
        ("GET", "/api/v2/system/secrets"): "secret:read",
        ("PUT", "/api/v2/system/secrets/{name}"): "secret:write",
        ("DELETE", "/api/v2/system/secrets/{name}"): "secret:write",
    }
)

MODEL, RECORD, UPLOAD = "model", "record", "upload"
"""Kinds of routes that have limits of their own: calls of models, the store's reports, and files."""

KINDS: Mapping[tuple[str, str], str] = MappingProxyType({("POST", "/api/v2/knowledge/import/file"): UPLOAD})
"""Of the routes of `TABLE`; most are of none."""


@dataclass(frozen=True, slots=True)
class Mount:
    """Routes of another room and who may call them.

    Attributes:
        methods: Of HTTP, with spaces between.
        route: The route, or the beginning of several if it ends in `*`.
        rule: As in `TABLE`.
        kind: Whose limits count.
    """

    methods: str
    route: str
    rule: str
    kind: str = ""

    def covers(self, method: str, route: str) -> bool:
        """Whether it is about this route."""
        fits = route.startswith(self.route[:-1]) if self.route.endswith("*") else route == self.route
        return fits and method in self.methods.split()


_CALLS = ("chat/completions", "completions", "embeddings", "messages", "messages/count_tokens", "responses")

MOUNTS: tuple[Mount, ...] = (
    # Models are for programs of developers; users reach them through agents.
    *(Mount("POST", f"{base}/{call}", "rl:execute", MODEL) for base in ("/v1", "") for call in _CALLS),
    Mount("GET", "/v1/models*", "agent:read", MODEL),
    Mount("GET", "/models*", "agent:read", MODEL),
    Mount("POST DELETE", "/models*", "system:write"),  # loads whatever files it is told
    Mount("GET", "/registry*", "agent:read"),
    Mount("POST DELETE", "/registry*", "rl:write"),
    # What is called below a rollout is written into its record.
    Mount("GET POST", "/rollout/{rollout_id}/attempt/{attempt_id}/*", "rl:execute", MODEL),
    Mount("GET POST", "/proxy/rollout/{rollout_id}/attempt/{attempt_id}/mode/{mode}/*", "rl:execute", MODEL),
    Mount("GET", "/proxy/state", "system:read"),
    Mount("POST", "/proxy/pause", "system:write"),
    Mount("POST", "/proxy/resume", "system:write"),
    # Who trains reads what agents did, whoever they did it for.
    Mount("GET", "/v1/agl/*", "rl:read", RECORD),
    Mount("POST", "/v1/agl/*", "rl:execute", RECORD),
    Mount("POST", "/v1/traces", "rl:execute", RECORD),
    Mount("POST", "/v1/metrics", "rl:execute", RECORD),
    Mount("POST", "/v1/logs", "rl:execute", RECORD),
    Mount("POST", "/v1/development/profiles", "rl:execute", RECORD),
)
"""The routes of store, gateway and model service; the first that covers a route counts."""

BEFORE_PASSWORD_CHANGE = frozenset({("PUT", "/auth/password"), ("POST", "/auth/logout")})
"""All that may be done with a one-time password."""


def rule_of(method: str, route: str) -> str | None:
    """What the table asks for; `None` if the route is not in it."""
    method = "GET" if method == "HEAD" else method
    found = TABLE.get((method, route))
    if found is not None:
        return found
    mount = mount_of(method, route)
    return None if mount is None else mount.rule


def mount_of(method: str, route: str) -> Mount | None:
    """The line of `MOUNTS` that is about the route."""
    return next((mount for mount in MOUNTS if mount.covers(method, route)), None)


@functools.lru_cache(maxsize=4096)
def _may(role: str, scopes: tuple[str, ...] | None, wanted: str) -> bool:
    return permits(ROLES.get(role, ()), wanted) and (scopes is None or permits(scopes, wanted))


def may(role: str, scopes: Iterable[str] | None, wanted: str) -> bool:
    """Whether `role`, and the key's `scopes` if there are any, both cover `wanted`. Unknown roles may nothing."""
    return _may(role, None if scopes is None else tuple(scopes), wanted)


def granted_to(role: str, scopes: Iterable[str] | None = None) -> list[str]:
    """What to tell somebody that they may do."""
    return list(ROLES.get(role, ()) if scopes is None else scopes)
