"""Search over a million items: `python benchmarks/knowledge.py [--items 1000000] [--folder DIR]`.

The corpus is made of real sentences: the documentation of the packages that are installed here is cut into sentences,
and an item is three to eight of them, most of them from one place of it, so that vocabulary, its frequencies and the
topics are real while no two items are the same. Every item gets a vector of the default embedder from its own text.
Queries are pieces of other sentences of the same documentation, which stand in no item. Rows are written as the service
writes them (same tables, same indexes), past the API and without the signatures that find near-duplicates.

Searched is with the service itself, one query after the other and each for the first time: its results' cache is never
hit. Recall is of the ten nearest by exact comparison with all vectors. The hit rate is that of another run in which
queries come by a Zipf law (exponent 1), with a write now and then.
"""

from __future__ import annotations

import argparse
import asyncio
import itertools
import json
import os
import random
import re
import resource
import sqlite3
import time
from pathlib import Path

import numpy as np

from agentlightning.platform.cache import MemoryCache
from agentlightning.platform.database import Database
from agentlightning.platform.embedding.words import WordEmbedder
from agentlightning.platform.knowledge import texts
from agentlightning.platform.knowledge.packages import package_sources
from agentlightning.platform.knowledge.repository import Draft
from agentlightning.platform.knowledge.service import KnowledgeService, SearchQuery
from agentlightning.platform.migrations import migrate

CATEGORIES = [f"c{number}" for number in range(20)]
CHUNK = 20_000


def sentences(limit: int = 400_000) -> list[str]:
    found: list[str] = []
    for source in package_sources():
        drafts = source.load()
        for draft in drafts:
            parts = re.split(r"(?<=[.!?])\s+|\n{2,}", draft.content)
            found += [part.strip()[:400] for part in parts if len(part.strip()) >= 30]
        if len(found) >= limit:
            break
    return list(dict.fromkeys(found))


def items(parts: list[str], count: int, seed: int = 5):
    """`(title, content, category, tags)`; neighbours of a place mostly, so that an item has a topic."""
    chooser = random.Random(seed)
    size = len(parts)
    for _ in range(count):
        place = chooser.randrange(size)
        near = [parts[(place + chooser.randrange(60)) % size] for _ in range(chooser.randint(2, 6))]
        content = " ".join([*near, parts[chooser.randrange(size)]])
        tags = [f"t{int(chooser.paretovariate(0.5)) % 1000}", f"p{place * 200 // size}"]
        yield " ".join(parts[place].split()[:8])[:200], content, CATEGORIES[place * 20 // size], tags


async def fill(path: Path, parts: list[str], count: int) -> dict[str, float]:
    embedder = WordEmbedder()
    connection = sqlite3.connect(path, isolation_level=None)
    connection.execute("PRAGMA synchronous=OFF")
    connection.execute("PRAGMA cache_size=-200000")
    moment = "2026-01-01 00:00:00.000000"
    spent = {"embed_s": 0.0, "write_s": 0.0}
    source = items(parts, count)
    for start in range(0, count, CHUNK):
        chunk = list(itertools.islice(source, CHUNK))
        began = time.perf_counter()
        vectors = (await embedder.embed([f"{title}\n{content}" for title, content, _, _ in chunk], bulk=True)).astype(
            "<f2"
        )
        spent["embed_s"] += time.perf_counter() - began
        began = time.perf_counter()
        connection.execute("BEGIN")
        connection.executemany(
            "INSERT INTO knowledge_items (id, title, content, category, tags, metadata, created_at, updated_at,"
            " created_by, version, content_hash, facets, embedded_by) VALUES (?,?,?,?,?,'{}',?,?,'bench',1,'',?,?)",
            [
                (start + place + 1, title, content, category, json.dumps(tags), moment, moment,
                 texts.facets(category, tags), embedder.name)
                for place, (title, content, category, tags) in enumerate(chunk)
            ],
        )  # fmt: skip
        connection.execute(
            "INSERT INTO knowledge_fts(rowid, title, content, facets)"
            " SELECT id, title, content, facets FROM knowledge_items WHERE id > ? AND id <= ?",
            (start, start + len(chunk)),
        )
        connection.executemany(
            "INSERT OR IGNORE INTO knowledge_tags (tag, item_id) VALUES (?, ?)",
            [(tag, start + place + 1) for place, item in enumerate(chunk) for tag in item[3]],
        )
        connection.executemany(
            "INSERT INTO knowledge_vectors (item_id, embedder, no, vector) VALUES (?, ?, ?, ?)",
            [(start + p + 1, embedder.name, start + p + 1, vector.tobytes()) for p, vector in enumerate(vectors)],
        )
        connection.execute("UPDATE knowledge_state SET last_no = ?, generation = generation + 1", (start + len(chunk),))
        connection.execute("COMMIT")
        spent["write_s"] += time.perf_counter() - began
        if start // CHUNK % 10 == 0:
            print(f"{start + len(chunk):,} items", flush=True)
    connection.execute("PRAGMA wal_checkpoint(TRUNCATE)")
    connection.close()
    return spent


def queries(parts: list[str], count: int, seed: int) -> list[str]:
    """Three to nine words in a row of a sentence."""
    chooser = random.Random(seed)
    found: list[str] = []
    while len(found) < count:
        words = re.findall(r"[A-Za-z_]{2,}", chooser.choice(parts))
        length = chooser.randint(3, 9)
        if len(words) >= length:
            start = chooser.randrange(len(words) - length + 1)
            found.append(" ".join(words[start : start + length]))
    return list(dict.fromkeys(found))


def percentiles(times: list[float]) -> tuple[float, float, float]:
    return tuple(round(1000 * float(np.percentile(times, share)), 2) for share in (50, 95, 99))


async def timed(service: KnowledgeService, wanted: list[SearchQuery]) -> tuple[list[float], list[float]]:
    """Wall seconds and seconds of CPU, of all threads, for each query."""
    walls: list[float] = []
    used: list[float] = []
    for query in wanted:
        began, cpu = time.perf_counter(), time.process_time()
        answer = await service.find(query)
        walls.append(time.perf_counter() - began)
        used.append(time.process_time() - cpu)
        assert not answer["cached"]
    return walls, used


def exact(path: Path, asked: np.ndarray) -> list[set[int]]:
    """The ten nearest of each by comparison with every vector."""
    connection = sqlite3.connect(path)
    best: list[list[tuple[float, int]]] = [[] for _ in asked]
    cursor = connection.execute("SELECT item_id, vector FROM knowledge_vectors")
    while rows := cursor.fetchmany(100_000):
        matrix = np.frombuffer(b"".join(row[1] for row in rows), "<f2").reshape(len(rows), -1).astype(np.float32)
        scores = asked @ (matrix / np.linalg.norm(matrix, axis=1, keepdims=True)).T
        for number, row in enumerate(scores):
            top = np.argpartition(-row, 10)[:10]
            best[number] = sorted([*best[number], *((float(row[k]), rows[k][0]) for k in top)], reverse=True)[:10]
    connection.close()
    return [{item for _, item in found} for found in best]


async def recall(service: KnowledgeService, path: Path, asked: list[str]) -> float:
    vectors = np.stack([(await service.meaning.embedder.embed([query]))[0] for query in asked])
    truth = await asyncio.to_thread(exact, path, vectors)
    shares: list[float] = []
    for query, right in zip(asked, truth, strict=True):
        got = [item for item, _ in await service.meaning.find(query, 100)][:10]
        shares.append(len(right & set(got)) / 10)
    return float(np.mean(shares))


async def zipf(service: KnowledgeService, asked: list[str], count: int = 5_000) -> tuple[float, list[float]]:
    chooser = np.random.default_rng(3)
    weights = 1 / np.arange(1, len(asked) + 1)
    chosen = chooser.choice(len(asked), count, p=weights / weights.sum())
    service.hits = service.misses = 0
    found: list[float] = []
    for number, place in enumerate(chosen):
        if number % 1_000 == 999:
            await service.create(Draft(f"Written {number}", "while others search"), "bench")
        began = time.perf_counter()
        await service.find(SearchQuery(asked[place]))
        found.append(time.perf_counter() - began)
    return service.hits / (service.hits + service.misses), found


def rss_mb() -> int:
    pages = int(Path("/proc/self/statm").read_text().split()[1])
    return pages * os.sysconf("SC_PAGE_SIZE") >> 20


async def main() -> None:
    parser = argparse.ArgumentParser()
    parser.add_argument("--items", type=int, default=1_000_000)
    parser.add_argument("--queries", type=int, default=400)
    parser.add_argument("--folder", type=Path, default=Path("/tmp/agl-knowledge-bench"))
    given = parser.parse_args()
    path = given.folder / "platform.db"
    began = time.perf_counter()
    kept = given.folder / "sentences.json"
    given.folder.mkdir(parents=True, exist_ok=True)
    if not kept.exists():
        kept.write_text(json.dumps(sentences()))
    parts = json.loads(kept.read_text())
    held, parts = parts[::20], [part for place, part in enumerate(parts) if place % 20]
    print(f"{len(parts):,} sentences in {time.perf_counter() - began:.0f} s; load {os.getloadavg()[0]:.1f}", flush=True)
    if not path.exists():
        migrate(f"sqlite:///{path}")
        print(json.dumps(await fill(path, parts, given.items)), flush=True)
    database = Database(f"sqlite:///{path}")
    service = KnowledgeService(database, MemoryCache(), WordEmbedder(), given.folder)
    began = time.perf_counter()
    await service.meaning.find("warm", 10)
    await service.meaning._local.fold()  # as close() would
    build = time.perf_counter() - began
    print(f"vector index made, or opened, in {build:.1f} s; {rss_mb()} MB resident", flush=True)
    asked = queries(held, given.queries * 6, 1)
    await timed(service, [SearchQuery(query) for query in asked[-50:]])
    results: dict[str, tuple[float, float, float]] = {}
    for place, mode in enumerate(("text", "semantic", "hybrid")):
        part = asked[place * given.queries : (place + 1) * given.queries]
        walls, used = await timed(service, [SearchQuery(query, mode=mode) for query in part])
        results[mode] = percentiles(walls)
        print(f"{mode:12} p50, p95, p99: {results[mode]} ms; CPU {percentiles(used)} ms", flush=True)
    filtered = [
        SearchQuery(query, category=CATEGORIES[n % 20], tags=("t1",) if n % 2 else ())
        for n, query in enumerate(asked[3 * given.queries : 4 * given.queries])
    ]
    walls, used = await timed(service, filtered)
    results["hybrid, filtered"] = percentiles(walls)
    print(f"hybrid, filtered: {results['hybrid, filtered']} ms; CPU {percentiles(used)} ms", flush=True)
    share = await recall(service, path, asked[-300:])
    rate, times = await zipf(service, asked)
    report = {
        "items": given.items,
        "search_p50_ms_1m": results["hybrid"][0],
        "search_p95_ms_1m": results["hybrid"][1],
        "text_p95_ms": results["text"][1],
        "semantic_p95_ms": results["semantic"][1],
        "filtered_p95_ms": results["hybrid, filtered"][1],
        "recall_at_10": round(share, 4),
        "hit_rate": round(rate, 3),
        "zipf_p95_ms": percentiles(times)[1],
        "index_build_s": round(build, 1),
        "rss_mb": rss_mb(),
        "peak_rss_mb": resource.getrusage(resource.RUSAGE_SELF).ru_maxrss >> 10,
        "database_mb": path.stat().st_size >> 20,
        "index_mb": sum(file.stat().st_size for file in given.folder.glob("*.usearch")) >> 20,
        "load": round(os.getloadavg()[0], 1),
    }
    await service.close()
    await database.close()
    print(json.dumps(report))


if __name__ == "__main__":
    asyncio.run(main())
