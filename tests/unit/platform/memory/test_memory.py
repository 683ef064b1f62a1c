"""Memory on both set-ups: sessions by LangChain's interface, memories by meaning, and each user's own."""

import asyncio

import pytest
from langchain_core.messages import AIMessage, HumanMessage, SystemMessage, ToolMessage

from agentlightning.kit.errors import BadInputError, ConflictError, NotFoundError, UpstreamError
from agentlightning.platform.memory import service as memory_service
from agentlightning.platform.memory.service import LONG_CHARS, LONG_MESSAGES, MemoryService
from tests.unit.platform.site import Site, bearer, error_code

BASE = "/api/v2/memory"


@pytest.fixture(scope="module")
def people(site: Site):
    """Two users: number and headers."""
    made = []
    for _ in range(2):
        login = site.login(site.add_user())
        made.append((int(login["data"]["user"]["user_id"].removeprefix("user_")), bearer(login["access_token"])))
    return made


@pytest.fixture
def memory(site: Site):
    """The service without a model, in the platform's loop."""
    return MemoryService(site.platform.database, site.platform.embedder)


def test_a_session_is_langchains_history(site, memory, people):
    user = people[0][0]

    async def talk():
        history = memory.conversation("talk", user)
        assert await history.aget_messages() == []
        await history.aadd_messages([HumanMessage("What is 2+2?"), AIMessage("4", additional_kwargs={"a": 1})])
        call = {"name": "sql", "args": {"q": "x\0y"}, "id": "c1", "type": "tool_call"}
        await history.aadd_messages([AIMessage("", tool_calls=[call]), ToolMessage("rows", tool_call_id="c1")])
        again = await memory.conversation("talk", user).aget_messages()
        assert [message.content for message in again] == ["What is 2+2?", "4", "", "rows"]
        assert again[2].tool_calls[0]["args"] == {"q": "xy"}
        assert await memory.load(user, "talk") == [
            {"role": "user", "content": "What is 2+2?"},
            {"role": "assistant", "content": "4"},
        ]
        for wrong in (lambda: history.messages, lambda: history.add_messages([]), history.clear):
            with pytest.raises(RuntimeError, match="event loop"):
                wrong()
        await history.aclear()
        await history.aclear()
        assert await history.aget_messages() == []

    site.run(talk())


def test_two_who_speak_at_once_lose_nothing(site, memory, people):
    user = people[0][0]

    async def talk():
        said = [memory.append(user, "crowd", [{"role": "user", "content": f"m{n}"}]) for n in range(12)]
        await asyncio.gather(*said)
        return await memory.load(user, "crowd")

    assert {entry["content"] for entry in site.run(talk())} == {f"m{n}" for n in range(12)}


def test_a_long_session_is_summarised_by_the_model_and_nothing_is_lost(site, people):
    user, asked = people[0][0], []

    async def model(prompt: str) -> str:
        asked.append(prompt)
        return f"summary {len(asked)}"

    memory = MemoryService(site.platform.database, site.platform.embedder, model)
    line = "x" * (LONG_CHARS // 8)

    async def talk():
        for number in range(20):
            await memory.append(user, "long", [{"role": "user", "content": f"{number} {line}"}])
        return await memory.conversation("long", user).aget_messages(), await memory.session(user, "long", 0, 100)

    seen, whole = site.run(talk())
    assert isinstance(seen[0], SystemMessage)
    assert seen[0].content.endswith(f"summary {len(asked)}")
    assert seen[-1].content.startswith("19 ")
    assert sum(len(message.content) for message in seen) <= LONG_CHARS + 200
    assert len(asked) > 1
    assert "before: summary 1" in asked[1]
    found, entries = whole
    assert [entry["content"].split()[0] for entry in entries] == [str(number) for number in range(20)]
    assert (found.messages, found.truncated, found.summarised) == (20, False, 20 - (len(seen) - 1))


@pytest.mark.parametrize("fails", [False, True])
def test_without_a_model_the_session_says_what_is_left_out(site, people, fails):
    async def broken(prompt: str) -> str:
        raise UpstreamError("away")

    memory = MemoryService(site.platform.database, site.platform.embedder, broken if fails else None)
    user, name = people[0][0], f"many {fails}"

    async def talk():
        said = [{"role": "user", "content": f"m{n}"} for n in range(LONG_MESSAGES + 1)]
        await memory.append(user, name, said)
        return await memory.load(user, name)

    seen = site.run(talk())
    assert "left out" in seen[0]["content"]
    assert len(seen) == 1 + LONG_MESSAGES // 2
    assert seen[-1]["content"] == f"m{LONG_MESSAGES}"


def test_memories_are_recalled_by_meaning_with_the_reason(site, memory, people):
    user = people[0][0]
    texts = ["Allergic to peanuts and other nuts.", "The cat is called Miso.", "Works night shifts on weekends."]

    async def use():
        made = [await memory.remember(user, text, kind="fact", metadata={"n": n}) for n, text in enumerate(texts)]
        assert (await memory.remember(user, texts[0])).id == made[0].id
        found = await memory.recall(user, "which food is dangerous, are peanuts fine", 2)
        assert found[0]["text"] == texts[0]
        assert found[0]["why"]["words"] == ["peanuts"]
        assert found[0]["metadata"] == {"n": 0}
        assert found[0]["score"] >= found[-1]["score"]
        assert (await memory.recall(user, "name of my feline pet", 1))[0]["text"] == texts[1]
        assert await memory.recall(user, "?!", 5) == []
        assert await memory.recall(user, "peanuts", 5, kind="preference") == []
        assert (await memory.memory(user, made[0].id)).recalls >= 1
        changed = await memory.change(user, made[2].id, "Works day shifts.", None)
        assert changed.text == "Works day shifts."
        with pytest.raises(ConflictError):
            await memory.change(user, made[2].id, texts[1], None)
        await memory.forget(user, made[0].id)
        with pytest.raises(NotFoundError):
            await memory.forget(user, made[0].id)
        for bad in ("", "  \0 ", "x" * 4001):
            with pytest.raises(BadInputError):
                await memory.remember(user, bad)

    site.run(use())


def test_memories_of_another_embedder_are_made_anew(site, memory, people):
    user = people[1][0]

    class Other:
        name, dimension = "other-2", 2

        async def embed(self, texts, *, bulk=False):
            import numpy as np

            return np.tile(np.array([[0.6, 0.8]], np.float32), (len(texts), 1))

        async def close(self):
            pass

    async def use():
        await memory.remember(user, "kept by words")
        found = await MemoryService(site.platform.database, Other()).recall(user, "anything")
        assert found[0]["why"]["similarity"] > 0.99
        return await memory.recall(user, "kept by words")

    assert site.run(use())[0]["why"]["similarity"] > 0.99


def test_there_is_an_end_to_memories(site, memory, people, monkeypatch):
    monkeypatch.setattr(memory_service, "MAX_MEMORIES", 0)

    async def use():
        with pytest.raises(ConflictError, match="Forget"):
            await memory.remember(people[1][0], "one too many")

    site.run(use())


def test_a17_nobody_reaches_anybody_elses(site, memory, people):
    (ada, headers), (_, others) = people
    admin = site.headers("admin")

    async def fill():
        await memory.append(ada, "private", [{"role": "user", "content": "a secret of zelda"}])
        return (await memory.remember(ada, "zelda has a secret garden")).id

    number = site.run(fill())
    memories, session = f"{BASE}/memories/{number}", f"{BASE}/sessions/private"
    for stranger in (others, admin):
        for method, path in (("GET", memories), ("PUT", memories), ("DELETE", memories), ("GET", session),
                             ("DELETE", session)):  # fmt: skip
            answer = site.client.request(
                method, path, headers=stranger, json={"text": "x"} if method == "PUT" else None
            )
            assert (path, error_code(answer)) == (path, "NOT_FOUND")
        found = site.client.post(f"{BASE}/memories/search", headers=stranger, json={"text": "secret garden"}).json()
        assert "zelda" not in str(found)
        for path in (f"{BASE}/memories", f"{BASE}/sessions"):
            assert "zelda" not in site.client.get(path, headers=stranger).text
    assert site.client.get(session, headers=headers).json()["data"]["entries"][0]["content"] == "a secret of zelda"
    # The same name is another session.
    mine = int(site.client.get("/auth/profile", headers=others).json()["data"]["user_id"].removeprefix("user_"))
    site.run(memory.append(mine, "private", [{"role": "user", "content": "mine"}]))
    assert site.client.get(session, headers=headers).json()["data"]["messages"] == 1
    key = site.client.post("/api/v2/api-keys", headers=headers, json={"name": "k", "permissions": ["knowledge:read"]})
    limited = {"X-API-Key": key.json()["data"]["key"]}
    assert site.client.get(memories, headers=limited).status_code == 403


def test_memories_over_http(site, people):
    headers = people[1][1]
    made = site.client.post(f"{BASE}/memories", headers=headers, json={"text": "Likes tea.", "kind": "preference"})
    assert made.status_code == 201
    number = made.json()["data"]["id"]
    page = site.client.get(f"{BASE}/memories", headers=headers, params={"limit": 1, "kind": "preference"}).json()[
        "data"
    ]
    assert page["memories"][0]["id"] == number
    assert site.client.put(f"{BASE}/memories/{number}", headers=headers, json={}).status_code == 422
    found = site.client.post(f"{BASE}/memories/search", headers=headers, json={"text": "a warm drink, tea"})
    assert found.json()["data"][0]["id"] == number
    for body in ({"text": ""}, {"text": "x", "user_id": 1}, {"text": "x", "kind": "A B"}, {"text": "x" * 5000}):
        assert site.client.post(f"{BASE}/memories", headers=headers, json=body).status_code == 422
    assert site.client.delete(f"{BASE}/memories/{number}", headers=headers).status_code == 200


def test_what_was_remembered_goes_with_its_user(site, memory):
    user = int(site.login(site.add_user())["data"]["user"]["user_id"].removeprefix("user_"))

    async def use():
        await memory.append(user, "s", [{"role": "user", "content": "x"}])
        made = await memory.remember(user, "gone soon")
        await site.platform.users.delete(user)
        with pytest.raises(NotFoundError):
            await memory.memory(user, made.id)
        assert await memory.sessions(user, None, 10) == []

    site.run(use())


@pytest.mark.parametrize("name", ["", "x" * 201, "a\nb", "a\0b"])
def test_names_of_sessions_are_plain(site, memory, people, name):
    async def use():
        with pytest.raises(BadInputError):
            await memory.append(people[0][0], name, [{"role": "user", "content": "x"}])

    site.run(use())
