"""What goes over the wire between `EngineClient` and the learner worker: commands, replies and their framing.

A frame is a little-endian u32 length followed by msgpack. Knows nothing of torch, sockets or event loops.
"""

from __future__ import annotations

import struct
from typing import Any, Literal

import msgspec

from agentlightning.kit.errors import AgentLightningError
from agentlightning.schemas.call import TrainSample
from agentlightning.schemas.example import Dialogue, TokenExample, TokenPair
from agentlightning.schemas.generation import EngineInfo, GenerateDelta, GenerateRequest, GenerateResult

LossType = Literal["grpo", "bnpo", "dr_grpo", "dapo"]
Schedule = Literal["constant", "linear", "cosine"]


class OptimizerConfig(msgspec.Struct, kw_only=True, forbid_unknown_fields=True):
    """What all training has in common."""

    lr: float = 5e-4
    microbatch_tokens: int = 4096
    """Padded tokens of one forward/backward; a longer sample runs alone."""
    max_grad_norm: float = 1.0
    """0 does not clip."""
    betas: tuple[float, float] = (0.9, 0.95)
    weight_decay: float = 0.0
    threads: int | None = None
    """CPU threads while training; `None` uses all cores."""


class StepConfig(OptimizerConfig, kw_only=True, forbid_unknown_fields=True):
    """How one batch of samples becomes optimizer steps.

    With `schedule="constant"` and `warmup_steps=0`, `lr` is the learning rate of this step; otherwise it is
    the peak and the trainer's own count of batches so far (kept in checkpoints) decides.
    """

    schedule: Schedule = "constant"
    warmup_steps: int = 0
    """Batches over which the learning rate rises linearly from `lr / warmup_steps`."""
    total_steps: int = 0
    """Batches after which `linear` and `cosine` reach zero; 0 keeps the rate constant after the warm-up."""
    epochs: int = 1
    minibatches: int = 2
    """Optimizer steps per epoch; capped at the number of samples."""
    loss_type: LossType = "dapo"
    max_completion_tokens: int = 0
    """The constant of `dr_grpo`; 0 takes the most response tokens any sample of the batch has."""
    clip_low: float = 0.2
    clip_high: float = 0.28
    beta: float = 0.0
    """Weight of the KL penalty to the model as it was loaded; 0 keeps no reference."""
    temperature: float = 1.0
    """The temperature the samples were drawn at."""
    seed: int = 0
    """Decides, with the count of batches, how samples are dealt to minibatches."""


class FitConfig(OptimizerConfig, kw_only=True, forbid_unknown_fields=True):
    """How one batch of examples or pairs becomes one optimizer step."""

    beta: float = 0.1
    """Pairs: how strongly the model is held to its reference (the beta of DPO)."""
    sft_weight: float = 0.0
    """Pairs: weight of the mean negative log-likelihood of the chosen tokens, added to the loss."""


class Generate(msgspec.Struct, tag=True):
    request: GenerateRequest


class Cancel(msgspec.Struct, tag=True):
    """Stop working on a request; there is no reply to it."""

    request_id: str


class Train(msgspec.Struct, tag=True):
    """Runs when every request that came before it is finished; requests that come after it wait for it."""

    id: str
    samples: list[TrainSample]
    config: StepConfig


class FitExamples(msgspec.Struct, tag=True):
    """Ordered among requests as `Train` is."""

    id: str
    examples: list[TokenExample]
    config: FitConfig


class FitPairs(msgspec.Struct, tag=True):
    """Ordered among requests as `Train` is."""

    id: str
    pairs: list[TokenPair]
    config: FitConfig


class Score(msgspec.Struct, tag=True):
    """Log-probabilities under the present weights; ordered among requests as `Train` is."""

    id: str
    examples: list[TokenExample]
    microbatch_tokens: int


class Encode(msgspec.Struct, tag=True):
    id: str
    dialogues: list[Dialogue]


class SaveCheckpoint(msgspec.Struct, tag=True):
    id: str
    directory: str
    meta: dict[str, Any]
    keep: int


class LoadCheckpoint(msgspec.Struct, tag=True):
    id: str
    directory: str


class SaveModel(msgspec.Struct, tag=True):
    id: str
    directory: str
    merge: bool


class SetVersion(msgspec.Struct, tag=True):
    id: str
    version: str


class LoadWeights(msgspec.Struct, tag=True):
    """Take the weights of another model of the same architecture; ordered among requests as `Train` is."""

    id: str
    model: str
    version: str


class GetStats(msgspec.Struct, tag=True):
    id: str


class GetInfo(msgspec.Struct, tag=True):
    id: str


class Shutdown(msgspec.Struct, tag=True):
    id: str


Command = (
    Generate
    | Cancel
    | Train
    | FitExamples
    | FitPairs
    | Score
    | Encode
    | SaveCheckpoint
    | LoadCheckpoint
    | SaveModel
    | SetVersion
    | LoadWeights
    | GetStats
    | GetInfo
    | Shutdown
)


class Generated(msgspec.Struct, tag=True):
    result: GenerateResult


class Delta(msgspec.Struct, tag=True):
    delta: GenerateDelta


class Done(msgspec.Struct, tag=True):
    """The answer to a command other than `Generate`; `value` depends on the command."""

    id: str
    value: Any = None


class Progress(msgspec.Struct, tag=True):
    """Sent while the model is being loaded."""

    stage: str
    fraction: float
    """Of the whole, roughly."""


class Ready(msgspec.Struct, tag=True):
    """Sent once, when the model is loaded."""

    info: EngineInfo


class Failed(msgspec.Struct, tag=True):
    """The answer to the command or request `id` when it went wrong; `id == ""` is a failed start."""

    id: str
    code: str
    message: str
    hint: str = ""
    status: int = 500
    details: dict[str, Any] = {}


Reply = Generated | Delta | Done | Progress | Ready | Failed

_LENGTH = struct.Struct("<I")
_encoder = msgspec.msgpack.Encoder()
command_decoder = msgspec.msgpack.Decoder(Command)
reply_decoder = msgspec.msgpack.Decoder(Reply)


def frame(message: Command | Reply) -> bytes:
    """Encode one message with its length in front."""
    body = _encoder.encode(message)
    return _LENGTH.pack(len(body)) + body


class FrameReader:
    """Cuts a byte stream into frame bodies."""

    def __init__(self) -> None:
        self._buffer = bytearray()

    def feed(self, data: bytes) -> list[bytes]:
        """Take in what was read; return the frames that are now complete."""
        self._buffer += data
        frames: list[bytes] = []
        start, end = 0, len(self._buffer)
        while end - start >= _LENGTH.size:
            (length,) = _LENGTH.unpack_from(self._buffer, start)
            if end - start < _LENGTH.size + length:
                break
            frames.append(bytes(self._buffer[start + _LENGTH.size : start + _LENGTH.size + length]))
            start += _LENGTH.size + length
        del self._buffer[:start]
        return frames


def failure(key: str, error: AgentLightningError) -> Failed:
    """The frame that carries an error to the client."""
    return Failed(
        id=key,
        code=error.code,
        message=error.message,
        hint=error.hint,
        status=error.status,
        details=error.details,
    )


def to_error(reply: Failed) -> AgentLightningError:
    """The error a `Failed` frame stands for: the class with that code, else the base class."""
    known = _error_classes(AgentLightningError)
    error = known.get(reply.code, AgentLightningError)(reply.message, hint=reply.hint, details=reply.details)
    error.code, error.status = reply.code, reply.status
    return error


def _error_classes(base: type[AgentLightningError]) -> dict[str, type[AgentLightningError]]:
    classes = {base.code: base}
    for child in base.__subclasses__():
        classes.update({code: c for code, c in _error_classes(child).items() if code not in classes})
    return classes
