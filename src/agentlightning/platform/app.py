"""The application: settings in, ASGI out. `uvicorn --factory agentlightning.platform.app:create_app` serves it."""

from __future__ import annotations

import contextlib
import inspect
from collections.abc import AsyncGenerator
from typing import Any

from agentlightning.kit.errors import MissingExtraError
from agentlightning.platform.routing import Dispatch, Routes
from agentlightning.platform.settings import PlatformSettings, load_settings

try:
    import aiosqlite as _aiosqlite
    import bcrypt as _bcrypt
    import cryptography as _cryptography
    import greenlet as _greenlet
    import jwt as _jwt
    from fastapi import FastAPI
except ImportError as error:
    raise MissingExtraError(
        f"The platform needs the package {error.name}.", hint="Run: pip install 'agentlightning[platform]'"
    ) from error

from starlette.middleware import Middleware
from starlette.middleware.cors import CORSMiddleware

from agentlightning import __version__
from agentlightning.platform.agents.seeding import seed
from agentlightning.platform.api import (
    agent_work,
    agents,
    audit,
    auth,
    keys,
    operations,
    rl,
    stored,
    system,
    tasks,
    tools,
    users,
)
from agentlightning.platform.api.description import FAILURES, described
from agentlightning.platform.envelope import add_handlers
from agentlightning.platform.guard import GuardMiddleware
from agentlightning.platform.knowledge import endpoints as knowledge
from agentlightning.platform.memory import endpoints as memory
from agentlightning.platform.middleware import BodyMiddleware, ContextMiddleware, OriginMiddleware
from agentlightning.platform.migrations import check_revision
from agentlightning.platform.mounts import ModelSetup, mounted, mounted_routes
from agentlightning.platform.origins import Addresses, Origins
from agentlightning.platform.state import Platform
from agentlightning.platform.system.stored import supply

del _aiosqlite, _bcrypt, _cryptography, _greenlet, _jwt  # only whether they are there

_ROUTES = (
    auth,
    users,
    keys,
    audit,
    agent_work,
    agents,
    system,
    operations,
    stored,
    tasks,
    rl,
    knowledge,
    memory,
    tools,
)
_ABOUT = "Agents, their training and what they know. Every answer has the same envelope; log in at POST /auth/login."


def create_app(settings: PlatformSettings | None = None, models: ModelSetup | None = None) -> FastAPI:
    """The platform over the settings given, or over the environment's. Its tables have to be there: `migrate`.

    Args:
        settings: Where everything is.
        models: The models besides the embedded one.

    Raises:
        ConfigError: A setting or a secret cannot be used.
        StorageError: A stored secret cannot be decrypted.
        DatabaseError: The database does not answer.
        MissingExtraError: A package is missing.
    """
    settings = settings or load_settings()
    supply(settings)
    platform = Platform(settings, models)

    @contextlib.asynccontextmanager
    async def lifespan(_: FastAPI) -> AsyncGenerator[None]:
        async with contextlib.AsyncExitStack() as stack:
            stack.enter_context(platform.masking.logs())
            stack.push_async_callback(platform.close)
            await check_revision(platform.database)
            await seed(platform.database)
            await stack.enter_async_context(platform.config.followed())
            platform.knowledge.indexer.start()
            await stack.enter_async_context(platform.tools.running())
            platform.models = await stack.enter_async_context(mounted(platform.settings, platform.setup))
            app.router.routes.extend(mounted_routes(platform.models))
            await stack.enter_async_context(platform.live_secrets.followed())
            await stack.enter_async_context(platform.start_tasks().running())
            await stack.enter_async_context(platform.evaluations.running())
            await stack.enter_async_context(platform.supervisor().running())
            yield

    app = FastAPI(
        title="Agent Lightning",
        description=_ABOUT,
        version=__version__,
        lifespan=lifespan,
        redirect_slashes=False,
        openapi_url=None,
        docs_url=None,
        redoc_url=None,
        responses=dict(FAILURES),
        **_quiet(),
    )
    app.state.platform = platform
    for room in _ROUTES:
        room.add_routes(app)
    add_handlers(app)
    app.user_middleware = _middleware(app, platform)
    app.router.middleware_stack = Dispatch(app.router)
    app.openapi = lambda: described(app)
    return app


def _middleware(app: FastAPI, platform: Platform) -> list[Middleware]:
    """Outermost first."""
    settings = platform.settings
    addresses = Addresses(settings.trusted_proxies)
    cors = [
        Middleware(
            CORSMiddleware,
            allow_origins=settings.cors_origins,
            allow_methods=["GET", "POST", "PUT", "PATCH", "DELETE"],
            allow_headers=["Authorization", "Content-Type", "X-API-Key", "X-Request-ID"],
            expose_headers=["X-Request-ID", "RateLimit-Limit", "RateLimit-Remaining", "RateLimit-Reset", "Retry-After"],
        )
    ]
    return [
        Middleware(ContextMiddleware, addresses=addresses, metrics=platform.metrics),
        Middleware(OriginMiddleware, origins=Origins(settings)),
        *(cors if settings.cors_origins else ()),
        Middleware(
            GuardMiddleware,
            routes=Routes(app.router.routes),
            identifier=platform.identifier,
            tickets=platform.tickets,
            limiter=platform.limiter,
            settings=settings,
            database=platform.database,
        ),
        Middleware(BodyMiddleware, max_bytes=settings.body_bytes),
    ]


def _quiet() -> dict[str, Any]:
    """Newer FastAPIs trace requests into whatever tracer there is; the agents' traces are not for that."""
    if "telemetry" not in inspect.signature(FastAPI.__init__).parameters:
        return {}
    return {"telemetry": {"tracing": False, "metrics": False, "logs": False}}
