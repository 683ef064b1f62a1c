"""The torch-free side of the engine: starts the learner worker, sends it commands, awaits its answers.

Knows nothing of models; everything it sends and receives is defined in `protocol`.
"""

from __future__ import annotations

import asyncio
import contextlib
import json
import os
import socket
import sys
import tempfile
from collections.abc import AsyncIterator, Callable, Sequence
from pathlib import Path
from typing import Any

import msgspec

from agentlightning.kit.errors import AgentLightningError, ModelError, UpstreamError
from agentlightning.kit.ids import new_id
from agentlightning.learner import protocol
from agentlightning.learner.protocol import FitConfig, StepConfig
from agentlightning.schemas.call import TrainSample
from agentlightning.schemas.example import Dialogue, EncodedDialogue, TokenExample, TokenPair
from agentlightning.schemas.generation import (
    EngineInfo,
    EngineStats,
    GenerateDelta,
    GenerateRequest,
    GenerateResult,
)

_READ_BYTES = 1 << 18
_CLOSE_TIMEOUT_S = 5.0
_LOG_TAIL_BYTES = 2000

Progress = Callable[[str, float], None]


class EngineClient:
    """A learner worker process and the connection to it. Create one with `start`; use it from one event loop.

    When the worker dies, every pending and every later call raises `UpstreamError` with the end of its log.
    """

    info: EngineInfo

    def __init__(
        self, process: asyncio.subprocess.Process, connection: socket.socket, log_path: Path, model: str
    ) -> None:
        """Use `start`."""
        self._process = process
        self._connection = connection
        self._log_path = log_path
        self._model = model
        self._loop = asyncio.get_running_loop()
        self._outgoing: list[bytes] = []
        self._outgoing_ready = asyncio.Event()
        self._pending: dict[str, asyncio.Future[Any]] = {}
        self._streams: dict[str, asyncio.Queue[GenerateDelta | AgentLightningError]] = {}
        self._dead: AgentLightningError | None = None
        self._died = asyncio.Event()
        self._on_progress: Progress = _unheard
        self._closing = False
        self._tasks = [asyncio.create_task(self._read()), asyncio.create_task(self._write())]

    @classmethod
    async def start(
        cls,
        model: str | Path,
        *,
        seed: int = 0,
        device: str = "auto",
        dtype: str = "auto",
        threads: int | None = None,
        max_batch: int = 256,
        lora: dict[str, Any] | None = None,
        log_path: Path | None = None,
        startup_timeout_s: float = 120,
        adapter: str | Path | None = None,
        name: str = "",
        max_context: int | None = None,
        memory_bytes: int | None = None,
        on_progress: Progress | None = None,
    ) -> EngineClient:
        """Start a worker process that serves and trains `model`, and wait until the model is loaded.

        Args:
            model: A directory in Hugging Face format, or a hub id.
            seed: Base of the random streams of requests without a seed of their own.
            device: `auto` (CUDA when there is one), `cpu`, `cuda`, `cuda:1`.
            dtype: `auto` (fp32 on CPU, bf16 on CUDA), `float32`, `bfloat16`, `float16`.
            threads: CPU threads while sampling; `None` uses half of the cores.
            max_batch: Most sequences decoded together.
            lora: Train adapters, not the weights: `{"r": 8, "alpha": 16, "target_modules": "all-linear"}`.
            log_path: Where the worker logs; `None` takes a temporary file that `close` removes.
            startup_timeout_s: How long loading may take.
            adapter: Directory or hub id of a LoRA adapter to merge into the weights.
            name: What answers call the model; by default `model`.
            max_context: Use less of the model's context.
            memory_bytes: Most memory for keys and values; `None` takes a share of what is free.
            on_progress: Is told what loading is busy with, and roughly how much of it is done (0 to 1).

        Raises:
            ModelError: The model cannot be loaded; the message says why and what to do.
            MissingExtraError: torch, transformers or (for `lora`) peft is not installed.
            UpstreamError: The worker died while starting.
        """
        path = log_path or _temporary_log()
        path.parent.mkdir(parents=True, exist_ok=True)
        ours, theirs = socket.socketpair(socket.AF_UNIX, socket.SOCK_STREAM)
        ours.setblocking(False)
        options = {
            "model": str(model),
            "seed": seed,
            "device": device,
            "dtype": dtype,
            "threads": threads,
            "max_batch": max_batch,
            "lora": lora,
            "adapter": None if adapter is None else str(adapter),
            "served_as": name,
            "max_context": max_context,
            "memory_bytes": memory_bytes,
        }
        command = [sys.executable, "-m", "agentlightning.learner.worker"]
        with theirs, path.open("ab") as log:
            process = await asyncio.create_subprocess_exec(
                *command,
                str(theirs.fileno()),
                json.dumps(options),
                stdin=asyncio.subprocess.DEVNULL,
                stdout=log,
                stderr=log,
                pass_fds=(theirs.fileno(),),
                # Waiting threads sleep: spinning ones take the cores away from agents and tools.
                env={"OMP_WAIT_POLICY": "PASSIVE", **os.environ},
                # Ctrl-C is for the parent, which then ends the worker in order.
                process_group=0,
            )
        self = cls(process, ours, path, str(model))
        self._temporary = log_path is None
        self._on_progress = on_progress or _unheard
        try:
            self.info = await asyncio.wait_for(self._expect("", None), startup_timeout_s)
        except TimeoutError as error:
            await self._abandon()
            raise ModelError(
                f"Loading {model} took longer than {startup_timeout_s:.0f} s.",
                hint=f"Raise startup_timeout_s or see the log {path}.",
            ) from error
        except BaseException:
            await self._abandon()
            raise
        return self

    _temporary = False

    # -- requests ----------------------------------------

    async def generate(self, request: GenerateRequest) -> GenerateResult:
        """Sample. Cancelling the awaiting task cancels the request in the engine.

        An empty `request_id` is filled in on the request.

        Raises:
            BadInputError: The request cannot be answered as it is (prompt too long, no chat template, ...).
            UpstreamError: The worker died.
        """
        request.request_id = request.request_id or new_id("gen")
        request.stream = False
        try:
            return await self._expect(request.request_id, protocol.Generate(request))
        except asyncio.CancelledError:
            self._send(protocol.Cancel(request.request_id))
            raise

    async def stream(self, request: GenerateRequest) -> AsyncIterator[GenerateDelta]:
        """Sample and yield text as it comes; the last delta carries the whole `result`.

        Leaving the iterator early cancels the request. Raises what `generate` raises.
        """
        request.request_id = request.request_id or new_id("gen")
        request.stream = True
        queue: asyncio.Queue[GenerateDelta | AgentLightningError] = asyncio.Queue()
        self._raise_if_dead()
        self._streams[request.request_id] = queue
        finished = False
        try:
            self._send(protocol.Generate(request))
            while not finished:
                item = await queue.get()
                if isinstance(item, AgentLightningError):
                    finished = True
                    raise item
                finished = item.result is not None
                yield item
        finally:
            self._streams.pop(request.request_id, None)
            if not finished:
                self._send(protocol.Cancel(request.request_id))

    async def train(self, samples: list[TrainSample], config: StepConfig) -> dict[str, float]:
        """Update the weights with one batch; return metrics (see `learner.step.PolicyTrainer.train`).

        Waits for requests already sent; requests sent later wait for it and see the new weights.

        Raises:
            BadInputError: No sample has a token to learn from, or a sample's lists differ in length.
        """
        return await self._command(lambda key: protocol.Train(key, samples, config))

    async def fit(self, batch: Sequence[TokenExample | TokenPair], config: FitConfig) -> dict[str, float]:
        """Take one optimizer step on examples (SFT) or on pairs (DPO); ordered among requests as `train` is.

        Returns:
            Metrics, see `learner.supervised`.

        Raises:
            BadInputError: An example learns nothing, contradicts itself, or is of another model's tokenizer.
        """
        pairs = [item for item in batch if isinstance(item, TokenPair)]
        if pairs:
            return await self._command(lambda key: protocol.FitPairs(key, pairs, config))
        examples = [item for item in batch if isinstance(item, TokenExample)]
        return await self._command(lambda key: protocol.FitExamples(key, examples, config))

    async def score(self, examples: Sequence[TokenExample], *, microbatch_tokens: int = 4096) -> list[float]:
        """Log-probability (natural, summed over the learned tokens) of each example under the present weights.

        Raises:
            BadInputError: As `fit`.
        """
        return await self._command(lambda key: protocol.Score(key, list(examples), microbatch_tokens))

    async def encode(self, dialogues: Sequence[Dialogue]) -> list[EncodedDialogue]:
        """Dialogues as the model's tokens, in the same order; what is not the assistant's is masked."""
        found = await self._command(lambda key: protocol.Encode(key, list(dialogues)))
        return msgspec.convert(found, list[EncodedDialogue])

    async def save_checkpoint(self, directory: Path, *, meta: dict[str, Any], keep: int = 3) -> Path:
        """Write weights, optimizer and random state to a new folder below `directory`; keep the last `keep`.

        A crash at any moment leaves the older checkpoints usable. `meta` is JSON-able; loading returns it.
        """
        path = _absolute(directory)
        return Path(await self._command(lambda key: protocol.SaveCheckpoint(key, path, meta, keep)))

    async def load_checkpoint(self, directory: Path) -> dict[str, Any] | None:
        """Restore the newest complete checkpoint below `directory`; return its `meta`, or `None`.

        Raises:
            ModelError: Checkpoints exist but belong to another model.
        """
        path = _absolute(directory)
        return await self._command(lambda key: protocol.LoadCheckpoint(key, path))

    async def save_model(self, directory: Path, *, merge: bool = True) -> Path:
        """Write the current model as a Hugging Face directory, replacing an older model there at once.

        Args:
            directory: Target; must be absent, empty, or a model directory.
            merge: With LoRA: write the merged model; `False` writes the adapter only.
        """
        path = _absolute(directory)
        return Path(await self._command(lambda key: protocol.SaveModel(key, path, merge)))

    async def set_version(self, version: str) -> None:
        """Name the weights; results carry the name as `model_version`."""
        await self._command(lambda key: protocol.SetVersion(key, version))
        self.info.model_version = version

    async def load_weights(self, model: str | Path, *, version: str) -> None:
        """Take the weights of another model of the same architecture in place; `version` names them.

        Waits for requests already sent; requests sent later wait for it and see the new weights. What was learnt so far
        and not saved is gone.

        Raises:
            ModelError: It is of another architecture or vocabulary, or cannot be loaded; nothing has changed.
        """
        await self._command(lambda key: protocol.LoadWeights(key, str(model), version))
        self.info.model_version = version

    async def stats(self) -> EngineStats:
        """What the engine has done since it started, and what it holds."""
        return msgspec.convert(await self._command(protocol.GetStats), EngineStats)

    @property
    def pid(self) -> int:
        """The worker's process id."""
        return self._process.pid

    @property
    def is_dead(self) -> bool:
        """Whether the worker is gone; every call fails then."""
        return self._dead is not None

    async def wait_dead(self) -> AgentLightningError:
        """Return when the worker is gone, with the reason."""
        await self._died.wait()
        assert self._dead is not None
        return self._dead

    async def close(self) -> None:
        """End the worker: politely, then by force. Pending calls fail. Safe to call twice."""
        if not self._closing and self._dead is None:
            self._closing = True
            with contextlib.suppress(AgentLightningError, TimeoutError):
                await asyncio.wait_for(self._command(protocol.Shutdown), _CLOSE_TIMEOUT_S)
                await asyncio.wait_for(self._process.wait(), _CLOSE_TIMEOUT_S)
        await self._abandon()

    async def __aenter__(self) -> EngineClient:
        return self

    async def __aexit__(self, *_: object) -> None:
        await self.close()

    # -- plumbing ----------------------------------------

    async def _command(self, make: Callable[[str], protocol.Command]) -> Any:
        key = new_id("cmd")
        return await self._expect(key, make(key))

    async def _expect(self, key: str, command: protocol.Command | None) -> Any:
        self._raise_if_dead()
        future: asyncio.Future[Any] = self._loop.create_future()
        self._pending[key] = future
        try:
            if command is not None:
                self._send(command)
            return await future
        finally:
            self._pending.pop(key, None)

    def _raise_if_dead(self) -> None:
        if self._dead is not None:
            raise self._dead

    def _send(self, command: protocol.Command) -> None:
        # Only collected here: callers that run in the same tick of the event loop leave in one write.
        if self._dead is None:
            self._outgoing.append(protocol.frame(command))
            self._outgoing_ready.set()

    async def _write(self) -> None:
        try:
            while True:
                await self._outgoing_ready.wait()
                self._outgoing_ready.clear()
                data = b"".join(self._outgoing)
                self._outgoing.clear()
                await self._loop.sock_sendall(self._connection, data)
        except OSError:
            return  # the reader sees the end of the connection and reports it

    async def _read(self) -> None:
        frames = protocol.FrameReader()
        while True:
            try:
                data = await self._loop.sock_recv(self._connection, _READ_BYTES)
            except OSError:
                data = b""
            if not data:
                break
            for body in frames.feed(data):
                self._dispatch(protocol.reply_decoder.decode(body))
        await self._report_death()

    def _dispatch(self, reply: protocol.Reply) -> None:
        match reply:
            case protocol.Generated():
                self._resolve(reply.result.request_id, reply.result)
            case protocol.Delta():
                queue = self._streams.get(reply.delta.request_id)
                if queue is not None:
                    queue.put_nowait(reply.delta)
            case protocol.Done():
                self._resolve(reply.id, reply.value)
            case protocol.Progress():
                self._on_progress(reply.stage, reply.fraction)
            case protocol.Ready():
                self._resolve("", reply.info)
            case protocol.Failed():
                error = protocol.to_error(reply)
                if reply.id in self._streams:
                    self._streams[reply.id].put_nowait(error)
                else:
                    self._resolve(reply.id, error)

    def _resolve(self, key: str, value: Any) -> None:
        future = self._pending.get(key)
        if future is None or future.done():
            return  # cancelled meanwhile
        if isinstance(value, AgentLightningError):
            future.set_exception(value)
        else:
            future.set_result(value)

    async def _report_death(self) -> None:
        with contextlib.suppress(TimeoutError):
            await asyncio.wait_for(self._process.wait(), _CLOSE_TIMEOUT_S)
        if self._closing:
            error = UpstreamError("The engine was closed.")
        else:
            error = UpstreamError(
                f"The learner worker for {self._model} died (exit status {self._process.returncode}).\n"
                f"{self._log_tail()}",
                hint=f"The whole log is {self._log_path}. Start the engine again; checkpoints are safe.",
            )
        self._dead = error
        self._died.set()
        for future in self._pending.values():
            if not future.done():
                future.set_exception(error)
        for queue in self._streams.values():
            queue.put_nowait(error)

    def _log_tail(self) -> str:
        try:
            with self._log_path.open("rb") as stream:
                stream.seek(max(0, stream.seek(0, os.SEEK_END) - _LOG_TAIL_BYTES))
                return stream.read().decode(errors="replace")
        except OSError as error:
            return f"(its log cannot be read: {error})"

    async def _abandon(self) -> None:
        self._closing = True
        if self._process.returncode is None:
            with contextlib.suppress(ProcessLookupError):
                self._process.kill()
        # All of it may be repeated: whoever closes may be cancelled while closing.
        try:
            await self._process.wait()
            self._tasks[1].cancel()
            await asyncio.wait(self._tasks, timeout=_CLOSE_TIMEOUT_S)
        finally:
            self._tasks[0].cancel()  # it has ended, unless closing was interrupted
            self._connection.close()
            if self._temporary:
                self._log_path.unlink(missing_ok=True)


def _unheard(stage: str, fraction: float) -> None:
    del stage, fraction


def _absolute(path: Path) -> str:
    return os.path.abspath(path)


def _temporary_log() -> Path:
    descriptor, name = tempfile.mkstemp(prefix="agentlightning-engine-", suffix=".log")
    os.close(descriptor)
    return Path(name)
