"""Users over HTTP, for admins."""

from __future__ import annotations

from typing import Annotated

from fastapi import FastAPI, Query, Request
from starlette.responses import Response

from agentlightning.kit.errors import NotFoundError
from agentlightning.platform.api.auth import user_out
from agentlightning.platform.api.schemas import NewUserOut, UserChange, UserIn, UserOut, UsersPage
from agentlightning.platform.auth import repository
from agentlightning.platform.auth.models import User
from agentlightning.platform.envelope import Success, answer
from agentlightning.platform.state import platform_of

Limit = Annotated[int, Query(ge=1, le=500)]
After = Annotated[int, Query(ge=0, le=2**62)]


async def list_users(request: Request, limit: Limit = 100, after: After = 0) -> Response:
    """Users by number; `next` is the next page's `after`."""
    async with platform_of(request.app.state).database.read() as session:
        found = await repository.list_users(session, after, limit + 1)
    more = found[limit - 1].id if len(found) > limit else None
    return answer(UsersPage(users=[user_out(user) for user in found[:limit]], next=more))


async def create_user(body: UserIn, request: Request) -> Response:
    """A new user. Without a password the answer holds a one-time one."""
    made = await platform_of(request.app.state).users.create(body.username, body.role, body.password)
    return answer(_with_password(*made), "Created.", status=201)


async def get_user(user_id: str, request: Request) -> Response:
    """One user."""
    async with platform_of(request.app.state).database.read() as session:
        return answer(user_out(await repository.user_by_id(session, _number(user_id))))


async def change_user(user_id: str, body: UserChange, request: Request) -> Response:
    """Change role or state, or make a one-time password. Its logins end."""
    changed = await platform_of(request.app.state).users.change(
        _number(user_id), role=body.role, disabled=body.disabled, reset_password=bool(body.reset_password)
    )
    return answer(_with_password(*changed), "Changed.")


async def delete_user(user_id: str, request: Request) -> Response:
    """Remove a user with its logins and API keys."""
    await platform_of(request.app.state).users.delete(_number(user_id))
    return answer(None, "Deleted.")


def add_routes(app: FastAPI) -> None:
    """Add them."""
    path = "/api/v2/users"
    one = path + "/{user_id}"
    made = Success[NewUserOut]
    app.add_api_route(path, list_users, methods=["GET"], response_model=Success[UsersPage], tags=["users"])
    app.add_api_route(path, create_user, methods=["POST"], response_model=made, status_code=201, tags=["users"])
    app.add_api_route(one, get_user, methods=["GET"], response_model=Success[UserOut], tags=["users"])
    app.add_api_route(one, change_user, methods=["PATCH"], response_model=made, tags=["users"])
    app.add_api_route(one, delete_user, methods=["DELETE"], response_model=Success[None], tags=["users"])


def _with_password(user: User, password: str | None) -> NewUserOut:
    return NewUserOut(**user_out(user).model_dump(), one_time_password=password)


def _number(user_id: str) -> int:
    """Of `user_7` or `7`.

    Raises:
        NotFoundError: It is neither.
    """
    digits = user_id.removeprefix("user_")
    if not digits.isascii() or not digits.isdigit() or len(digits) > 19:
        raise NotFoundError("There is no such user.")
    return int(digits)
