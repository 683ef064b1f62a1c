"""Documents to items, and what is not read: links, archives, bombs, code."""

import os
import sys
import zipfile

import pytest
from typer.testing import CliRunner

from agentlightning.cli import knowledge as cli
from agentlightning.kit.errors import BadInputError, NotFoundError
from agentlightning.platform.knowledge import texts
from agentlightning.platform.knowledge.folders import folder_sources
from agentlightning.platform.knowledge.importing import Refused
from agentlightning.platform.knowledge.packages import package_sources
from agentlightning.platform.knowledge.reading import (
    MAX_BYTES,
    Document,
    UnreadableError,
    pieces,
    read_document,
    read_guarded,
)


def pdf(text: str) -> bytes:
    """A PDF of one page with that text."""
    stream = f"BT /F1 12 Tf 72 700 Td ({text}) Tj ET".encode()
    objects = [
        b"<< /Type /Catalog /Pages 2 0 R >>",
        b"<< /Type /Pages /Kids [3 0 R] /Count 1 >>",
        b"<< /Type /Page /Parent 2 0 R /MediaBox [0 0 612 792] /Contents 4 0 R"
        b" /Resources << /Font << /F1 5 0 R >> >> >>",
        b"<< /Length %d >>\nstream\n%s\nendstream" % (len(stream), stream),
        b"<< /Type /Font /Subtype /Type1 /BaseFont /Helvetica >>",
    ]
    body, places = b"%PDF-1.4\n", []
    for number, content in enumerate(objects, 1):
        places.append(len(body))
        body += b"%d 0 obj\n%s\nendobj\n" % (number, content)
    table = b"".join(b"%010d 00000 n \n" % place for place in places)
    return body + b"xref\n0 6\n0000000000 65535 f \n%strailer << /Size 6 /Root 1 0 R >>\nstartxref\n%d\n%%%%EOF" % (
        table,
        len(body),
    )


def test_markdown_is_cut_at_headings_and_code_stays_whole():
    code = "```python\n# not a heading\n\nx = 1\n```"
    text = (
        f"# Guide\n\nIntro that says what this is all about, at some length.\n\n## Use\n\n{code}\n\n## Next\n\nEnd.\n"
    )
    found = pieces(read_document("guide.md", text.encode()))
    assert [piece.title for piece in found] == ["Guide", "Guide / Use", "Guide / Next"]
    assert found[1].text == code


def test_underlined_headings_and_long_texts():
    long = "A sentence of eight words stands here again. " * 200
    found = pieces(read_document("x.rst", f"Title\n=====\n\n{long}\n\nPart\n----\n\nshort text\n".encode()))
    assert found[0].title.endswith("Title")
    assert max(len(piece.text) for piece in found) <= 1700
    assert "".join("".join(piece.text for piece in found[:-1]).split()) == "".join(long.split())
    assert (found[-1].title.split(" / ")[-1], found[-1].text) == ("Part", "short text")


def test_pages_and_pdfs_are_read():
    page = b"<html><head><title>T &amp; U</title></head><body><h1>T</h1><p>" + b"Real words of a page. " * 9 + b"</p>"
    found = read_document("a.html", page + b"<script>alert(1)</script><style>x{}</style></body></html>")
    assert found.title == "T & U"
    assert "Real words" in found.text
    assert "alert" not in found.text
    assert "Hello PDF" in read_document("a.pdf", pdf("Hello PDF")).text


async def test_a_stranger_s_document_is_read_in_a_process_with_limits(tmp_path):
    assert "Hello PDF" in (await read_guarded("a.pdf", pdf("Hello PDF"))).text
    with pytest.raises(UnreadableError, match="Archives"):
        await read_guarded("a.txt", b"PK\x03\x04")
    with pytest.raises(UnreadableError, match="larger"):
        await read_guarded("a.txt", b"x" * (MAX_BYTES + 1))


@pytest.mark.slow
async def test_a38_a_bomb_costs_its_process_only():
    import zlib

    bomb = zlib.compress(b"0" * (1 << 31 if sys.maxsize > 2**32 else 1 << 28), 9)
    raw = pdf("x").replace(b"<< /Length", b"<< /Filter /FlateDecode /Length")
    start = raw.index(b"stream\n") + 7
    with pytest.raises(UnreadableError):
        await read_guarded("bomb.pdf", raw[:start] + bomb + raw[raw.index(b"\nendstream") :])


@pytest.mark.parametrize(
    ("name", "raw"),
    [
        ("a.exe", b"text"),
        ("a", b"text"),
        ("a.md", b""),
        ("a.txt", b"\0\1\2"),
        ("a.pdf", b"%PDF-1.7 garbage"),
        ("a.html", b"   "),
        ("a.md", b"(\xb5/\xfd"),
        ("a.md", b"x" * 257 + b"ustar"),
    ],
)
def test_what_is_no_document_is_refused(name, raw):
    with pytest.raises(UnreadableError):
        read_document(name, raw)


def test_odd_bytes_become_text_that_both_databases_keep():
    found = read_document("a.txt", "\ufeffcaf\u00e9 \x1b[2J\x07 and more".encode())
    assert found.text == "café [2J and more"
    assert read_document("a.txt", b"gr\xfc\xdfe " * 50).text.startswith("grüße")
    assert pieces(Document("t", "x" * 10_000))[0].text


async def test_a30_a31_a_folder_is_read_without_links_and_archives(tmp_path):
    outside = tmp_path / "outside.md"
    outside.write_text("# Secret\n\nnot to be read")
    folder = tmp_path / "docs"
    (folder / "sub").mkdir(parents=True)
    (folder / ".git").mkdir()
    (folder / ".git" / "hidden.md").write_text("# Hidden\n\nnot to be read")
    (folder / "sub" / "a.md").write_text("# A\n\ntext of a that is long enough")
    os.symlink(outside, folder / "link.md")
    os.symlink(tmp_path, folder / "loop")
    os.mkfifo(folder / "pipe.md")
    with zipfile.ZipFile(folder / "docs.zip", "w") as archive:
        archive.writestr("../../evil.md", "x")
    (folder / "disguised.md").write_bytes((folder / "docs.zip").read_bytes())
    (folder / "big.txt").touch()
    os.truncate(folder / "big.txt", MAX_BYTES + 1)
    found = list(folder_sources(folder))
    assert sorted((entry.name, entry.reason) for entry in found if isinstance(entry, Refused)) == [
        ("big.txt", "too large"),
        ("docs.zip", "archive"),
        ("link.md", "link"),
        ("loop", "link"),
        ("pipe.md", "no plain file"),
    ]
    sources = {entry.key.partition("/")[2]: entry for entry in found if not isinstance(entry, Refused)}
    assert set(sources) == {"sub/a.md", "disguised.md"}
    (draft,) = await sources["sub/a.md"].load()
    assert (draft.title, draft.metadata) == ("A", {"document": "sub/a.md"})
    with pytest.raises(UnreadableError):
        await sources["disguised.md"].load()
    os.remove(folder / "sub" / "a.md")
    os.symlink(outside, folder / "sub" / "a.md")  # exchanged after it was looked at
    with pytest.raises(UnreadableError):
        await sources["sub/a.md"].load()
    with pytest.raises(BadInputError):
        list(folder_sources(outside))


def test_a_package_is_read_and_never_run(tmp_path, monkeypatch):
    site = tmp_path / "site"
    (site / "trap").mkdir(parents=True)
    text = "This says what the thing does, in so many words that it is worth to be found by somebody."
    code = f'"""Of the module. {text}"""\nimport os\nos.environ["TRAPPED"] = "1"\n'
    code += f'def public(a, *, b=os.remove("/x")):\n    """Adds. {text}"""\ndef _private():\n    """Hidden. {text}"""\n'
    code += f'class Thing:\n    """A class. {text}"""\n    def act(self):\n        """Acts. {text}"""\n'
    (site / "trap" / "__init__.py").write_text(code)
    (site / "trap" / "broken.py").write_text("def (:\n")
    (site / "trap" / "deep.py").write_text("x = " + "(" * 5000 + ")" * 5000)
    (site / "outside.py").write_text(f'"""Linked. {text}"""')
    os.symlink(site / "outside.py", site / "trap" / "linked.py")
    info = site / "trap-1.2.dist-info"
    info.mkdir()
    (info / "METADATA").write_text(
        f"Metadata-Version: 2.1\nName: trap\nVersion: 1.2\nSummary: A trap.\n\n# Trap\n\n{text}"
    )
    names = ["trap/__init__.py", "trap/broken.py", "trap/deep.py", "trap/linked.py", "../../../etc/passwd.py"]
    (info / "RECORD").write_text("".join(f"{name},,\n" for name in names))
    monkeypatch.syspath_prepend(str(site))
    drafts = [draft for source in package_sources(["Trap"]) for draft in source.load()]
    assert {draft.title for draft in drafts} == {
        "trap", "trap / Trap", "trap.public", "trap.Thing", "trap.Thing.act",
    }  # fmt: skip
    assert all("Hidden" not in draft.content and "Linked" not in draft.content for draft in drafts)
    assert "TRAPPED" not in os.environ
    assert "trap" not in sys.modules
    public = next(draft for draft in drafts if draft.title == "trap.public")
    assert public.content.startswith("def public(a, *, b=os.remove('/x'))")
    assert public.tags == ("python", "trap")
    with pytest.raises(NotFoundError):
        list(package_sources(["no-such-package"]))


def test_near_duplicates_share_a_band():
    base = [f"word{n}" for n in range(100)]
    one = texts.shingles(" ".join(base))
    nearly = texts.shingles(" ".join([*base[:97], "other", *base[98:]]))
    other = texts.shingles(" ".join(reversed(base)))
    assert texts.likeness(one, nearly) > texts.ALIKE
    assert set(texts.bands(one)) & set(texts.bands(nearly))
    assert not set(texts.bands(one)) & set(texts.bands(other))
    assert texts.likeness(texts.shingles(""), texts.shingles("")) == 1
    assert texts.bands(texts.shingles("")) == texts.bands(texts.shingles("!"))


def test_highlights_are_places_in_the_text():
    content = "Nothing here. " * 30 + "The caches were <b>configured</b> with a size. " + "Nothing there. " * 30
    (found,) = texts.highlights(content, ["cache", "configuring"])
    assert [found["text"][start:end] for start, end in found["marks"]] == ["caches", "configured"]
    assert found["text"] in content
    assert texts.highlights(content, ["absent"]) == [{"text": content[:240].rsplit(" ", 1)[0], "marks": []}]


def test_the_commands_from_outside(tmp_path):
    import typer

    app = typer.Typer()
    cli.register(app)
    run = CliRunner().invoke
    folder = tmp_path / "docs"
    folder.mkdir()
    (folder / "a.md").write_text("# Refunds\n\nMoney is back after five working days.")
    (folder / "b.pdf").write_bytes(b"%PDF broken")
    (folder / "c.txt").write_text("Money is back after five working days. Refunds")
    home = ["--home", str(tmp_path / "home")]
    done = run(app, ["knowledge", "import", str(folder), "--category", "shop", "--tag", "x", *home])
    assert done.exit_code == 0, done.output
    assert "2 items from 3 documents" in done.output
    assert "2 vectors" in done.output
    assert "broken or encrypted" in done.output
    again = run(app, ["knowledge", "import", str(folder), "--category", "shop", "--tag", "x", *home])
    assert "unchanged" in again.output
    assert "Refunds" in run(app, ["knowledge", "search", "when is the money back", *home]).output
    assert '"semantic_rank"' in run(app, ["knowledge", "search", "money", "--json", "--mode", "semantic", *home]).output
    assert "shop" in run(app, ["knowledge", "list", *home]).output
    assert "[]" in run(app, ["knowledge", "list", "--tag", "y", "--json", *home]).output
    for wrong in (
        ["import", *home],
        ["import", str(folder), "--packages", *home],
        ["search", "x", "--mode", "y", *home],
    ):
        assert isinstance(run(app, ["knowledge", *wrong]).exception, BadInputError)
