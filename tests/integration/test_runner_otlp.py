"""A command that knows our package: what it emits reaches its rollout over OTLP."""

from __future__ import annotations

import asyncio
import sys

import pytest

import agentlightning as agl
from agentlightning.store import LightningStoreServer

PROGRAM = """
import json, sys
import agentlightning as agl

task = json.load(sys.stdin)
agl.emit_message("working on " + task["name"])
with agl.operation(name="search") as op:
    op.set_output(3)
agl.emit_reward({"score": task["score"], "cost": 1}, primary_key="score")
print("no reward here")
"""


@pytest.mark.parametrize("token", [None, "s3cret+/= x"])
async def test_command_emits_over_otlp(monkeypatch, token):
    store = agl.InMemoryLightningStore()
    server = LightningStoreServer(store, port=0, launch_mode="thread", token=token)
    await server.start()
    monkeypatch.setenv("AGL_STORE_URL", server.endpoint)
    if token is not None:
        monkeypatch.setenv("AGL_STORE_TOKEN", token)
    tasks = [{"name": "a", "score": 0.25}, {"name": "b", "score": 0.5}]
    ids = [(await store.enqueue_rollout(task)).rollout_id for task in tasks]
    runner = agl.LitAgentRunner(max_rollouts=2, policy=agl.FailurePolicy(no_reward="drop"))
    with runner.run_context(agent=agl.CommandAgent([sys.executable, "-c", PROGRAM]), store=store):
        await asyncio.wait_for(runner.iter(), 60)
    for rollout_id, task in zip(ids, tasks, strict=True):
        rollout = await store.get_rollout_by_id(rollout_id)
        assert rollout is not None
        assert rollout.status == "succeeded"
        spans = list(await store.query_spans(rollout_id, "latest"))
        assert agl.find_final_reward(spans) == task["score"]
        messages = {agl.get_message_value(s) for s in spans} - {None}
        assert messages == {f"working on {task['name']}", "no reward here\n"}
        assert "agentlightning.operation" in {s.name for s in spans}
    await server.stop()
    await store.close()
