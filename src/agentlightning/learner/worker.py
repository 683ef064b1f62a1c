"""The learner worker: one process, one thread, one model that samples and trains.

Between decode steps it looks at its socket; commands come from `EngineClient` as frames of `protocol`. It ends when the
connection closes. Knows nothing of rollouts, the store or HTTP.

Order: a batch to train on (and a checkpoint to load) waits for the requests that came before it; whatever comes after
waits for it. So no response is ever sampled by two versions of the weights.
"""

from __future__ import annotations

import json
import logging
import os
import select
import socket
import sys
import time
from collections import deque
from collections.abc import Callable
from pathlib import Path
from typing import TYPE_CHECKING, Any

from agentlightning.kit.errors import AgentLightningError, MissingExtraError, UpstreamError
from agentlightning.learner import protocol
from agentlightning.schemas.generation import GenerateDelta, GenerateResult

if TYPE_CHECKING:
    from agentlightning.learner.engine import Engine, Event
    from agentlightning.learner.model import LoadedModel
    from agentlightning.learner.step import PolicyTrainer

_READ_BYTES = 1 << 18
_GATHER_QUIET_S = 0.001
_GATHER_MOST_S = 0.005
# what torch, transformers and the disk raise; anything else ends the worker, and the client reports its log
_FAILURES = (RuntimeError, ValueError, TypeError, LookupError, AttributeError, OSError, ImportError, MemoryError)
# what has to find the engine without requests
_FITS = (protocol.Train, protocol.FitExamples, protocol.FitPairs)
_AFTER_REQUESTS = (*_FITS, protocol.Score, protocol.LoadCheckpoint, protocol.LoadWeights)
_log = logging.getLogger("agentlightning.learner")


class ParentGoneError(Exception):
    """The connection closed: there is nobody left to work for."""


class Connection:
    """Non-blocking frames over a socket: what cannot be sent yet waits, so a slow reader never stops the engine."""

    def __init__(self, stream: socket.socket) -> None:
        self._socket = stream
        self._socket.setblocking(False)
        self._reader = protocol.FrameReader()
        self._unsent = bytearray()

    def receive(self, timeout_s: float | None) -> list[protocol.Command]:
        """Commands that have arrived; waits up to `timeout_s` for one (`None`: as long as it takes)."""
        writing = [self._socket] if self._unsent else []
        readable, writable, _ = select.select([self._socket], writing, [], timeout_s)
        if writable:
            self._flush()
        if not readable:
            return []
        try:
            data = self._socket.recv(_READ_BYTES)
        except BlockingIOError:
            return []
        except OSError as error:
            raise ParentGoneError from error
        if not data:
            raise ParentGoneError
        return [protocol.command_decoder.decode(body) for body in self._reader.feed(data)]

    def send(self, replies: list[protocol.Reply]) -> None:
        """Send, or keep for the next `receive`."""
        for reply in replies:
            self._unsent += protocol.frame(reply)
        self._flush()

    def drain(self) -> None:
        """Send all there is, however long it takes."""
        while self._unsent:
            select.select([], [self._socket], [])
            self._flush()

    def _flush(self) -> None:
        try:
            while self._unsent:
                del self._unsent[: self._socket.send(self._unsent)]
        except BlockingIOError:
            return
        except OSError as error:
            raise ParentGoneError from error


class Worker:
    """The loop around one engine and one trainer."""

    def __init__(self, connection: Connection, loaded: LoadedModel, options: dict[str, Any]) -> None:
        from agentlightning.learner.engine import Engine

        self._connection = connection
        self._loaded = loaded
        self._engine: Engine = Engine(
            loaded, max_batch=options["max_batch"], seed=options["seed"], memory_bytes=options.get("memory_bytes")
        )
        self._trainer: PolicyTrainer | None = None
        self._threads = _sampling_threads(options["threads"])
        self._queue: deque[protocol.Command] = deque()
        self._running = True

    def run(self) -> None:
        """Serve until told to shut down or left alone."""
        _set_threads(self._threads)
        self._connection.send([protocol.Ready(self._loaded.describe(self._engine.version))])
        while self._running:
            self._receive()
            self._work_off()
            if self._engine.busy:
                self._step()
        self._connection.drain()

    def _receive(self) -> None:
        idle = not self._engine.busy and not self._queue
        self._accept(self._connection.receive(None if idle else 0.0))
        if not idle:
            return
        # The first requests of a burst: wait a moment for the others, so that they share one prefill.
        deadline = time.monotonic() + _GATHER_MOST_S
        while isinstance(self._queue[-1] if self._queue else None, protocol.Generate):
            more = self._connection.receive(_GATHER_QUIET_S)
            self._accept(more)
            if not more or time.monotonic() > deadline:
                return

    def _accept(self, commands: list[protocol.Command]) -> None:
        for command in commands:
            if isinstance(command, protocol.Cancel):
                self._cancel(command.request_id)
            else:
                self._queue.append(command)

    def _cancel(self, request_id: str) -> None:
        self._queue = deque(
            c for c in self._queue if not (isinstance(c, protocol.Generate) and c.request.request_id == request_id)
        )
        self._engine.cancel(request_id)

    def _work_off(self) -> None:
        while self._queue:
            command = self._queue[0]
            if isinstance(command, _AFTER_REQUESTS) and self._engine.busy:
                return
            self._queue.popleft()
            self._handle(command)

    def _handle(self, command: protocol.Command) -> None:
        key = _key(command)
        try:
            if isinstance(command, protocol.Generate):
                self._engine.submit(command.request)
                return
            reply: protocol.Reply = protocol.Done(key, self._execute(command))
        except AgentLightningError as error:
            reply = protocol.failure(key, error)
        except _FAILURES as error:
            _log.exception("%s failed", type(command).__name__)
            reply = protocol.failure(key, _unexpected(error))
        self._connection.send([reply])

    def _execute(self, command: protocol.Command) -> Any:
        match command:
            case protocol.Train() | protocol.FitExamples() | protocol.FitPairs():
                return self._train(command)
            case protocol.SaveCheckpoint():
                return self._save_checkpoint(command)
            case protocol.LoadCheckpoint():
                return self._load_checkpoint(Path(command.directory))
            case protocol.SaveModel():
                from agentlightning.learner.checkpoint import save_model

                return str(save_model(Path(command.directory), self._loaded, merge=command.merge))
            case protocol.SetVersion():
                self._engine.version = command.version
            case protocol.LoadWeights():
                self._load_weights(command)
            case protocol.Shutdown():
                self._running = False
            case protocol.GetInfo() | protocol.GetStats() | protocol.Score() | protocol.Encode():
                return self._read(command)
            case protocol.Generate() | protocol.Cancel():
                raise AssertionError("handled elsewhere")
        return None

    def _train(self, command: protocol.Train | protocol.FitExamples | protocol.FitPairs) -> dict[str, float]:
        from agentlightning.learner.supervised import fit_examples, fit_pairs

        trainer, between = self._policy(), self._look_for_parent
        _set_threads(command.config.threads or os.cpu_count() or 1)
        try:
            match command:
                case protocol.Train():
                    return trainer.train(command.samples, command.config, between=between)
                case protocol.FitExamples():
                    return fit_examples(trainer, command.examples, command.config, between=between)
                case protocol.FitPairs():
                    return fit_pairs(trainer, command.pairs, command.config, between=between)
        finally:
            _set_threads(self._threads)
            self._engine.weights_changed()

    def _read(self, command: protocol.GetInfo | protocol.GetStats | protocol.Score | protocol.Encode) -> Any:
        """What leaves the weights as they are."""
        match command:
            case protocol.GetInfo():
                return self._loaded.describe(self._engine.version)
            case protocol.GetStats():
                stats = self._engine.current_stats()
                stats.memory_bytes = _memory_bytes(self._loaded.device)
                return stats
            case protocol.Score():
                return self._score(command)
            case protocol.Encode():
                from agentlightning.learner.dialogues import encode_dialogue

                ends = end_texts(self._loaded)
                return [encode_dialogue(self._engine.chat, dialogue, ends) for dialogue in command.dialogues]

    def _score(self, command: protocol.Score) -> list[float]:
        from agentlightning.learner.supervised import score

        _set_threads(os.cpu_count() or 1)
        try:
            return score(self._policy(), command.examples, command.microbatch_tokens, between=self._look_for_parent)
        finally:
            _set_threads(self._threads)

    def _save_checkpoint(self, command: protocol.SaveCheckpoint) -> str:
        from agentlightning.learner.checkpoint import save_checkpoint

        path = save_checkpoint(
            Path(command.directory),
            self._policy(),
            meta=command.meta,
            streams_used=self._engine.streams_used,
            keep=command.keep,
        )
        return str(path)

    def _load_checkpoint(self, directory: Path) -> dict[str, Any] | None:
        from agentlightning.learner.checkpoint import load_checkpoint

        found = load_checkpoint(directory, self._policy())
        if found is None:
            return None
        meta, self._engine.streams_used = found
        self._engine.weights_changed()
        return meta

    def _load_weights(self, command: protocol.LoadWeights) -> None:
        from agentlightning.learner.model import take_weights

        take_weights(self._loaded, command.model)
        self._trainer = None  # its copies of the weights and its optimizer belong to the old ones
        self._engine.weights_changed(command.version)

    def _policy(self) -> PolicyTrainer:
        if self._trainer is None:
            from agentlightning.learner.step import PolicyTrainer

            self._trainer = PolicyTrainer(self._loaded)
        return self._trainer

    def _look_for_parent(self) -> None:
        self._accept(self._connection.receive(0.0))

    def _step(self) -> None:
        try:
            events = self._engine.step()
        except _FAILURES as error:
            _log.exception("a decode step failed")
            failure = _unexpected(error)
            self._connection.send([protocol.failure(key, failure) for key in self._engine.abort()])
            return
        self._connection.send([_reply(event) for event in events])


def end_texts(loaded: LoadedModel) -> list[str]:
    """The texts of the model's end tokens, the tokenizer's own first."""
    own = loaded.tokenizer.eos_token_id
    order = sorted(loaded.eos_ids, key=lambda token: (token != own, token))
    return [str(loaded.tokenizer.convert_ids_to_tokens(token)) for token in order]


def _memory_bytes(device: Any) -> int:
    if device.type == "cuda":
        import torch

        return int(torch.cuda.memory_reserved(device))
    try:
        return int(Path("/proc/self/statm").read_text().split()[1]) * os.sysconf("SC_PAGE_SIZE")
    except OSError:  # not Linux
        import resource

        scale = 1 if sys.platform == "darwin" else 1024
        return resource.getrusage(resource.RUSAGE_SELF).ru_maxrss * scale


def _key(command: protocol.Command) -> str:
    if isinstance(command, protocol.Generate):
        return command.request.request_id
    return command.request_id if isinstance(command, protocol.Cancel) else command.id


def _reply(event: Event) -> protocol.Reply:
    if not isinstance(event, GenerateDelta | GenerateResult):
        return protocol.failure(event.request_id, event.error)
    return protocol.Delta(event) if isinstance(event, GenerateDelta) else protocol.Generated(event)


def _unexpected(error: Exception) -> AgentLightningError:
    text = str(error) or type(error).__name__
    if "out of memory" in text.lower() or "can't allocate memory" in text.lower():
        return UpstreamError(
            f"The learner ran out of memory: {text.splitlines()[0]}",
            hint="Lower max_batch, max_tokens or microbatch_tokens, or use a smaller model.",
        )
    return UpstreamError(f"The learner failed: {type(error).__name__}: {text}", hint="Its log has the traceback.")


def _sampling_threads(wanted: int | None) -> int:
    # Half of the cores: agents, tools and the gateway need the others while the engine decodes.
    return wanted or max(1, (os.cpu_count() or 2) // 2)


def _set_threads(count: int) -> None:
    import torch

    if torch.get_num_threads() != count:
        torch.set_num_threads(count)


def main() -> int:
    """`python -m agentlightning.learner.worker FD OPTIONS`: started by `EngineClient`, not by hand."""
    logging.basicConfig(level=logging.INFO, format="%(asctime)s %(levelname)s %(name)s: %(message)s")
    connection = Connection(socket.socket(fileno=int(sys.argv[1])))
    options = json.loads(sys.argv[2])
    try:
        try:
            loaded = _load(options, lambda stage, done: connection.send([protocol.Progress(stage, done)]))
            connection.send([protocol.Progress("check", 0.9)])
            worker = Worker(connection, loaded, options)
        except AgentLightningError as error:
            _log.error("cannot start: %s", error)
            connection.send([protocol.failure("", error)])
            connection.drain()
            return 1
        worker.run()
    except ParentGoneError:
        _log.info("the connection closed: ending")
    return 0


def _load(options: dict[str, Any], on_stage: Callable[[str, float], None]) -> LoadedModel:
    on_stage("libraries", 0.05)
    try:
        from transformers.utils import logging as transformers_logging

        from agentlightning.learner.model import load_model
    except ImportError as error:
        raise MissingExtraError(
            f"Local models need torch and transformers: {error}.",
            hint="Install them: pip install 'agentlightning[learn]'.",
        ) from error
    transformers_logging.disable_progress_bar()
    started = time.perf_counter()
    names = ("device", "dtype", "lora", "adapter", "max_context", "served_as")
    loaded = load_model(
        options["model"], **{name: options[name] for name in names if name in options}, on_stage=on_stage
    )
    _log.info("%s loaded in %.1f s on %s", loaded.name, time.perf_counter() - started, loaded.device)
    return loaded


if __name__ == "__main__":
    sys.exit(main())
