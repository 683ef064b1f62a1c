"""Login, refresh, profile, logout and password over HTTP."""

from __future__ import annotations

from fastapi import FastAPI, Request
from starlette.responses import Response

from agentlightning.platform.api.schemas import LoginIn, LoginSuccess, PasswordIn, RefreshIn, TokensOut, UserOut
from agentlightning.platform.auth import repository
from agentlightning.platform.auth.identify import credential
from agentlightning.platform.auth.models import User
from agentlightning.platform.auth.permissions import granted_to
from agentlightning.platform.auth.service import TokenPair
from agentlightning.platform.context import current
from agentlightning.platform.envelope import Success, answer
from agentlightning.platform.state import platform_of


async def login(body: LoginIn, request: Request) -> Response:
    """Log in; the tokens stand in `data` and at the top level."""
    client = request.headers.get("user-agent", "").replace("\0", "")
    pair = await platform_of(request.app.state).auth.login(body.username, body.password, client)
    return _tokens(pair, "Logged in.")


async def refresh(body: RefreshIn, request: Request) -> Response:
    """The next pair of tokens. A refresh token is good once; using it again ends the login."""
    return _tokens(await platform_of(request.app.state).auth.refresh(body.refresh_token), "Refreshed.")


async def profile(request: Request) -> Response:
    """Who you are and what you may do."""
    who = current().who
    async with platform_of(request.app.state).database.read() as session:
        user = await repository.user_by_id(session, who.user_id)
    found = user_out(user)
    found.permissions = granted_to(who.role, who.scopes)
    return answer(found)


async def logout(request: Request) -> Response:
    """End this login: its access and refresh tokens are refused from now on."""
    await platform_of(request.app.state).auth.logout(current().who, credential(request.scope["headers"]))
    return answer(None, "Logged out.")


async def change_password(body: PasswordIn, request: Request) -> Response:
    """Set a new password. All logins end, this one too; API keys stay."""
    auth = platform_of(request.app.state).auth
    await auth.change_password(current().who, body.current_password, body.new_password)
    return answer(None, "The password is changed. Log in again.")


def add_routes(app: FastAPI) -> None:
    """Add them."""
    tags: list[str] = ["auth"]
    app.add_api_route("/auth/login", login, methods=["POST"], response_model=LoginSuccess, tags=[*tags])
    app.add_api_route("/auth/refresh", refresh, methods=["POST"], response_model=LoginSuccess, tags=[*tags])
    app.add_api_route("/auth/profile", profile, methods=["GET"], response_model=Success[UserOut], tags=[*tags])
    app.add_api_route("/auth/logout", logout, methods=["POST"], response_model=Success[None], tags=[*tags])
    app.add_api_route("/auth/password", change_password, methods=["PUT"], response_model=Success[None], tags=[*tags])


def user_out(user: User) -> UserOut:
    """The user as others may see it."""
    return UserOut(
        user_id=f"user_{user.id}",
        username=user.username,
        role=user.role,
        permissions=granted_to(user.role),
        disabled=user.disabled,
        must_change_password=user.must_change_password,
        created_at=user.created_at,
        last_login_at=user.last_login_at,
    )


def _tokens(pair: TokenPair, message: str) -> Response:
    data = TokensOut(
        access_token=pair.access,
        refresh_token=pair.refresh,
        expires_in=pair.access_s,
        refresh_expires_in=pair.refresh_s,
        user=user_out(pair.user),
    )
    return answer(data, message, access_token=pair.access, refresh_token=pair.refresh)
