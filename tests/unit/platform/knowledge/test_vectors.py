"""The index of vectors in a file: as good as comparing with all of them, and never trusted more than the database."""

import asyncio

import numpy as np
import pytest
from sqlalchemy import text

from agentlightning.platform.cache import MemoryCache
from agentlightning.platform.database import Database
from agentlightning.platform.embedding.words import WordEmbedder
from agentlightning.platform.knowledge import vectors as module
from agentlightning.platform.knowledge.repository import Draft
from agentlightning.platform.knowledge.service import KnowledgeService, SearchQuery
from agentlightning.platform.knowledge.textsearch import TextSearch, choose
from agentlightning.platform.knowledge.vectors import LocalIndex
from agentlightning.platform.lookups import Lookups
from agentlightning.platform.migrations import migrate

SIZE = 16


@pytest.fixture
async def database(tmp_path):
    url = f"sqlite:///{tmp_path / 'platform.db'}"
    await asyncio.to_thread(migrate, url)
    database = Database(url)
    yield database
    await database.close()


async def write(database: Database, matrix: np.ndarray, start: int = 1, first_no: int = 1) -> None:
    """Rows as the indexer writes them."""
    async with database.write() as session:
        await session.execute(text("PRAGMA defer_foreign_keys=ON"))
        for place, vector in enumerate(matrix):
            values = {"id": start + place, "no": first_no + place, "vector": vector.astype("<f2").tobytes()}
            await session.execute(
                text(
                    "INSERT OR IGNORE INTO knowledge_items (id, title, content, tags, metadata, created_at, updated_at,"
                    " created_by, version, content_hash, facets, embedded_by)"
                    " VALUES (:id, 'x', 'y', '[]', '{}', '', '', '', 1, '', '', 'e')"
                ),
                {"id": values["id"]},
            )
            await session.execute(
                text("INSERT OR REPLACE INTO knowledge_vectors VALUES (:id, 'e', :no, :vector)"), values
            )
        await session.execute(
            text("UPDATE knowledge_state SET last_no = :no, generation = generation + 1"),
            {"no": first_no + len(matrix) - 1},
        )


def unit(count: int, seed: int = 0) -> np.ndarray:
    found = np.random.default_rng(seed).normal(size=(count, SIZE)).astype(np.float32)
    return found / np.linalg.norm(found, axis=1, keepdims=True)


def index_of(database: Database, folder) -> LocalIndex:
    return LocalIndex(database, Lookups(database), folder, "e", SIZE)


async def nearest(index: LocalIndex, vector, limit=10, only=None):
    return [item for item, _ in await index.search(vector, limit, only)]


async def test_it_finds_what_comparing_with_all_finds_before_and_after_folding(database, tmp_path):
    matrix = unit(3000)
    await write(database, matrix)
    index = index_of(database, tmp_path / "v")
    questions = unit(30, seed=1)
    truth = [set((np.argsort(-(matrix @ q))[:10] + 1).tolist()) for q in questions]
    for fold in (False, True):
        if fold:
            await index.fold()
            assert len(list((tmp_path / "v").glob("*.usearch"))) == 1
        shares = [len(truth[n] & set(await nearest(index, q))) / 10 for n, q in enumerate(questions)]
        assert np.mean(shares) > 0.97
    assert await nearest(index, matrix[41], 1) == [42]
    only = [5, 7, 9, 9999]
    expected = sorted(only[:3], key=lambda item: -float(matrix[item - 1] @ questions[0]))
    assert await nearest(index, questions[0], 10, only) == expected
    # Changed, new and removed items, over the file.
    await write(database, -matrix[41:42], start=42, first_no=3001)
    await write(database, unit(1, seed=9), start=5000, first_no=3002)
    assert await nearest(index, -matrix[41], 1) == [42]
    assert 42 not in await nearest(index, matrix[41], 50)
    assert await nearest(index, unit(1, seed=9)[0], 1) == [5000]
    await index.forget([5000, 1])
    assert await nearest(index, unit(1, seed=9)[0], 1) != [5000]
    assert await nearest(index, matrix[0], 1) != [1]
    await index.fold()
    assert index.size() == 2999
    assert await nearest(index, -matrix[41], 1) == [42]
    await index.close()


async def test_a_damaged_missing_or_foreign_file_is_made_anew(database, tmp_path):
    matrix = unit(50)
    await write(database, matrix)
    folder = tmp_path / "v"
    index = index_of(database, folder)
    await index.refresh()
    await index.fold()
    (path,) = folder.glob("*.usearch")
    (folder / "knowledge-0123456789abcdef-9.usearch").write_bytes(b"of another database")
    (folder / f"{path.stem}.123.tmp").write_bytes(b"of a killed process")
    path.write_bytes(path.read_bytes()[: path.stat().st_size // 2])
    for damage in (b"", b"garbage" * 100, None):
        other = index_of(database, folder)
        if damage is not None:
            path.write_bytes(damage)
        assert await nearest(other, matrix[3], 1) == [4]


async def test_two_processes_use_one_file(database, tmp_path):
    matrix = unit(200)
    await write(database, matrix[:100])
    one, two = index_of(database, tmp_path / "v"), index_of(database, tmp_path / "v")
    await one.refresh()
    await one.fold()
    assert await nearest(two, matrix[3], 1) == [4]
    await write(database, matrix[100:], start=101, first_no=101)
    assert await nearest(one, matrix[150], 1) == [151]
    assert await nearest(two, matrix[150], 1) == [151]
    await one.fold()
    await two.fold()  # the other one was faster
    assert len(list((tmp_path / "v").glob("*.usearch"))) == 1
    for index in (one, two):
        assert await nearest(index, matrix[150], 1) == [151]
        assert index.size() == 200
        await index.close()


async def test_many_new_ones_are_folded_by_themselves(database, tmp_path, monkeypatch):
    monkeypatch.setattr(module, "_FOLD", 50)
    await write(database, unit(80))
    index = index_of(database, tmp_path / "v")
    await index.refresh()
    await index.close()
    assert len(list((tmp_path / "v").glob("*.usearch"))) == 1


async def test_another_embedder_makes_all_vectors_anew_and_goes_on_after_a_stop(database, tmp_path):
    class Other(WordEmbedder):
        name = "other.2"

    drafts = [Draft(f"Item {n}", f"text number {n} about cats and {n}") for n in range(300)]
    first = KnowledgeService(database, MemoryCache(), WordEmbedder(), tmp_path / "v")
    for draft in drafts[:3]:
        await first.create(draft, "me")
    from agentlightning.platform.knowledge import repository

    async with database.write() as session:
        await repository.add(session, drafts[3:], "me")
    assert await first.indexer.drain() == 300
    assert (await first.status())["waiting_for_vectors"] == 0
    await first.close()
    second = KnowledgeService(database, MemoryCache(), Other(), tmp_path / "v")
    assert (await second.status())["waiting_for_vectors"] == 300
    assert (await second.find(SearchQuery("cats", mode="text")))["items"]
    assert await second.indexer.step() == 128
    await second.close()
    third = KnowledgeService(database, MemoryCache(), Other(), tmp_path / "v")
    third.indexer.start()
    for _ in range(2000):
        if (await third.status())["waiting_for_vectors"] == 0:
            break
        await asyncio.sleep(0.05)
    assert (await third.status())["waiting_for_vectors"] == 0
    found = await third.find(SearchQuery("text number 7 about cats", mode="semantic"))
    assert len(found["items"]) == 10
    await third.close()


async def test_filters_that_leave_many_still_find_enough(database, tmp_path, monkeypatch):
    from agentlightning.platform.knowledge import meaning, repository

    monkeypatch.setattr(meaning, "FEW", 3)
    service = KnowledgeService(database, MemoryCache(), WordEmbedder(), tmp_path / "v")
    async with database.write() as session:
        near = [Draft(f"Cats {n}", f"cats and kittens {n}", "near", ("all",)) for n in range(40)]
        far = [Draft(f"Banks {n}", f"interest rates of banks {n}", "far", ("all", "odd")) for n in range(8)]
        await repository.add(session, [*near, *far], "me")
    await service.indexer.drain()
    found = await service.meaning.find("cats", 5, "far", ("all", "odd"))
    assert len(found) == 5
    async with database.read() as session:
        items = await repository.items_of(session, [number for number, _ in found])
    assert {item.category for item in items.values()} == {"far"}
    await service.close()


def test_common_words_do_not_choose_where_rarer_ones_do():
    assert choose({"the": 900_000, "cache": 3_000, "redis": 500}) == ("|", ["redis", "cache"])
    assert choose({"the": 900_000, "data": 60_000, "new": 50_000}) == ("&", ["new", "data"])
    assert choose({"the": 900_000, "is": 500_000}) == ("newest", ["is"])
    assert choose({"a": 0, "b": 0}) is None


async def test_words_are_estimated_beyond_a_point(database, monkeypatch):
    from agentlightning.platform.knowledge import repository, textsearch

    monkeypatch.setattr(textsearch, "_COUNTED", 20)
    monkeypatch.setattr(textsearch, "CANDIDATES", 50)
    monkeypatch.setattr(textsearch, "RANKED", 50)
    async with database.write() as session:
        drafts = [Draft(f"T{n}", "common word" + (" seldom" if n % 40 == 0 else "")) for n in range(200)]
        await repository.add(session, drafts, "me")
    search = TextSearch(is_sqlite=True)
    async with database.read() as session:
        counts = await search._sqlite_share(session, ["common", "seldom", "never"])
        assert 150 <= counts["common"] <= 250
        assert (counts["seldom"], counts["never"]) == (5, 0)
        assert len(await search.find(session, ["common", "seldom"], None, (), 100)) == 5
        newest = await search.find(session, ["common"], None, (), 100)
    assert sorted(newest) == list(range(151, 201))


async def test_a_first_build_that_was_interrupted_goes_on_from_what_it_kept(database, tmp_path, monkeypatch):
    for name, value in (("_PAGE", 20), ("_KEPT_EVERY_S", -1.0), ("_FOLD", 30)):
        monkeypatch.setattr(module, name, value)
    matrix = unit(200)
    await write(database, matrix)
    read, starts = module.repository.vectors_after, []

    async def die_at_120(session, embedder, after, limit):
        starts.append(after)
        if after == 120 and starts.count(120) == 1:
            raise OSError("killed")
        return await read(session, embedder, after, limit)

    monkeypatch.setattr(module.repository, "vectors_after", die_at_120)
    folder = tmp_path / "v"
    with pytest.raises(OSError, match="killed"):
        await index_of(database, folder).refresh()
    assert [path.stem.rsplit("-", 1)[1] for path in folder.glob("*.usearch")] == ["120"]
    other = index_of(database, folder)
    assert [await nearest(other, matrix[place], 1) for place in (3, 119, 120, 199)] == [[4], [120], [121], [200]]
    assert starts == [0, 20, 40, 60, 80, 100, 120, 120, 140, 160, 180, 200]
    await other.close()
    assert other.size() == 0
    (path,) = folder.glob("*.usearch")
    assert path.stem.endswith("-200")
