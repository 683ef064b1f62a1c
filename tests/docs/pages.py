"""Markdown pages as data: their fenced blocks, links and headings.

An HTML comment on the line before a block says how it is treated:

* `<!-- no-run: reason -->`: it is not executed;
* `<!-- file: NAME -->`: it is the content of a file that the page's other blocks use;
* `<!-- run -->`: a shell block that is executed, not only parsed.
"""

import re
from dataclasses import dataclass, field
from pathlib import Path

ROOT = Path(__file__).resolve().parents[2]
PAGES = [ROOT / "README.md", ROOT / "CONTRIBUTING.md", *sorted((ROOT / "docs").rglob("*.md"))]

_FENCE = re.compile(r"^(`{3,})\s*([\w+-]*)\s*$")
_DIRECTIVE = re.compile(r"^<!--\s*(no-run|file|run)(?::\s*(.*?))?\s*-->$")
_SHELL = {"sh", "bash", "shell", "console"}


@dataclass(frozen=True)
class Block:
    """One fenced block; `line` is the 1-based number of its first line of content."""

    language: str
    code: str
    line: int
    directive: str = ""
    argument: str = ""

    @property
    def is_shell(self) -> bool:
        return self.language in _SHELL


@dataclass
class Page:
    """A page, split."""

    path: Path
    blocks: list[Block] = field(default_factory=list[Block])
    prose: str = ""

    @property
    def name(self) -> str:
        return str(self.path.relative_to(ROOT))

    @property
    def headings(self) -> list[str]:
        return re.findall(r"^#+\s+(.*?)\s*$", self.prose, flags=re.MULTILINE)


def read_page(path: Path) -> Page:
    """Split a page into its blocks and the prose between them.

    Raises:
        ValueError: A fence is left open.
    """
    page = Page(path)
    prose: list[str] = []
    directive = ("", "")
    fence, language, start, content = "", "", 0, list[str]()
    for number, line in enumerate(path.read_text(encoding="utf-8").splitlines(), start=1):
        opening = _FENCE.match(line)
        if fence:
            if line.strip() == fence:
                page.blocks.append(Block(language, "\n".join(content) + "\n", start, *directive))
                fence, directive = "", ("", "")
            else:
                content.append(line)
        elif opening:
            fence, language, start, content = opening[1], opening[2], number + 1, []
        else:
            prose.append(line)
            found = _DIRECTIVE.match(line.strip())
            if found:
                directive = (found[1], found[2] or "")
            elif line.strip():
                directive = ("", "")
    if fence:
        raise ValueError(f"{path.name}: the block at line {start} is not closed")
    page.prose = "\n".join(prose)
    return page


def commands(code: str) -> list[str]:
    """Shell lines with continuations joined, without prompts, comments and blank lines."""
    joined = re.sub(r"\\\n\s*", "", code)
    lines = (re.sub(r"^\$\s+", "", line.strip()) for line in joined.splitlines())
    return [line for line in lines if line and not line.startswith("#")]


def anchor(heading: str) -> str:
    """The fragment under which a heading is found."""
    text = re.sub(r"[`*_]|\[([^]]*)\]\([^)]*\)", r"\1", heading).lower()
    return re.sub(r"[^\w\- ]", "", text).strip().replace(" ", "-")
