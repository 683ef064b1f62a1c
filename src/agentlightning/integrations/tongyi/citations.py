"""Citations held against what was really read. Knows no model."""

from __future__ import annotations

import re
from collections.abc import Sequence
from urllib.parse import urlsplit, urlunsplit

from agentlightning.integrations.tongyi.research import Research, Source

_MARKERS = re.compile(r"\[\s*(S\d+(?:\s*[,;]\s*S\d+)*)\s*\]", re.IGNORECASE)
_URL = re.compile(r"https?://[^\s<>\"'`\])}]+", re.IGNORECASE)
_DOI = re.compile(r"\b(?:doi:\s*)?10\.\d{4,9}/[^\s<>\"'\])},;]+", re.IGNORECASE)
_OWN_LIST = re.compile(r"\n+\s*(?:#+\s*|\*\*)?(?:sources|references)\s*:?\s*(?:\*\*)?\s*:?\s*\n[\s\S]*\Z", re.IGNORECASE)
_LINK = re.compile(r"\[([^\]]+)\]\((https?://[^)\s]+)\)", re.IGNORECASE)


def settle(draft: str, research: Research) -> None:
    """Make the answer of a draft: markers become numbers of a list of sources, and what was never read goes.

    `[S3]` counts when source 3 was read; a URL when it was fetched; a DOI when one of the texts has it. A list of sources
    that the model wrote is replaced by the true one.
    """
    known = {source.number: source for source in research.sources}
    cited: list[Source] = []
    text = _OWN_LIST.sub("", draft).rstrip()
    text = _LINK.sub(lambda m: m[0] if _by_url(m[2], research.sources) else f"{m[1]} {m[2]}", text)

    def number(source: Source) -> int:
        if source not in cited:
            same = next((c for c in cited if c.locator == source.locator), None)
            if same is None:
                cited.append(source)
            else:
                source = same
        return cited.index(source) + 1

    def marker(match: re.Match[str]) -> str:
        numbers: list[int] = []
        for name in re.findall(r"\d+", match[1]):
            source = known.get(int(name))
            if source is None or not source.is_citable:
                research.flagged.append(f"[S{name}]")
            else:
                numbers.append(number(source))
        return "".join(f"[{n}]" for n in dict.fromkeys(numbers))

    def address(match: re.Match[str]) -> str:
        url = match[0].rstrip(".,;:!?")
        rest = match[0][len(url) :]
        source = _by_url(url, research.sources)
        if source is None:
            research.flagged.append(url)
            return f"(unread address removed){rest}"
        number(source)
        return match[0]

    def identifier(match: re.Match[str]) -> str:
        doi = match[0].rstrip(".")
        bare = re.sub(r"^doi:\s*", "", doi, flags=re.IGNORECASE)
        if any(bare.lower() in source.text.lower() for source in research.sources):
            return match[0]
        research.flagged.append(doi)
        return "(unread DOI removed)"

    text = _MARKERS.sub(marker, text)
    text = _URL.sub(address, text)
    text = _DOI.sub(lambda m: m[0] if _is_within_url(m, text) else identifier(m), text)
    text = re.sub(r"[ \t]+([.,;:])", r"\1", text).strip()
    research.flagged = list(dict.fromkeys(research.flagged))
    research.cited = cited
    if not text:
        return
    lines = [f"[{index}] {_shown(source)}" for index, source in enumerate(cited, start=1)]
    research.answer = text + ("\n\nSources:\n" + "\n".join(lines) if lines else "")


def _by_url(url: str, sources: Sequence[Source]) -> Source | None:
    wanted = _plain(url.rstrip(".,;:!?"))
    return next((s for s in sources if s.kind == "web" and wanted in (_plain(s.locator), _plain(s.alias))), None)


def _plain(url: str) -> str:
    parts = urlsplit(url)
    return urlunsplit((parts.scheme.lower(), parts.netloc.lower(), parts.path.rstrip("/"), parts.query, ""))


def _is_within_url(match: re.Match[str], text: str) -> bool:
    begin = max(text.rfind(" ", 0, match.start()), text.rfind("\n", 0, match.start()), text.rfind("(", 0, match.start()))
    return text[begin + 1 : match.start()].lower().startswith("http")


def _shown(source: Source) -> str:
    return f"Python: {source.locator}" if source.kind == "python" else source.locator
