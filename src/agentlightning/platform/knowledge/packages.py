"""Documentation of installed packages: READMEs and docstrings. Nothing is imported or run: `ast` reads it."""

from __future__ import annotations

import ast
import hashlib
import inspect
import warnings
from collections.abc import Generator, Sequence
from email.message import Message
from importlib.metadata import Distribution, PackagePath, distributions
from pathlib import Path
from typing import Any, cast

from agentlightning.kit.errors import NotFoundError
from agentlightning.platform.knowledge.importing import Source
from agentlightning.platform.knowledge.reading import Document, pieces
from agentlightning.platform.knowledge.repository import Draft

CATEGORY = "documentation"

_MAX_SOURCE = 2 * 2**20
_LEAST = 80  # characters of a docstring that says something
_SKIPPED = {"tests", "test", "testing", "_vendor", "_vendored", "vendor", "conftest.py", "locale", "migrations"}


def package_sources(names: Sequence[str] = ()) -> Generator[Source]:
    """The installed packages, or those named, module by module.

    Raises:
        NotFoundError: One that was named is not installed.
    """
    found = {_normalised(dist.name): dist for dist in distributions() if dist.name}
    missing = [name for name in names if _normalised(name) not in found]
    if missing:
        raise NotFoundError(f"Not installed here: {', '.join(missing)}.", hint="pip list shows what is.")
    wanted = {_normalised(name) for name in names} or set(found)
    for name in sorted(wanted):
        yield from _sources_of(found[name])


def _sources_of(dist: Distribution) -> Generator[Source]:
    name = dist.name
    about = dist.metadata
    text = _readme(cast("Message", about))
    if text:
        key = f"package:{name}"
        yield Source(key, _hash(text.encode()), lambda: _readme_drafts(dist, text, key))
    for file in dist.files or ():
        if (
            file.suffix == ".py"
            and not set(file.parts) & _SKIPPED
            and not file.is_absolute()
            and ".." not in file.parts
        ):
            source = _module_source(name, file)
            if source is not None:
                yield source


def _readme(about: Message) -> str:
    summary = str(about.get("Summary") or "")
    payload: Any = about.get_payload()
    text = str(about.get("Description") or "") or (payload if isinstance(payload, str) else "")
    return f"{summary}\n\n{text}".strip()


def _readme_drafts(dist: Distribution, text: str, key: str) -> list[Draft]:
    found = pieces(Document(dist.name, text.replace("\0", "")))
    return [_draft(piece.title, piece.text, dist.name, dist.version, key, "readme") for piece in found]


def _module_source(package: str, file: PackagePath) -> Source | None:
    path = Path(str(file.locate()))
    try:
        if path.is_symlink() or not path.is_file() or path.stat().st_size > _MAX_SOURCE:
            return None
    except OSError:
        return None
    module = ".".join(file.with_suffix("").parts).removesuffix(".__init__")
    if any(part.startswith("_") and not part.startswith("__") for part in module.split(".")):
        return None
    key = f"package:{package}/{module}"[:700]
    stamp = file.hash.value if file.hash is not None else _hash(path.read_bytes())
    return Source(key, stamp[:64], lambda: _module_drafts(package, module, path, key))


def _module_drafts(package: str, module: str, path: Path, key: str) -> list[Draft]:
    try:
        with warnings.catch_warnings():
            warnings.simplefilter("ignore")  # about the package's own escapes
            tree = ast.parse(path.read_bytes())
    except (SyntaxError, ValueError, RecursionError, MemoryError, OSError):
        return []
    drafts: list[Draft] = []
    for title, text in _docstrings(tree, module):
        found = pieces(Document(title, text.replace("\0", "")))
        drafts += [_draft(piece.title, piece.text, package, "", key, "docstring") for piece in found]
    return drafts


def _docstrings(tree: ast.Module, module: str) -> Generator[tuple[str, str]]:
    """Names and docstrings of the module and of what is public in it."""
    text = ast.get_docstring(tree)
    if text and len(text) >= _LEAST:
        yield module, text
    stack: list[tuple[str, ast.stmt]] = [(module, node) for node in reversed(tree.body)]
    while stack:
        prefix, node = stack.pop()
        if not isinstance(node, (ast.ClassDef, ast.FunctionDef, ast.AsyncFunctionDef)) or node.name.startswith("_"):
            continue
        name = f"{prefix}.{node.name}"
        text = ast.get_docstring(node)
        if text and len(text) >= _LEAST:
            yield name, f"{_signature(node)}\n\n{inspect.cleandoc(text)}"
        if isinstance(node, ast.ClassDef):
            stack += [(name, inner) for inner in reversed(node.body)]


def _signature(node: ast.ClassDef | ast.FunctionDef | ast.AsyncFunctionDef) -> str:
    if isinstance(node, ast.ClassDef):
        bases = ", ".join(ast.unparse(base) for base in node.bases)
        return f"class {node.name}({bases})" if bases else f"class {node.name}"
    return f"def {node.name}({ast.unparse(node.args)})"[:600]


def _draft(title: str, text: str, package: str, version: str, key: str, kind: str) -> Draft:
    about = {"package": package, "kind": kind, **({"version": version} if version else {})}
    clean = title.encode("utf-8", "replace").decode()[:500]
    content = text.encode("utf-8", "replace").decode()
    return Draft(clean, content, CATEGORY, ("python", package[:100]), about, key)


def _hash(raw: bytes) -> str:
    return hashlib.sha256(raw).hexdigest()


def _normalised(name: str) -> str:
    return name.lower().replace("_", "-").replace(".", "-")
