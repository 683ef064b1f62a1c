"""Knowledge over HTTP."""

from __future__ import annotations

from enum import Enum
from typing import Annotated, Literal

from fastapi import FastAPI, Header, Query, Request
from starlette.responses import Response

from agentlightning.kit.errors import BadInputError, NotFoundError
from agentlightning.platform.context import current
from agentlightning.platform.envelope import Success, answer
from agentlightning.platform.knowledge.models import KnowledgeItem
from agentlightning.platform.knowledge.repository import Draft, ItemRow
from agentlightning.platform.knowledge.schemas import (
    FileName,
    ImportIn,
    ImportOut,
    ItemChange,
    ItemIn,
    ItemOut,
    ItemsPage,
    Name,
    SearchOut,
    VersionOut,
    VersionsPage,
)
from agentlightning.platform.knowledge.service import DEEPEST, KnowledgeService, SearchQuery, plain

Category = Annotated[Name | None, Query()]
TagList = Annotated[list[Name], Query(max_length=32)]
Words = Annotated[str, Query(min_length=1, max_length=1000)]
Limit = Annotated[int, Query(ge=1, le=100)]
After = Annotated[int, Query(ge=0, le=2**62)]
IfMatch = Annotated[str | None, Header(max_length=64)]


async def list_items(
    request: Request,
    limit: Limit = 50,
    after: After = 0,
    category: Category = None,
    tags: TagList = [],  # noqa: B006
) -> Response:
    """Items by number; with the category and all of the tags."""
    found = await _service(request).page(after, limit + 1, category, tags)
    more = found[limit - 1].id if len(found) > limit else None
    return answer({"items": [plain(item, preview=2_000) for item in found[:limit]], "next": more})


async def create_item(body: ItemIn, request: Request) -> Response:
    """A new item."""
    draft = Draft(body.title, body.content, body.category, tuple(body.tags), body.metadata)
    made = await _service(request).create(draft, current().who.username)
    return _with_tag(made, "Created.", 201)


async def search_items(
    request: Request,
    query: Words | None = None,
    q: Words | None = None,
    mode: Literal["hybrid", "text", "semantic"] = "hybrid",
    category: Category = None,
    tags: TagList = [],  # noqa: B006 - FastAPI's way to say that there may be several
    limit: Limit = 10,
    offset: Annotated[int, Query(ge=0, le=DEEPEST - 1)] = 0,
) -> Response:
    """Search by words, by meaning or by both; filters hold before anything is ranked. `q` is short for `query`."""
    words = query or q
    if words is None or (q is not None and q != words):
        raise BadInputError("Say what to look for.", hint="Give query, or q, which is the same.")
    wanted = SearchQuery(words.replace("\0", " "), category, tuple(tags), mode, min(limit, DEEPEST - offset), offset)
    found = await _service(request).find(wanted)
    after = offset + wanted.limit
    return answer({**found, "next": after if after < min(found["total"], DEEPEST) else None})


async def get_item(item_id: str, request: Request) -> Response:
    """One item; its version is the ETag."""
    return _with_tag(await _service(request).look(_number(item_id)))


async def change_item(item_id: str, body: ItemChange, request: Request, if_match: IfMatch = None) -> Response:
    """Change an item. With `If-Match` or `version` only if nobody has changed it meanwhile, else 409."""
    given = body.model_fields_set - {"version"}
    if not given or any(getattr(body, name) is None for name in given - {"category"}):
        raise BadInputError("There is nothing to change.", hint="Give title, content, category, tags or metadata.")

    def change(item: KnowledgeItem) -> Draft:
        return Draft(
            body.title if body.title is not None else item.title,
            body.content if body.content is not None else item.content,
            body.category if "category" in given else item.category,
            tuple(body.tags if body.tags is not None else item.tags),
            body.metadata if body.metadata is not None else item.about,
        )

    expected = _expected(if_match, body.version)
    done = await _service(request).update(_number(item_id), change, current().who.username, expected)
    return _with_tag(done, "Changed.")


async def delete_item(item_id: str, request: Request, if_match: IfMatch = None) -> Response:
    """Remove an item with its versions."""
    await _service(request).delete(_number(item_id), _expected(if_match, None))
    return answer(None, "Deleted.")


async def list_versions(
    item_id: str,
    request: Request,
    limit: Limit = 20,
    before: Annotated[int | None, Query(ge=1, le=2**31 - 1)] = None,
) -> Response:
    """What an item was, newest first."""
    found = await _service(request).versions(_number(item_id), before, limit + 1)
    more = found[limit - 1].version if len(found) > limit else None
    versions = [
        VersionOut(
            version=entry.version,
            title=entry.title,
            content=entry.content,
            category=entry.category,
            tags=entry.tags,
            metadata=entry.about,
            created_at=entry.created_at.timestamp(),
            created_by=entry.created_by,
        )
        for entry in found[:limit]
    ]
    return answer(VersionsPage(versions=versions, next=more))


async def import_documents(body: ImportIn, request: Request) -> Response:
    """Import documents at once, or packages' documentation in the background."""
    imports, by = _service(request).imports, current().who.username
    if (body.documents is None) == (body.packages is None):
        raise BadInputError("Give either documents or packages.")
    if body.packages is not None:
        number = await imports.start_packages(body.packages, by)
        return answer(ImportOut(id=number, status="running", report={}), "Started.", status=202)
    documents = [(entry.name, entry.content.encode("utf-8", "replace")) for entry in body.documents or []]
    done = await imports.documents(documents, by, body.category, body.tags)
    return answer(ImportOut(id=None, status="done", report=done.as_dict()), "Imported.", status=201)


async def import_file(
    request: Request,
    name: Annotated[FileName, Query()],
    category: Category = None,
    tags: TagList = [],  # noqa: B006
) -> Response:
    """Import one file (Markdown, text, HTML or PDF): the body is the file, `name` says what it is.

    422 with the reason where nothing can be read from it; then nothing is changed.
    """
    raw = await request.body()
    done = await _service(request).imports.file(name, raw, current().who.username, category, tags)
    return answer(ImportOut(id=None, status="done", report=done.as_dict()), "Imported.", status=201)


async def get_import(import_id: str, request: Request) -> Response:
    """How far an import is, or what it did."""
    found = await _service(request).imports.get(_number(import_id))
    return answer(ImportOut(id=found.id, status=found.status, report=found.report))


def add_routes(app: FastAPI) -> None:
    """Add them."""
    path, tags = "/api/v2/knowledge", list[str | Enum](["knowledge"])
    one = path + "/{item_id}"
    item, imported = Success[ItemOut], Success[ImportOut]
    file = {"requestBody": {"required": True, "content": {"application/octet-stream": {"schema": {"type": "string"}}}}}
    app.add_api_route(path, list_items, methods=["GET"], response_model=Success[ItemsPage], tags=tags)
    app.add_api_route(path, create_item, methods=["POST"], response_model=item, status_code=201, tags=tags)
    app.add_api_route(path + "/search", search_items, methods=["GET"], response_model=Success[SearchOut], tags=tags)
    app.add_api_route(
        path + "/import",
        import_documents,
        methods=["POST"],
        response_model=imported,
        status_code=201,
        responses={202: {"model": imported}},
        tags=tags,
    )
    app.add_api_route(
        path + "/import/file",
        import_file,
        methods=["POST"],
        response_model=imported,
        status_code=201,
        openapi_extra=file,
        tags=tags,
    )
    app.add_api_route(path + "/imports/{import_id}", get_import, methods=["GET"], response_model=imported, tags=tags)
    app.add_api_route(one, get_item, methods=["GET"], response_model=item, tags=tags)
    app.add_api_route(one, change_item, methods=["PUT"], response_model=item, tags=tags)
    app.add_api_route(one, delete_item, methods=["DELETE"], response_model=Success[None], tags=tags)
    app.add_api_route(
        one + "/versions", list_versions, methods=["GET"], response_model=Success[VersionsPage], tags=tags
    )


def _service(request: Request) -> KnowledgeService:
    return request.app.state.platform.knowledge


def _with_tag(item: KnowledgeItem | ItemRow, message: str = "", status: int = 200) -> Response:
    answered = answer(plain(item), message, status=status)
    answered.headers["ETag"] = f'"{item.version}"'
    return answered


def _expected(if_match: str | None, version: int | None) -> int | None:
    """The version that a change was made for."""
    if if_match is None or if_match.strip() == "*":
        return version
    text = if_match.strip().removeprefix("W/").strip('"')
    if not text.isascii() or not text.isdigit() or len(text) > 9:
        raise BadInputError('If-Match is a version, like "3".', hint="Send the ETag of your GET.")
    if version is not None and version != int(text):
        raise BadInputError("If-Match and version say different things.")
    return int(text)


def _number(text: str) -> int:
    if not text.isascii() or not text.isdigit() or len(text) > 19:
        raise NotFoundError("There is nothing of that number.")
    return int(text)
