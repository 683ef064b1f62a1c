"""After random calls, at any moment, in another store and after pruning: what the events tell is the store."""

# pyright: reportPrivateUsage=false
# Claims are released by the store itself when a claimer is cancelled; here it is done at a chosen moment.

from __future__ import annotations

import tempfile
from pathlib import Path
from typing import Any

import pytest
from hypothesis import settings
from hypothesis import strategies as st
from hypothesis.stateful import invariant, precondition, rule, run_state_machine_as_test

from agentlightning.schemas import NamedResources, PromptTemplate
from agentlightning.store import SqlLightningStore, verbs
from agentlightning.store.ops import queue
from agentlightning.store.transfer import Selection, export_store, import_store
from tests.contract import test_store_machine as machine
from tests.contract.histories import assert_history_is_complete, contents
from tests.postgres import empty_schema

LARGE = "the same words " * 400


class ReplayMachine(machine.StoreMachine):
    """Also what the other machine does not do: metadata, resources, releases, judgements."""

    def __init__(self) -> None:
        super().__init__()
        self.moments: dict[int, dict[str, Any]] = {}

    def open_store(self) -> SqlLightningStore:
        self.folder = tempfile.TemporaryDirectory(prefix="agl-replay-")
        self.location = f"{self.folder.name}/store.db"
        return SqlLightningStore(self.location, watchdog_interval_s=3600)

    def teardown(self) -> None:
        try:
            assert_history_is_complete(self.location)
            for no, then in self.moments.items():
                assert_history_is_complete(self.location, then, until_no=no)
            self.add_to_another_store()
            self.run(self.store.prune(keep_last=1, force=True))
            assert_history_is_complete(self.location)
        finally:
            super().teardown()
            self.folder.cleanup()

    def add_to_another_store(self) -> None:
        other = f"{self.folder.name}/other.db"
        import_store(self.others(), other)
        export_store(self.location, f"{self.folder.name}/archive", selection=Selection(statuses=("failed", "queuing")))
        import_store(f"{self.folder.name}/archive", other)
        assert_history_is_complete(other)

    def others(self) -> Path:
        """An archive of a store that has a queue and resources already."""

        async def fill(path: str) -> None:
            store = SqlLightningStore(path)
            await store.add_resources({"p": PromptTemplate(template="another")})
            await store.enqueue_rollout("another")
            await store.close()

        path = f"{self.folder.name}/others"
        self.run(fill(f"{path}.db"))
        export_store(f"{path}.db", path)
        return Path(path)

    @precondition(lambda self: self.expected and len(self.moments) < 3)
    @rule()
    def remember(self) -> None:
        told = self.run(self.store.query_events(limit=-1))
        self.moments[told[-1].no] = contents(self.location)

    def ids(self) -> list[str]:
        return list(self.expected)

    @precondition(lambda self: self.expected)
    @rule(which=st.integers(0, 3), change=st.sampled_from(["input", "mode", "metadata", "config", "large"]))
    def change_fields(self, which: int, change: str) -> None:
        rollout_id = self.ids()[which % len(self.ids())]
        values: dict[str, dict[str, Any]] = {
            "input": {"input": None},
            "mode": {"mode": "val"},
            "metadata": {"metadata": None},
            "config": {"config": self.expected[rollout_id].config.model_copy(update={"timeout_seconds": 5000.0})},
            "large": {"input": {"text": LARGE, "n": which}, "metadata": {"m": LARGE}},
        }
        rollout = self.run(self.store.update_rollout(rollout_id, **values[change]))
        self.expected[rollout_id].config = rollout.config

    @precondition(lambda self: any(e.attempts for e in self.expected.values()))
    @rule(which=st.integers(0, 3), large=st.booleans())
    def change_attempt(self, which: int, large: bool) -> None:
        ids = [i for i, e in self.expected.items() if e.attempts]
        metadata = {"m": LARGE if large else 1}
        self.run(self.store.update_attempt(ids[which % len(ids)], "latest", metadata=metadata, worker_id=f"w{which}"))

    @rule(count=st.integers(1, 2))
    def release(self, count: int) -> None:
        """Claim for somebody who has left."""

        async def claim_and_release() -> None:
            claimed = await self.store.execute(verbs.DequeueManyRollouts(limit=count))
            await self.store._database.write(lambda db: queue.release_claims(db, claimed))
            for rollout in claimed:
                again = len(self.expected[rollout.rollout_id].attempts) > 0
                self.expected[rollout.rollout_id].status = "requeuing" if again else "queuing"

        self.run(claim_and_release())

    @rule(which=st.integers(0, 2))
    def resources(self, which: int) -> None:
        known = self.run(self.store.query_resources())
        prompt: NamedResources = {"p": PromptTemplate(template=LARGE if which else "short")}
        if which < 2 or not known.items:
            self.run(self.store.add_resources(prompt))
        else:
            self.run(self.store.update_resources(known.items[0].resources_id, prompt))

    @precondition(lambda self: len(self.expected) > 1)
    @rule(which=st.integers(0, 3), score=st.none() | st.floats(0, 10))
    def judge(self, which: int, score: float | None) -> None:
        ids = self.ids()
        mine, other = ids[which % len(ids)], ids[(which + 1) % len(ids)]
        metadata = {"m": LARGE} if which else None
        self.run(self.store.add_feedback(mine, score=score, comment="ä", metadata=metadata))
        self.run(self.store.add_preference(mine, other, metadata=metadata))

    @precondition(lambda self: len(self.expected) > 1)
    @rule(lock=st.integers(0, 1), unlock=st.booleans())
    def compare(self, lock: int, unlock: bool) -> None:
        session = self.run(self.store.create_lineage_session(lineages=2, metadata={"m": 1}))
        for lineage, rollout_id in zip(session.lineages, self.ids(), strict=False):
            self.run(self.store.add_to_lineage(lineage.lineage_id, rollout_id))
        self.run(self.store.lock_lineage(session.lineages[lock].lineage_id, author="me"))
        if unlock:
            self.run(self.store.unlock_lineage(session.lineages[lock].lineage_id))

    @invariant()
    def statuses_are_as_expected(self) -> None:
        pass  # the other machine's business


SETTINGS = settings(machine.TestStoreMachine.settings, max_examples=40, stateful_step_count=40)


@pytest.mark.slow
def test_after_random_calls() -> None:
    run_state_machine_as_test(ReplayMachine, settings=SETTINGS)


@pytest.mark.slow
def test_after_random_calls_on_postgres(postgres_server: str, postgres_schema: str) -> None:
    class PostgresMachine(ReplayMachine):
        def open_store(self) -> SqlLightningStore:
            empty_schema(postgres_server)
            self.folder = tempfile.TemporaryDirectory(prefix="agl-replay-")
            self.location = postgres_schema
            return SqlLightningStore(self.location, watchdog_interval_s=3600)

    run_state_machine_as_test(PostgresMachine, settings=settings(SETTINGS, max_examples=12))
