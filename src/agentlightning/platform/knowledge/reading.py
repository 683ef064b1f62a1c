"""Documents to text, and text to pieces of the size of an item. Opens nothing but what it is given, runs nothing.

`python -m agentlightning.platform.knowledge.reading NAME` reads one document from its input in a process with limits on
memory and time: what a stranger uploads is read there.
"""

from __future__ import annotations

import asyncio
import contextlib
import io
import re
import sys
from dataclasses import dataclass
from pathlib import PurePath
from typing import Any

import orjson

from agentlightning.kit.errors import BadInputError, MissingExtraError

MAX_BYTES = 32 * 2**20
SUFFIXES = frozenset({".md", ".markdown", ".mdx", ".txt", ".rst", ".text", ".html", ".htm", ".xhtml", ".pdf"})

_MAX_PAGES = 2_000
_MAX_CHARS = 5_000_000
_PIECE = 1_600
_LEAST = 60
_SECONDS = 60
_MEMORY = 2**30
_ARCHIVES = (b"PK\x03\x04", b"PK\x05\x06", b"\x1f\x8b", b"BZh", b"\xfd7zXZ", b"7z\xbc\xaf", b"Rar!", b"(\xb5/\xfd")
_HEADING = re.compile(r"^(#{1,4})\s+(.+?)\s*#*$")
_UNDERLINE = re.compile(r"^([=\-~^\"*+#])\1{2,}\s*$")
_FENCE = re.compile(r"^\s*(```|~~~)")


class UnreadableError(BadInputError):
    """The document cannot be read; the message says why."""

    code = "DOCUMENT_UNREADABLE"


@dataclass(frozen=True, slots=True)
class Document:
    """A title and Markdown."""

    title: str
    text: str


@dataclass(frozen=True, slots=True)
class Piece:
    """A part of a document under the headings that it stands below."""

    title: str
    text: str


def read_document(name: str, raw: bytes) -> Document:
    """The text of a document; its kind is what its name ends in.

    Raises:
        UnreadableError: It is too large, an archive, of an unknown kind, or broken.
        MissingExtraError: The package that reads its kind is missing.
    """
    if len(raw) > MAX_BYTES:
        raise UnreadableError(f"The document is larger than {MAX_BYTES >> 20} MiB.")
    if raw.startswith(_ARCHIVES) or raw[257:262] == b"ustar":
        raise UnreadableError("Archives are not opened.", hint="Unpack it, and import the folder.")
    suffix = PurePath(name).suffix.lower()
    if suffix not in SUFFIXES:
        raise UnreadableError(f"Documents of the kind {suffix or 'without an ending'} are not read.")
    if suffix == ".pdf":
        document = _read_pdf(name, raw)
    elif suffix in (".html", ".htm", ".xhtml"):
        document = _read_html(name, raw)
    else:
        document = _read_text(name, raw)
    text = _plain(document.text)[:_MAX_CHARS]
    if not re.search(r"\w", text):
        raise UnreadableError("There is no text in it.")
    return Document(_line(document.title) or PurePath(name).stem[:200], text)


def pieces(document: Document) -> list[Piece]:
    """The document in pieces of about a page, cut at headings, then at paragraphs; code stays together."""
    found: list[Piece] = []
    for path, text in _sections(document.text):
        title = " / ".join(dict.fromkeys([document.title, *path]))[:500]
        found += [Piece(title, part) for part in _packed(text)]
    return found


async def read_guarded(name: str, raw: bytes) -> Document:
    """The same as `read_document`, in a process with limits.

    Raises:
        UnreadableError: It cannot be read, or only with more memory or time than it is worth.
    """
    if len(raw) > MAX_BYTES:
        raise UnreadableError(f"The document is larger than {MAX_BYTES >> 20} MiB.")
    process = await asyncio.create_subprocess_exec(
        *(sys.executable, "-m", __name__, name),
        stdin=asyncio.subprocess.PIPE,
        stdout=asyncio.subprocess.PIPE,
        stderr=asyncio.subprocess.DEVNULL,
    )
    try:
        async with asyncio.timeout(_SECONDS + 10):
            output, _ = await process.communicate(raw)
    except TimeoutError as error:
        raise UnreadableError("Reading it takes too long.") from error
    finally:
        if process.returncode is None:
            with contextlib.suppress(ProcessLookupError):
                process.kill()
            await process.wait()
    if process.returncode != 0:
        raise UnreadableError("Reading it takes too much memory or time.")
    answer = orjson.loads(output)
    if "error" in answer:
        raise UnreadableError(answer["error"], hint=answer["hint"])
    return Document(answer["title"], answer["text"])


def _read_text(name: str, raw: bytes) -> Document:
    if b"\0" in raw[:8192]:
        raise UnreadableError("It is not text.")
    text = raw.decode("utf-8-sig", "replace")
    if text.count("\ufffd") > max(3, len(text) // 50):
        text = raw.decode("latin-1")
    text = re.sub(r"\A---\n.*?\n---\n", "", text, count=1, flags=re.DOTALL)
    first = next((match[2] for line in text.split("\n")[:40] if (match := _HEADING.match(line))), "")
    return Document(first or PurePath(name).stem, text)


def _read_html(name: str, raw: bytes) -> Document:
    try:
        import trafilatura
        from lxml import html
    except ImportError as error:
        raise MissingExtraError(
            f"HTML needs the package {error.name}.", hint="pip install 'agentlightning[platform]'"
        ) from error
    try:
        tree: Any = html.document_fromstring(raw)
        title = str(tree.findtext(".//title") or "").strip()
        text = trafilatura.extract(
            tree, output_format="markdown", include_tables=True, include_comments=False, favor_recall=True
        )
        if not text or len(text) < _LEAST:
            for element in tree.xpath("//script|//style|//noscript|//template"):
                element.drop_tree()
            text = "\n\n".join(part.strip() for part in tree.itertext() if part.strip())
    except Exception as error:
        raise UnreadableError(f"The page is broken ({type(error).__name__}).") from error
    return Document(title or PurePath(name).stem, text)


def _read_pdf(name: str, raw: bytes) -> Document:
    try:
        from pypdf import PdfReader
    except ImportError as error:
        raise MissingExtraError(
            "PDF needs the package pypdf.", hint="pip install 'agentlightning[platform]'"
        ) from error
    import logging

    logging.getLogger("pypdf").setLevel(logging.ERROR)
    parts: list[str] = []
    try:
        reader = PdfReader(io.BytesIO(raw))
        if len(reader.pages) > _MAX_PAGES:
            raise UnreadableError(f"It has more than {_MAX_PAGES} pages.")
        title = str((reader.metadata or {}).get("/Title") or "")
        for page in reader.pages:
            parts.append(page.extract_text())
            if sum(map(len, parts[-1:])) > _MAX_CHARS:
                break
    except UnreadableError:
        raise
    except Exception as error:
        raise UnreadableError(f"The PDF is broken or encrypted ({type(error).__name__}).") from error
    return Document(title or PurePath(name).stem, "\n\n".join(parts))


def _plain(text: str) -> str:
    text = text.replace("\r\n", "\n").replace("\r", "\n")
    text = re.sub(r"[\x00-\x08\x0b\x0c\x0e-\x1f\x7f\ud800-\udfff]", "", text)
    return re.sub(r"\n{3,}", "\n\n", text).strip()


def _line(text: str) -> str:
    return re.sub(r"\s+", " ", re.sub(r"[\x00-\x1f\x7f]", " ", text)).strip()[:200]


def _sections(text: str) -> list[tuple[list[str], str]]:
    """Headings above a text, and the text."""
    found: list[tuple[list[str], list[str]]] = [([], [])]
    path: list[tuple[int, str]] = []
    in_code = False
    lines = text.split("\n")
    for number, line in enumerate(lines):
        in_code = in_code != bool(_FENCE.match(line))
        heading = None if in_code else _heading(lines, number)
        if heading is None:
            if not (in_code is False and number and _UNDERLINE.match(line) and _heading(lines, number - 1)):
                found[-1][1].append(line)
            continue
        level, words = heading
        path = [*(above for above in path if above[0] < level), (level, words)]
        found.append(([name for _, name in path], []))
    return [(names, body) for names, part in found if (body := "\n".join(part).strip())]


def _heading(lines: list[str], number: int) -> tuple[int, str] | None:
    """Level and words of a heading, in Markdown's manner or underlined as in reStructuredText."""
    line = lines[number]
    match = _HEADING.match(line)
    if match:
        return len(match[1]), _line(match[2])
    below = lines[number + 1] if number + 1 < len(lines) else ""
    is_title = bool(line.strip()) and not line.startswith((" ", "|")) and len(line) <= 100
    if is_title and _UNDERLINE.match(below) and len(below.strip()) >= len(line.strip()) and re.search(r"\w", line):
        return (1 if below[0] == "=" else 2), _line(line)
    return None


def _packed(text: str) -> list[str]:
    """Paragraphs put together to pieces; a small rest goes with the piece before it."""
    found: list[str] = []
    for block in _blocks(text):
        if (found and len(found[-1]) + len(block) + 2 <= _PIECE) or (found and len(block) < _LEAST):
            found[-1] += "\n\n" + block
        else:
            found.append(block)
    return [part for part in found if len(part) >= _LEAST or len(found) == 1]


def _blocks(text: str) -> list[str]:
    """Paragraphs and fenced code; what is too long for one piece is cut at lines, then at words."""
    blocks: list[str] = []
    lines: list[str] = []
    in_code = False
    for line in [*text.split("\n"), ""]:
        in_code = in_code != bool(_FENCE.match(line))
        if line.strip() or in_code:
            lines.append(line)
        elif lines:
            blocks.append("\n".join(lines))
            lines = []
    if lines:
        blocks.append("\n".join(lines))
    return [part for block in blocks for part in _cut(block)]


def _cut(block: str) -> list[str]:
    parts: list[str] = []
    while len(block) > _PIECE:
        place = max(block.rfind("\n", _LEAST, _PIECE), block.rfind(". ", _LEAST, _PIECE) + 1)
        if place < _PIECE // 3:
            place = max(block.rfind(" ", _LEAST, _PIECE), 0) or _PIECE
        parts.append(block[:place].rstrip())
        block = block[place:].lstrip("\n ")
    return [*parts, block] if block.strip() else parts


def main() -> None:
    """Read one document from the input and answer it as JSON."""
    with contextlib.suppress(ImportError, ValueError, OSError):  # where there are no such limits
        import resource

        resource.setrlimit(resource.RLIMIT_AS, (_MEMORY, _MEMORY))
        resource.setrlimit(resource.RLIMIT_CPU, (_SECONDS, _SECONDS))
        resource.setrlimit(resource.RLIMIT_FSIZE, (0, 0))
    try:
        document = read_document(sys.argv[1], sys.stdin.buffer.read(MAX_BYTES + 1))
        answer = {"title": document.title, "text": document.text}
    except (UnreadableError, MissingExtraError) as error:
        answer = {"error": error.message, "hint": error.hint}
    sys.stdout.buffer.write(orjson.dumps(answer))


if __name__ == "__main__":
    main()
