"""Programs that `test_zero_loss.py` kills: an algorithm that queues rollouts, and a witness of what was acknowledged.

    python zero_loss_processes.py algorithm|witness URL LOG COUNT

Each writes a line to its log once the store has acknowledged something, and goes on from its log when started again.
"""

from __future__ import annotations

import asyncio
import os
import sys
from pathlib import Path

from agentlightning.kit.errors import AgentLightningError
from agentlightning.schemas import EnqueueRolloutRequest, PromptTemplate, RolloutConfig, Span
from agentlightning.store import LightningStoreClient

BATCH = 25
IN_FLIGHT = 200


class Log:
    """Acknowledgements, a line each; a line that a kill cut short counts as never written."""

    def __init__(self, path: Path) -> None:
        if path.exists():
            whole = path.read_bytes()
            path.write_bytes(whole[: whole.rfind(b"\n") + 1])
        self.lines = path.read_text().splitlines() if path.exists() else []
        self._file = os.open(path, os.O_WRONLY | os.O_APPEND | os.O_CREAT)

    def add(self, *lines: str) -> None:
        os.write(self._file, "".join(f"{line}\n" for line in lines).encode())


def request(number: int) -> EnqueueRolloutRequest:
    retries = RolloutConfig(max_attempts=50, unresponsive_seconds=8, retry_condition=["failed", "unresponsive"])
    return EnqueueRolloutRequest(input={"n": number}, rollout_id=f"zero-{number:05}", config=retries)


async def algorithm(store: LightningStoreClient, log: Log, count: int) -> None:
    """Queue `count` rollouts, never more than `IN_FLIGHT` open, and see each of them end."""
    ended = {line.split()[1] for line in log.lines if line.startswith("ended ")}
    queued: list[str] = []
    for start in range(0, count, BATCH):
        requests = [request(n) for n in range(start, min(count, start + BATCH))]
        ids = [r.rollout_id or "" for r in requests]
        if not ended.issuperset(ids):
            await patiently(lambda some=requests: store.enqueue_many_rollouts(some))
            log.add(*(f"queued {i}" for i in ids))
        queued += [i for i in ids if i not in ended]
        while len(queued) >= IN_FLIGHT or (queued and start + BATCH >= count):
            some, queued = queued[:BATCH], queued[BATCH:]
            done = await patiently(lambda ids=some: store.wait_for_rollouts(rollout_ids=ids, timeout=20))
            log.add(*(f"ended {r.rollout_id} {r.status}" for r in done))
            found = {r.rollout_id for r in done}
            queued += [i for i in some if i not in found]
    log.add("finished")


async def witness(store: LightningStoreClient, log: Log, count: int) -> None:
    """Write small things of every kind, one after the other, until killed."""
    number = len(log.lines)
    while True:
        number += 1
        name = f"witness-{os.getpid()}-{number}"
        try:
            started = await store.start_rollout({"n": number}, rollout_id=name)
            log.add(f"started {name}")
            ids = {"rollout_id": name, "attempt_id": started.attempt.attempt_id}
            spans = [Span.from_attributes(attributes={"step": n}, name="witness", **ids) for n in range(3)]
            await store.add_many_spans(spans)
            log.add(*(f"span {name} {span.span_id}" for span in spans))
            await store.update_attempt(**ids, status="succeeded")
            log.add(f"succeeded {name}")
            prompt = {"prompt": PromptTemplate(template=name, engine="f-string")}
            added = await store.add_resources(prompt)
            log.add(f"resources {added.resources_id} {name}")
        except AgentLightningError as error:  # not acknowledged: whether it is there, nobody can say
            print(f"not acknowledged: {error}", file=sys.stderr, flush=True)
            await asyncio.sleep(0.2)
        await asyncio.sleep(0.005)


async def patiently(call):  # type: ignore[no-untyped-def]
    """Again and again: a call may outlast the client's own patience."""
    while True:
        try:
            return await call()
        except AgentLightningError as error:
            print(f"again: {error}", file=sys.stderr, flush=True)
            await asyncio.sleep(0.5)


async def main(what: str, url: str, path: str, count: str) -> None:
    store = LightningStoreClient(url)
    await {"algorithm": algorithm, "witness": witness}[what](store, Log(Path(path)), int(count))
    await store.close()


if __name__ == "__main__":
    asyncio.run(main(*sys.argv[1:]))
