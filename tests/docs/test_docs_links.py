"""Links of the documentation lead somewhere, and paths that are named exist."""

import re

import pytest

from tests.docs.pages import PAGES, ROOT, anchor, read_page

_LINK = re.compile(r"!?\[[^\]]*\]\(([^)\s]+)(?:\s+\"[^\"]*\")?\)|(?:src|href)=\"([^\"]+)\"")
_CODE = re.compile(r"`([^`\n]+)`")
_PATH = re.compile(r"(?:src|tests|docs|benchmarks|examples|tools|dev|\.ci)/[\w./-]*")
_ROOT_FILES = {
    "README.md",
    "CONTRIBUTING.md",
    "CHANGELOG.md",
    "Makefile",
    "pyproject.toml",
    "constraints.txt",
    "LICENSE",
}


@pytest.mark.parametrize("path", PAGES, ids=lambda path: str(path.relative_to(ROOT)))
def test_relative_links_lead_to_a_file_and_a_heading(path):
    page = read_page(path)
    broken: list[str] = []
    for first, second in _LINK.findall(page.prose):
        link = first or second
        if re.match(r"[a-z]+:", link):
            continue
        target_name, _, fragment = link.partition("#")
        target = (path.parent / target_name).resolve() if target_name else path
        headings = read_page(target).headings if fragment and target.suffix == ".md" and target.exists() else None
        if not target.exists() or (headings is not None and fragment not in map(anchor, headings)):
            broken.append(link)
    assert broken == []


@pytest.mark.parametrize("path", PAGES, ids=lambda path: str(path.relative_to(ROOT)))
def test_paths_named_in_the_text_exist(path):
    missing = [
        code
        for code in _CODE.findall(read_page(path).prose)
        if _PATH.fullmatch(code.partition(":")[0]) or code in _ROOT_FILES
        if not (ROOT / code.partition(":")[0]).exists()
    ]
    assert missing == []


@pytest.mark.parametrize("path", PAGES, ids=lambda path: str(path.relative_to(ROOT)))
def test_a_page_has_one_title(path):
    page = read_page(path)
    titles = re.findall(r"^# .*$", page.prose, flags=re.MULTILINE)
    assert len(titles) == 1


def test_every_page_is_reached_from_the_readme():
    reached, todo = set(), [ROOT / "README.md"]
    while todo:
        path = todo.pop()
        if path in reached or path.suffix != ".md":
            continue
        reached.add(path)
        for first, second in _LINK.findall(read_page(path).prose):
            name = (first or second).partition("#")[0]
            target = (path.parent / name).resolve()
            if name and not re.match(r"[a-z]+:", name) and target.is_file():
                todo.append(target)
    assert sorted(str(path.relative_to(ROOT)) for path in set(PAGES) - reached) == []
