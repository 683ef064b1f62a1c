"""Citations held against what was really read. Knows no model."""

from __future__ import annotations

import re
from collections.abc import Sequence
from urllib.parse import urlsplit, urlunsplit

from agentlightning.integrations.tongyi.research import Research, Source

_MARKERS = re.compile(r"\[\s*(S\d+(?:\s*[,;]\s*S\d+)*)\s*\]", re.IGNORECASE)
_URL = re.compile(r"https?://[^\s<>\"'`\])}]+", re.IGNORECASE)
_DOI = re.compile(r"\b(?:doi:\s*)?10\.\d{4,9}/[^\s<>\"'\])},;]+", re.IGNORECASE)
_OWN_LIST = re.compile(
    r"\n+\s*(?:#+\s*|\*\*)?(?:sources|references)\s*:?\s*(?:\*\*)?\s*:?\s*\n[\s\S]*\Z", re.IGNORECASE
)
_LINK = re.compile(r"\[([^\]]+)\]\((https?://[^)\s]+)\)", re.IGNORECASE)


def settle(draft: str, research: Research) -> None:
    """Make the answer of a draft: markers become numbers of a list of sources, and what was never read goes.

    `[S3]` counts when source 3 was read; a URL when it was fetched; a DOI when one of the texts has it. A list of
    sources that the model wrote is replaced by the true one.
    """
    check = _Check(research)
    text = _OWN_LIST.sub("", draft).rstrip()
    text = _LINK.sub(check.link, text)
    text = _MARKERS.sub(check.marker, text)
    text = _URL.sub(check.address, text)
    text = _DOI.sub(lambda match: match[0] if _is_within_url(match, text) else check.doi(match), text)
    text = re.sub(r"[ \t]+([.,;:])", r"\1", text).strip()
    research.flagged = list(dict.fromkeys(research.flagged))
    research.cited = check.cited
    if text:
        lines = [f"[{index}] {_shown(source)}" for index, source in enumerate(check.cited, start=1)]
        research.answer = text + ("\n\nSources:\n" + "\n".join(lines) if lines else "")


class _Check:
    """Holds citations against the sources of a piece of research, and numbers those that hold."""

    def __init__(self, research: Research) -> None:
        self._research = research
        self._known = {source.number: source for source in research.sources}
        self.cited: list[Source] = []

    def link(self, match: re.Match[str]) -> str:
        """A Markdown link to what was not read is taken apart, so that its address is seen to."""
        return match[0] if _by_url(match[2], self._research.sources) else f"{match[1]} {match[2]}"

    def marker(self, match: re.Match[str]) -> str:
        numbers: list[int] = []
        for name in re.findall(r"\d+", match[1]):
            source = self._known.get(int(name))
            if source is None or not source.is_citable:
                self._research.flagged.append(f"[S{name}]")
            else:
                numbers.append(self._number(source))
        return "".join(f"[{n}]" for n in dict.fromkeys(numbers))

    def address(self, match: re.Match[str]) -> str:
        url = match[0].rstrip(".,;:!?")
        source = _by_url(url, self._research.sources)
        if source is None:
            self._research.flagged.append(url)
            return f"(unread address removed){match[0][len(url) :]}"
        self._number(source)
        return match[0]

    def doi(self, match: re.Match[str]) -> str:
        doi = match[0].rstrip(".")
        bare = re.sub(r"^doi:\s*", "", doi, flags=re.IGNORECASE).lower()
        if any(bare in source.text.lower() for source in self._research.sources):
            return match[0]
        self._research.flagged.append(doi)
        return "(unread DOI removed)"

    def _number(self, source: Source) -> int:
        for index, known in enumerate(self.cited, start=1):
            if known.locator == source.locator:
                return index
        self.cited.append(source)
        return len(self.cited)


def _by_url(url: str, sources: Sequence[Source]) -> Source | None:
    wanted = _plain(url.rstrip(".,;:!?"))
    return next((s for s in sources if s.kind == "web" and wanted in (_plain(s.locator), _plain(s.alias))), None)


def _plain(url: str) -> str:
    parts = urlsplit(url)
    return urlunsplit((parts.scheme.lower(), parts.netloc.lower(), parts.path.rstrip("/"), parts.query, ""))


def _is_within_url(match: re.Match[str], text: str) -> bool:
    begin = max(
        text.rfind(" ", 0, match.start()), text.rfind("\n", 0, match.start()), text.rfind("(", 0, match.start())
    )
    return text[begin + 1 : match.start()].lower().startswith("http")


def _shown(source: Source) -> str:
    return f"Python: {source.locator}" if source.kind == "python" else source.locator
