"""The worker's loop in this process, over a socket pair: frames in, frames out."""

from __future__ import annotations

import contextlib
import json
import socket
import subprocess
import sys
import threading
import time
from collections.abc import Iterator
from pathlib import Path

import msgspec
import pytest
import torch

from agentlightning.learner import protocol
from agentlightning.learner.model import load_model
from agentlightning.learner.protocol import StepConfig
from agentlightning.learner.worker import Connection, ParentGoneError, Worker
from agentlightning.schemas.call import TrainSample
from agentlightning.schemas.generation import GenerateRequest, SamplingParams

OPTIONS = {"max_batch": 16, "seed": 0, "threads": 1}


class Wire:
    """The client's end of the connection."""

    def __init__(self, stream: socket.socket) -> None:
        self.stream = stream
        self.stream.settimeout(20)
        self._frames = protocol.FrameReader()
        self._replies: list[protocol.Reply] = []

    def send(self, *commands: protocol.Command) -> None:
        self.stream.sendall(b"".join(protocol.frame(c) for c in commands))

    def receive(self) -> protocol.Reply:
        while not self._replies:
            data = self.stream.recv(1 << 16)
            if not data:
                raise EOFError
            self._replies += [protocol.reply_decoder.decode(b) for b in self._frames.feed(data)]
        return self._replies.pop(0)


@contextlib.contextmanager
def running(model_dir: Path) -> Iterator[tuple[Wire, Worker]]:
    """A worker in a thread; the block must end it (shutdown or closing)."""
    ours, theirs = socket.socketpair()
    theirs.setsockopt(socket.SOL_SOCKET, socket.SO_SNDBUF, 4096)
    worker = Worker(Connection(theirs), load_model(str(model_dir)), dict(OPTIONS))

    def loop() -> None:
        with contextlib.suppress(ParentGoneError):
            worker.run()

    thread = threading.Thread(target=loop)
    thread.start()
    with ours, theirs:
        yield Wire(ours), worker
        ours.close()
        thread.join(20)
        assert not thread.is_alive()


def ask(name: str, **params) -> protocol.Generate:
    settings = SamplingParams(**{"max_tokens": 8, **params})
    return protocol.Generate(GenerateRequest(request_id=name, prompt="hello world", params=settings))


def sample() -> TrainSample:
    return TrainSample(token_ids=[5, 6, 7], loss_mask=[0, 1, 1], logprobs=[0.0, -5.0, -5.0], advantage=1.0)


def test_commands_are_answered_in_order_and_shutdown_ends_the_loop(llama_dir, tmp_path):
    with running(llama_dir) as (wire, _):
        ready = wire.receive()
        assert isinstance(ready, protocol.Ready)
        wire.send(
            ask("a", n=2),
            protocol.Train("t", [sample()], StepConfig(threads=2)),
            protocol.SetVersion("v", "v1"),
            protocol.GetInfo("i"),
            protocol.SaveCheckpoint("s", str(tmp_path / "c"), {"k": 1}, 2),
            protocol.LoadCheckpoint("l", str(tmp_path / "c")),
            protocol.LoadCheckpoint("none", str(tmp_path / "nothing")),
            protocol.SaveModel("m", str(tmp_path / "model"), True),
            ask("b"),
        )
        replies = [wire.receive() for _ in range(9)]
        assert isinstance(replies[0], protocol.Generated)
        assert len(replies[0].result.choices) == 2
        done = {r.id: r.value for r in replies[1:-1]}
        assert list(done) == ["t", "v", "i", "s", "l", "none", "m"]
        assert done["t"]["optimizer_steps"] == 1
        assert msgspec.convert(done["i"], type(ready.info)).model_version == "v1"
        assert done["l"] == {"k": 1}
        assert done["none"] is None
        assert replies[-1].result.model_version == "v1"
        wire.send(protocol.Shutdown("z"))
        assert wire.receive() == protocol.Done("z")
    assert torch.get_num_threads() == 1


def test_cancelled_requests_are_not_answered(llama_dir):
    with running(llama_dir) as (wire, _):
        wire.receive()
        wire.send(ask("a", max_tokens=140), protocol.Train("t", [sample()], StepConfig()), ask("b"), ask("c"))
        wire.send(protocol.Cancel("a"), protocol.Cancel("b"))
        replies = [wire.receive(), wire.receive()]
        assert [type(r) for r in replies] == [protocol.Done, protocol.Generated]
        assert replies[1].result.request_id == "c"
        wire.send(protocol.Cancel("c"), protocol.GetInfo("i"))
        assert wire.receive().id == "i"


@pytest.mark.parametrize(
    ("text", "expected"), [("CUDA out of memory. Tried", "Lower max_batch"), ("strange", "traceback")]
)
def test_a_failing_step_fails_its_requests_and_the_worker_lives_on(llama_dir, monkeypatch, text, expected):
    with running(llama_dir) as (wire, worker):
        wire.receive()
        step = worker._engine.step

        def broken():
            monkeypatch.setattr(worker._engine, "step", step)
            raise RuntimeError(text)

        monkeypatch.setattr(worker._engine, "step", broken)
        wire.send(ask("a"), ask("b"))
        failed = [wire.receive(), wire.receive()]
        assert sorted(f.id for f in failed) == ["a", "b"]
        assert all(f.code == "UPSTREAM_FAILED" and expected in f.hint for f in failed)
        wire.send(ask("c"))
        assert wire.receive().result.request_id == "c"


def test_an_unexpected_failure_of_a_command_is_its_answer(llama_dir, monkeypatch):
    with running(llama_dir) as (wire, worker):
        wire.receive()
        monkeypatch.setattr(worker, "_policy", lambda: None)
        wire.send(protocol.Train("t", [sample()], StepConfig()))
        reply = wire.receive()
        assert isinstance(reply, protocol.Failed)
        assert "AttributeError" in reply.message


def test_a_closed_connection_stops_a_training(llama_dir):
    with running(llama_dir) as (wire, worker):
        wire.receive()
        wire.send(protocol.Train("t", [sample()] * 100, StepConfig(microbatch_tokens=1, epochs=1000)))
        wire.stream.close()
    assert worker._trainer.batches == 0


def test_a_slow_reader_does_not_stop_the_engine(llama_dir):
    with running(llama_dir) as (wire, worker):
        wire.receive()
        wire.send(*(ask(f"r{i}", n=16, max_tokens=30) for i in range(10)))
        wire.send(protocol.GetInfo("i"))
        deadline = time.monotonic() + 120
        while (worker._queue or worker._engine.busy or not worker._engine.streams_used) and time.monotonic() < deadline:
            time.sleep(0.01)
        assert len(worker._connection._unsent) > 10_000
        seen = [wire.receive() for _ in range(11)]
        assert sum(isinstance(r, protocol.Generated) for r in seen) == 10
        wire.send(*(ask(f"s{i}", n=16, max_tokens=30) for i in range(10)), protocol.Shutdown("z"))
        time.sleep(0.2)
        assert wire.receive().id == "z"


def test_frames_are_cut_wherever_the_stream_was(llama_dir):
    commands = [protocol.SetVersion(str(i), "x" * i) for i in range(50)]
    data = b"".join(protocol.frame(c) for c in commands)
    reader = protocol.FrameReader()
    seen = []
    for start in range(0, len(data), 7):
        seen += [protocol.command_decoder.decode(b) for b in reader.feed(data[start : start + 7])]
    assert seen == commands


def test_without_transformers_the_worker_names_the_extra(tmp_path, llama_dir):
    (tmp_path / "transformers.py").write_text("raise ImportError('no transformers here')")
    ours, theirs = socket.socketpair()
    command = [sys.executable, "-m", "agentlightning.learner.worker", str(theirs.fileno())]
    options = json.dumps({"model": str(llama_dir), "device": "auto", "dtype": "auto", "lora": None})
    with ours, theirs:
        done = subprocess.run(
            [*command, options],
            pass_fds=(theirs.fileno(),),
            env={"PYTHONPATH": str(tmp_path)},
            capture_output=True,
            timeout=60,
            check=False,
        )
        wire = Wire(ours)
        assert isinstance(wire.receive(), protocol.Progress)
        reply = wire.receive()
    assert done.returncode == 1
    assert isinstance(reply, protocol.Failed)
    assert reply.code == "EXTRA_MISSING"
    assert "agentlightning[learn]" in reply.hint
