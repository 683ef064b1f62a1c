"""Knowledge and imports of it, as typed calls."""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from pathlib import Path
from typing import Any, Literal

from agentlightning.client.models import Item
from agentlightning.client.reports import Import, ItemVersion
from agentlightning.client.resources import Resource, given

_IMPORT_S = 600.0


class Knowledge(Resource):
    """What agents can look up."""

    def __iter__(self) -> Iterator[Item]:
        return self.list()

    def list(self, *, category: str | None = None, tags: Sequence[str] = ()) -> Iterator[Item]:
        """Items by number, long ones cut."""
        return self.pages("/api/v2/knowledge", "items", Item, "after", category=category, tags=[*tags] or None)

    def search(
        self,
        query: str,
        *,
        limit: int = 10,
        mode: Literal["hybrid", "text", "semantic"] = "hybrid",
        category: str | None = None,
    ) -> Sequence[tuple[Item, float]]:
        """Items with their scores, best first."""
        asked = {"q": query, "limit": limit, "mode": mode, "category": category}
        found = self._transport.call("GET", "/api/v2/knowledge/search", query=asked)
        return [(Item.model_validate(hit["item"]), float(hit["score"])) for hit in found["items"]]

    def get(self, item_id: int) -> Item:
        """One item, whole."""
        return Item.model_validate(self._transport.call("GET", f"/api/v2/knowledge/{item_id}"))

    def create(
        self,
        title: str,
        content: str,
        *,
        category: str | None = None,
        tags: Sequence[str] = (),
        metadata: Mapping[str, Any] | None = None,
    ) -> Item:
        """A new item."""
        body = given(
            title=title,
            content=content,
            category=category,
            tags=[*tags] or None,
            metadata=None if metadata is None else dict(metadata),
        )
        return Item.model_validate(self._transport.call("POST", "/api/v2/knowledge", json=body))

    def update(self, item_id: int, *, version: int, **changes: Any) -> Item:
        """Change `title`, `content`, `category`, `tags` or `metadata` of the version that was read.

        Raises:
            ConflictError: Somebody else changed it meanwhile.
        """
        body = {**changes, "version": version}
        return Item.model_validate(self._transport.call("PUT", f"/api/v2/knowledge/{item_id}", json=body))

    def delete(self, item_id: int) -> None:
        """Remove an item with its versions."""
        self._transport.call("DELETE", f"/api/v2/knowledge/{item_id}")

    def versions(self, item_id: int) -> Iterator[ItemVersion]:
        """What an item was, newest first."""
        return self.pages(f"/api/v2/knowledge/{item_id}/versions", "versions", ItemVersion, "before")

    def import_documents(
        self, documents: Mapping[str, str], *, category: str | None = None, tags: Sequence[str] = ()
    ) -> Import:
        """Import texts by their names (`guide.md`, `page.html`); `report` names those that could not be read."""
        named = [{"name": name, "content": content} for name, content in documents.items()]
        body = given(documents=named, category=category, tags=[*tags] or None)
        return self._import("", json=body)

    def import_file(self, path: str | Path, *, category: str | None = None, tags: Sequence[str] = ()) -> Import:
        """Import one file: Markdown, text, HTML or PDF.

        Raises:
            BadInputError: Nothing can be read from it (`DOCUMENT_UNREADABLE`).
            OSError: It cannot be opened here.
        """
        query = {"name": Path(path).name, "category": category, "tags": [*tags] or None}
        return self._import("/file", query=query, content=Path(path).read_bytes())

    def import_packages(self, names: Sequence[str]) -> Import:
        """Begin to import the documentation of packages that are installed there; `[]` is all of them."""
        return Import.model_validate(
            self._transport.call("POST", "/api/v2/knowledge/import", json={"packages": [*names]})
        )

    def get_import(self, number: int) -> Import:
        """How far an import in the background is."""
        return Import.model_validate(self._transport.call("GET", f"/api/v2/knowledge/imports/{number}"))

    def wait_import(self, number: int, *, timeout_s: float = 3600.0) -> Import:
        """The import when it has ended, well or not.

        Raises:
            TimedOutError: It has not; it goes on.
        """
        return self.until(lambda: self.get_import(number), lambda found: found.is_over, f"Import {number}", timeout_s)

    def _import(self, path: str, **sent: Any) -> Import:
        """Repeating does no harm: what is the same as before is left alone. Reading documents takes its time."""
        path = f"/api/v2/knowledge/import{path}"
        return Import.model_validate(self._transport.call("POST", path, repeatable=True, timeout_s=_IMPORT_S, **sent))
