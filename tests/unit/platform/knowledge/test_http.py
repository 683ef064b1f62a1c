"""Knowledge through the door, on both set-ups."""

import time

import pytest
from sqlalchemy import text

from agentlightning.platform.knowledge.repository import Draft
from agentlightning.platform.knowledge.service import TaskResult
from tests.unit.platform.site import Site, error_code

PATH = "/api/v2/knowledge"


@pytest.fixture(scope="module")
def headers(site: Site):
    return site.headers("developer")


@pytest.fixture
def call(site: Site, headers):
    def call(method, path="", status=200, **more):
        answer = site.client.request(method, PATH + path, headers={**headers, **more.pop("extra", {})}, **more)
        assert answer.status_code == status, answer.text
        return answer if status >= 400 else answer.json()["data"]

    return call


def embed(site: Site):
    """Until every item has its vector."""
    site.run(site.platform.knowledge.indexer.drain())


@pytest.fixture(scope="module")
def animals(site: Site):
    """Items whose meanings differ; answers their numbers by title."""
    texts = {
        "Feeding cats": "A kitten eats small meals of wet food, four times a day. Fresh water has to be there.",
        "Walking dogs": "Puppies need a walk in the park every few hours. A leash keeps them from running away.",
        "Brake pads": "Cars stop because pads press on the discs of the wheels. Change worn ones in the garage.",
        "Interest rates": "A central bank raises rates when prices rise. Loans and mortgages cost more money then.",
        "Sourdough": "Flour and water ferment for a week. Bake the bread in a hot oven until its crust is brown.",
    }
    service = site.platform.knowledge
    made = {}
    for place, (title, content) in enumerate(texts.items()):
        draft = Draft(title, content, "animals" if place < 2 else "other", ("shelf", f"n{place}"))
        made[title] = site.run(service.create(draft, "test")).id
    embed(site)
    return made


def titles(found):
    return [entry["item"]["title"] for entry in found["items"]]


def test_an_item_lives_changes_and_is_remembered(call, site):
    body = {"title": "  Caches ", "content": "Set a size.", "category": "ops", "tags": ["a", "b", "a"]}
    made = call("POST", status=201, json={**body, "metadata": {"level": 1}})
    assert (made["title"], made["tags"], made["version"], made["metadata"]) == ("Caches", ["a", "b"], 1, {"level": 1})
    one = f"/{made['id']}"
    changed = call("PUT", one, json={"content": "Set a size, and a time.", "category": None})
    assert (changed["version"], changed["category"], changed["tags"]) == (2, None, ["a", "b"])
    assert call("GET", one) == changed
    history = call("GET", one + "/versions")
    assert [(entry["version"], entry["content"]) for entry in history["versions"]] == [
        (2, "Set a size, and a time."),
        (1, "Set a size."),
    ]
    assert call("GET", one + "/versions", params={"limit": 1})["next"] == 2
    call("DELETE", one)
    assert error_code(call("GET", one, status=404)) == "NOT_FOUND"
    call("GET", one + "/versions", status=404)
    call("DELETE", one, status=404)
    actions = site.client.get("/api/v2/audit", headers=site.headers("admin"), params={"limit": 9}).json()["data"]
    actions = [entry["action"] for entry in actions["entries"] if entry["action"].startswith("knowledge")]
    assert actions[:3] == [
        "knowledge.delete",
        "knowledge.update",
        "knowledge.create",
    ]


def test_of_two_who_change_the_same_version_one_is_told_what_is_there(call, site, headers):
    made = call("POST", status=201, json={"title": "Both", "content": "first"})
    one = f"/{made['id']}"
    assert call("PUT", one, json={"content": "second"}, extra={"If-Match": '"1"'})["version"] == 2
    for late in (
        {"json": {"content": "third"}, "extra": {"If-Match": '"1"'}},
        {"json": {"content": "x", "version": 1}},
    ):
        answer = call("PUT", one, status=409, **late)
        assert error_code(answer) == "CONFLICT"
        details = answer.json()["error"]["details"]
        assert (details["version"], details["current"]["content"]) == (2, "second")
    call("DELETE", one, status=409, extra={"If-Match": '"1"'})
    call("PUT", one, status=422, json={"content": "x", "version": 2}, extra={"If-Match": '"1"'})
    call("PUT", one, status=422, json={"content": "x"}, extra={"If-Match": "abc"})
    call("PUT", one, status=422, json={"version": 2})
    call("PUT", one, status=422, json={"title": None})
    answer = site.client.get(PATH + one, headers=headers)
    assert answer.headers["etag"] == '"2"'
    call("DELETE", one, extra={"If-Match": answer.headers["etag"]})


def test_lists_go_page_by_page_and_know_filters(call, animals):
    seen, after = [], 0
    while after is not None:
        page = call("GET", params={"limit": 2, "after": after, "tags": "shelf"})
        seen += [item["title"] for item in page["items"]]
        after = page["next"]
    assert seen == list(animals)
    params = {"category": "other", "tags": ["shelf", "n3"]}
    assert [item["title"] for item in call("GET", params=params)["items"]] == ["Interest rates"]
    assert call("GET", params={"tags": ["shelf", "nothing"]}) == {"items": [], "next": None}


def test_words_find_other_forms_and_say_where(call, animals):
    found = call("GET", "/search", params={"q": "mortgage costing", "mode": "text"})
    assert titles(found) == ["Interest rates"]
    (highlight,) = found["items"][0]["highlights"]
    marked = {highlight["text"][start:end] for start, end in highlight["marks"]}
    assert marked == {"mortgages", "cost"}
    assert found["items"][0]["text_rank"] == 1
    assert found["items"][0]["semantic_rank"] is None


def test_meaning_finds_without_common_words(call, animals):
    found = call("GET", "/search", params={"q": "nutrition for a feline pet", "mode": "semantic"})
    assert titles(found)[0] == "Feeding cats"
    assert found["items"][0]["similarity"] > found["items"][-1]["similarity"]
    assert titles(call("GET", "/search", params={"q": "vehicle repair"}))[0] == "Brake pads"
    assert titles(call("GET", "/search", params={"query": "vehicle repair"}))[0] == "Brake pads"


@pytest.mark.parametrize("mode", ["hybrid", "text", "semantic"])
def test_filters_hold_before_ranking(call, animals, mode):
    # The best match by far is another one, and only one place is asked for.
    params = {"q": "bread oven water", "mode": mode, "limit": 1, "category": "animals"}
    assert titles(call("GET", "/search", params=params)) == ["Feeding cats"]
    assert titles(call("GET", "/search", params={**params, "tags": ["n1"]})) in ([], ["Walking dogs"])
    assert call("GET", "/search", params={**params, "tags": ["nothing"]})["items"] == []


def test_pages_of_a_search_fit_together(call, animals):
    whole = titles(call("GET", "/search", params={"q": "water money wheels", "limit": 5}))
    pages, offset = [], 0
    while offset is not None:
        found = call("GET", "/search", params={"q": "water money wheels", "limit": 2, "offset": offset})
        pages += titles(found)
        offset = found["next"]
    assert pages[:5] == whole
    assert len(set(pages)) == len(pages)


def test_a_write_makes_cached_results_old(call, site):
    params = {"q": "zebrafish aquarium", "mode": "text"}
    assert titles(call("GET", "/search", params=params)) == []
    assert call("GET", "/search", params=params)["cached"] is True
    made = call("POST", status=201, json={"title": "Zebrafish", "content": "They like company."})
    found = call("GET", "/search", params=params)
    assert (titles(found), found["cached"]) == (["Zebrafish"], False)
    call("PUT", f"/{made['id']}", json={"title": "Goldfish", "content": "In a pond."})
    assert titles(call("GET", "/search", params=params)) == []
    embed(site)
    call("DELETE", f"/{made['id']}")
    assert titles(call("GET", "/search", params={"q": "goldfish pond", "mode": "hybrid"})) != ["Goldfish"]
    keys = site.platform.cache
    if keys.kind == "redis":
        found = site.run(keys._link.client.keys("knowledge:search:*"))
        assert found
        assert 0 < site.run(keys._link.client.ttl(found[0])) <= 1800


INJECTIONS = [
    '"', "'", '" OR title:*', "title:secret", "NEAR(a b, 3)", "a AND", "OR OR OR", "NOT", "*", "a*", "^a", "{title}: x",
    "-title:x", "(((", "))) OR 1=1", "'; DROP TABLE knowledge_items; --", "a & | ! <-> b", ":*", "\\", "%", "\u200b",
    "facets : 1", "_", "_ & _", "\"\"\"\"", "x" * 1000, "a " * 400, "🎉", "日本語 テスト", "\x00", "a\x00b", "<b>&amp;",
    "' UNION SELECT password_hash FROM users --", "$1", "{{7*7}}", "%s%s%n", "1e999", "true",
]  # fmt: skip


@pytest.mark.parametrize("mode", ["text", "hybrid"])
def test_a12_no_query_is_ever_more_than_words(call, animals, mode):
    for query in INJECTIONS:
        found = call("GET", "/search", params={"q": query, "mode": mode})
        assert isinstance(found["items"], list)
    for params in (
        {"category": "' OR '1'='1"},
        {"tags": '") OR ("'},
        {"tags": "*"},
        {"category": "animals) OR (other"},
    ):
        assert call("GET", "/search", params={"q": "water", "mode": mode, **params})["items"] == []
        assert call("GET", params=params)["items"] == []
    assert titles(call("GET", "/search", params={"q": "title kitten content", "mode": "text"})) == ["Feeding cats"]


@pytest.mark.parametrize(
    "body",
    [
        {"title": "", "content": "x"},
        {"title": "x", "content": "  "},
        {"title": "a\nb", "content": "x"},
        {"title": "x", "content": "a\0b"},
        {"title": "x", "content": "x" * 100_001},
        {"title": "x", "content": "x", "tags": ["a\0"]},
        {"title": "x", "content": "x", "tags": ["t"] * 33},
        {"title": "x", "content": "x", "metadata": {"a": "\0"}},
        {"title": "x", "content": "x", "metadata": {"a": "\ud800"}},
        {"title": "x", "content": "x", "metadata": {"a": "x" * 20_000}},
        {"title": "x", "content": "x", "created_by": "admin"},
        {"title": "x", "content": "x", "id": 1, "version": 7},
    ],
)
def test_a13_a38_what_cannot_be_kept_is_refused(call, body):
    import json

    raw = json.dumps(body).encode()
    answer = call("POST", status=422, content=raw, extra={"Content-Type": "application/json"})
    assert error_code(answer) == "VALIDATION_FAILED"


def test_users_read_and_do_not_write(site, animals):
    headers = site.headers("user")
    assert site.client.get(f"{PATH}/search", headers=headers, params={"q": "kitten"}).json()["data"]["items"]
    one = f"{PATH}/{animals['Sourdough']}"
    assert site.client.get(one, headers=headers).status_code == 200
    for method, path in (("POST", PATH), ("PUT", one), ("DELETE", one), ("POST", f"{PATH}/import")):
        assert site.client.request(method, path, headers=headers, json={}).status_code == 403


def test_documents_become_items_once(call, site):
    page = "<html><head><title>Moon</title><script>var stolen = 1</script></head><body><h1>Moon</h1><p>" + (
        "The moon goes around the earth in a month. " * 5
    )
    body = {
        "documents": [
            {"name": "moon.html", "content": page + "</p></body></html>"},
            {
                "name": "tides.md",
                "content": "# Tides\n\n## Why\n\nThe moon pulls at the sea.\n\n## When\n\nTwice a day.",
            },
            {"name": "odd.xyz", "content": "?"},
            {"name": "zip.txt", "content": "PK\x03\x04 and so on"},
        ],
        "category": "sky",
    }
    report = call("POST", "/import", status=201, json=body)["report"]
    assert (report["sources"], report["items"], len(report["problems"])) == (4, 3, 2)
    again = call("POST", "/import", status=201, json=body)["report"]
    assert (again["items"], again["unchanged"], len(again["problems"])) == (0, 2, 2), "what is wrong is told again"
    found = call("GET", "/search", params={"q": "moon stolen", "category": "sky", "mode": "text"})
    assert all("stolen" not in entry["item"]["content"] for entry in found["items"])
    assert titles(call("GET", "/search", params={"q": "sea", "category": "sky", "mode": "text"})) == ["Tides / Why"]
    body["documents"] = [{"name": "tides.md", "content": "PK\x03\x04"}]
    report = call("POST", "/import", status=201, json=body)["report"]
    assert (report["items"], report["replaced"], len(report["problems"])) == (0, 0, 1)
    assert titles(call("GET", "/search", params={"q": "sea", "category": "sky", "mode": "text"})) == ["Tides / Why"]
    body["documents"] = [{"name": "tides.md", "content": "# Tides\n\nAll is different now, with other words."}]
    report = call("POST", "/import", status=201, json=body)["report"]
    assert (report["items"], report["replaced"]) == (1, 2)
    assert titles(call("GET", "/search", params={"q": "sea", "category": "sky", "mode": "text"})) == []


def test_a30_a31_names_and_files_that_are_not_what_they_seem(call):
    for name in ("../../etc/passwd.md", "/etc/passwd.txt", "a\\b.md", "a\0.md", ""):
        call("POST", "/import/file", status=422, params={"name": name}, content=b"text")
    for name, raw, why in (
        ("bomb.pdf", b"PK\x03\x04" + b"\0" * 1000, "Archives are not opened"),
        ("bomb.txt", b"\x1f\x8b" + b"\0" * 1000, "Archives are not opened"),
        ("broken.pdf", b"%PDF-1.4 nonsense", "broken or encrypted"),
        ("binary.txt", b"a\0b" * 100, "not text"),
        ("empty.md", b"", "no text in it"),
        ("headings.md", b"# One\n\n## Two\n", "besides headings"),
        ("odd.xyz", b"?", "kind .xyz"),
    ):
        for _ in range(2):  # it is not taken for imported
            refused = call("POST", "/import/file", status=422, params={"name": name}, content=raw)
            assert (name, error_code(refused)) == (name, "DOCUMENT_UNREADABLE")
            assert why in refused.json()["error"]["message"]


def test_a_file_is_imported_once_and_a_broken_one_takes_nothing_away(call):
    kept = {"name": "ferns.md", "category": "plants"}
    text = b"# Ferns\n\nFerns have spores and no seeds, and they like it damp."
    report = call("POST", "/import/file", status=201, params=kept, content=text)["report"]
    assert (report["sources"], report["items"]) == (1, 1)
    report = call("POST", "/import/file", status=201, params=kept, content=text)["report"]
    assert (report["unchanged"], report["items"]) == (1, 0)
    call("POST", "/import/file", status=422, params=kept, content=b"\0\0")
    assert titles(call("GET", "/search", params={"q": "spores", "category": "plants", "mode": "text"})) == ["Ferns"]
    report = call("POST", "/import/file", status=201, params=kept, content=b"# Ferns\n\nSomething else.")["report"]
    assert (report["items"], report["replaced"]) == (1, 1)
    copied = {**kept, "name": "copy.md"}
    report = call("POST", "/import/file", status=201, params=copied, content=b"# Ferns\n\nSomething else.")["report"]
    assert (report["items"], report["duplicates"]) == (0, 1), "it was read, so it is told and not refused"


def test_a_packages_documentation_comes_in_the_background(call, site):
    number = call("POST", "/import", status=202, json={"packages": ["typer"]})["id"]
    deadline = time.monotonic() + 120
    while (found := call("GET", f"/imports/{number}"))["status"] == "running" and time.monotonic() < deadline:
        time.sleep(0.1)
    assert found["status"] == "done"
    assert found["report"]["items"] > 10
    items = call("GET", params={"tags": "typer", "limit": 1})["items"]
    assert items[0]["category"] == "documentation"
    assert error_code(call("POST", "/import", status=404, json={"packages": ["no-such-thing"]})) == "NOT_FOUND"
    call("POST", "/import", status=422, json={})
    call("GET", "/imports/999999", status=404)


def test_good_results_become_items_once(site, call):
    grow = site.platform.knowledge.grow_from
    answer = "Use a keyset instead of an offset: remember the last number and ask for what comes after it."
    good = TaskResult(7, "How do I page through a large table?", answer, 0.9, "sql_agent", "ro-1", "ada")
    grown = site.run(grow(good))
    assert grown.outcome == "added"
    item = call("GET", f"/{grown.item_id}")
    assert item["metadata"] == {
        "task_id": 7, "rollout_id": "ro-1", "agent": "sql_agent", "score": 0.9, "rated_by": "ada",
    }  # fmt: skip
    assert (item["category"], item["tags"]) == ("experience", ["task result", "sql_agent"])
    assert site.run(grow(good)).outcome == "duplicate"
    alike = TaskResult(8, good.task, answer + " Always.", 1.0)
    assert (site.run(grow(alike)).outcome, site.run(grow(alike)).item_id) == ("duplicate", grown.item_id)
    assert site.run(grow(TaskResult(9, "x", answer, None))).outcome == "not_rated"
    assert site.run(grow(TaskResult(9, "x", answer, 0.5))).outcome == "below_threshold"
    assert site.run(grow(TaskResult(9, "x", "ok", 1.0))).outcome == "too_short"
    assert (
        site.run(grow(TaskResult(10, "a\0b", "another answer that has\0 enough words in it", 1.0))).outcome == "added"
    )


def test_agents_get_what_their_tool_asks_for(site, animals):
    found = site.run(site.platform.knowledge.search("walk a puppy in the park", 2))
    assert set(found[0]) == {"id", "title", "content", "score"}
    assert found[0]["title"] == "Walking dogs"
    assert len(found) == 2


def test_health_says_which_indexes_there_are(site, animals):
    embed(site)
    found = site.client.get("/api/v2/health").json()["data"]["components"]["knowledge"]
    expected = "fts5, hnsw file" if site.platform.database.is_sqlite else "tsvector, pgvector hnsw"
    assert (found["state"], found["kind"]) == ("up", f"{expected}, words-128.1")


def plan_of(site: Site, statement, values):
    prefix = "EXPLAIN QUERY PLAN " if site.platform.database.is_sqlite else "EXPLAIN "

    async def ask():
        async with site.platform.database.read() as session:
            if not site.platform.database.is_sqlite:  # few rows: a scan would be right
                await session.execute(text("SET LOCAL enable_seqscan = off"))
            rows = await session.execute(text(prefix + statement), values)
            return "\n".join(str(row[-1]) for row in rows)

    return site.run(ask())


def test_no_query_reads_the_whole_table(site, animals):
    """Every statement of a list and of a search, as it was sent, goes through an index."""
    from sqlalchemy import event

    seen = []

    def note(connection, cursor, statement, parameters, context, many):
        if statement.lstrip().upper().startswith(("SELECT", "WITH")) and "knowledge" in statement and not many:
            seen.append((statement, parameters))

    engine = site.platform.database.engine.sync_engine
    event.listen(engine, "before_cursor_execute", note)
    service = site.platform.knowledge
    try:
        from agentlightning.platform.knowledge.service import SearchQuery

        site.run(service.page(3, 10, "animals", ["shelf"]))
        site.run(service.page(3, 10, None, ["shelf"]))
        site.run(service.page(3, 10))
        for mode in ("text", "semantic"):
            site.run(service.find(SearchQuery(f"plan {time.time()} water", mode=mode)))
            site.run(service.find(SearchQuery(f"plan {time.time()} water", "animals", ("shelf",), mode)))
        site.run(service.indexer.step())
        site.run(service.status())
        site.run(service.grow_from(TaskResult(11, "plan", "water and bread and walks in the park", 1.0)))
    finally:
        event.remove(engine, "before_cursor_execute", note)
    assert len(seen) > 12

    async def explain():
        plans = []
        async with site.platform.database.engine.connect() as connection:
            if not site.platform.database.is_sqlite:
                await connection.exec_driver_sql("SET enable_seqscan = off")
            prefix = "EXPLAIN QUERY PLAN " if site.platform.database.is_sqlite else "EXPLAIN "
            for statement, parameters in seen:
                rows = await connection.exec_driver_sql(prefix + statement, parameters)
                plans.append((statement, [str(row[-1]) for row in rows]))
        return plans

    for statement, plan in site.run(explain()):
        for line in plan:
            scans = line.startswith("SCAN ") and not any(
                word in line for word in ("VIRTUAL TABLE", "USING INDEX", "USING COVERING INDEX", "CONSTANT", "sqlite_")
            )
            tables = ("SCAN (subquery", "SCAN anon", "SCAN found")
            assert not scans or line.startswith(tables), (statement, plan)
            assert "Seq Scan on knowledge_items" not in line, (statement, plan)
            assert "Seq Scan on knowledge_tags" not in line, (statement, plan)
            assert "Seq Scan on knowledge_vectors" not in line, (statement, plan)
