"""Checkpoints of a training run and exported models, each written beside its place and renamed into it.

Whatever kills the process, a directory is there whole or not at all. Knows nothing of how training goes.
"""

from __future__ import annotations

import json
import shutil
from collections.abc import Generator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import torch
from safetensors import SafetensorError
from safetensors.torch import load_file, save_file

from agentlightning.kit.directories import UNFINISHED, refused, whole_directory
from agentlightning.kit.errors import ConflictError, ModelError
from agentlightning.learner.model import LoadedModel
from agentlightning.learner.step import PolicyTrainer

_MANIFEST = "checkpoint.json"
_WEIGHTS, _OPTIMIZER = "weights.safetensors", "optimizer.safetensors"
_PREFIX = "step-"


def save_checkpoint(
    directory: Path, trainer: PolicyTrainer, *, meta: dict[str, Any], streams_used: int, keep: int = 3
) -> Path:
    """Write `directory/step-NNNNNN` and remove all but the newest `keep` checkpoints.

    Args:
        directory: Holds the checkpoints of one run.
        trainer: Its float32 weights, optimizer state and count of batches are saved.
        meta: JSON-able, for the caller.
        streams_used: The engine's position in its random streams.
        keep: How many to keep, at least 1.

    Raises:
        StorageError: The disk refused; older checkpoints are unharmed.
    """
    target = _free_name(directory / f"{_PREFIX}{trainer.batches:06d}")
    with _whole(target) as unfinished:
        weights = {name: p.detach().contiguous() for name, p in trainer.masters.items()}
        save_file(weights, unfinished / _WEIGHTS)
        save_file(_optimizer_tensors(trainer), unfinished / _OPTIMIZER)
        files = {name: (unfinished / name).stat().st_size for name in (_WEIGHTS, _OPTIMIZER)}
        manifest = {
            "format": 1,
            "batches": trainer.batches,
            "streams_used": streams_used,
            "files": files,
            "meta": meta,
        }
        (unfinished / _MANIFEST).write_text(json.dumps(manifest))
    for old in _checkpoints(directory)[max(1, keep) :]:
        shutil.rmtree(old, ignore_errors=True)
    for rest in directory.glob(f"{UNFINISHED}*"):
        shutil.rmtree(rest, ignore_errors=True)
    return target


def load_checkpoint(directory: Path, trainer: PolicyTrainer) -> tuple[dict[str, Any], int] | None:
    """Restore the newest complete checkpoint in `directory` (or `directory` itself, if it is one).

    Returns:
        Its `meta` and `streams_used`; `None` if there is no complete checkpoint.

    Raises:
        ModelError: The checkpoint is of another model.
    """
    candidates = [directory] if (directory / _MANIFEST).is_file() else _checkpoints(directory)
    for candidate in candidates:
        manifest = _complete(candidate)
        if manifest is None:
            continue
        try:
            weights = load_file(candidate / _WEIGHTS, device="cpu")
            moments = load_file(candidate / _OPTIMIZER, device="cpu")
        except (SafetensorError, OSError):
            continue
        _restore(candidate, trainer, weights, moments)
        trainer.batches = int(manifest["batches"])
        return manifest["meta"], int(manifest["streams_used"])
    return None


def save_model(directory: Path, loaded: LoadedModel, *, merge: bool = True) -> Path:
    """Write a Hugging Face directory that `from_pretrained` loads; replaces an older model there at once.

    Args:
        directory: Absent, empty or a model directory.
        loaded: What to save, tokenizer included.
        merge: With LoRA: the merged model, else the adapter only.

    Raises:
        ConflictError: Something other than a model is there.
        StorageError: The disk refused; what was there is unharmed.
    """
    if directory.exists() and not _replaceable(directory):
        raise ConflictError(f"{directory} exists and is not a model directory.", hint="Choose another one.")
    with _whole(directory) as unfinished:
        model = loaded.model
        if loaded.lora and merge:
            model.merge_adapter()
            try:
                base = model.get_base_model()
                base.save_pretrained(unfinished, state_dict=_merged_state(base))
            finally:
                model.unmerge_adapter()
        else:
            model.save_pretrained(unfinished)
        loaded.tokenizer.save_pretrained(unfinished)
    return directory


def _replaceable(directory: Path) -> bool:
    if not directory.is_dir():
        return False
    names = {p.name for p in directory.iterdir()}
    return not names or bool(names & {"config.json", "adapter_config.json"})


def _merged_state(base: torch.nn.Module) -> dict[str, torch.Tensor]:
    """The state of a model with merged LoRA layers, under the names of the plain model."""
    return {
        name.replace(".base_layer.", "."): tensor for name, tensor in base.state_dict().items() if ".lora_" not in name
    }


def _optimizer_tensors(trainer: PolicyTrainer) -> dict[str, torch.Tensor]:
    return {
        f"{kind}/{name}": value.detach().contiguous()
        for name, master in trainer.masters.items()
        for kind, value in trainer.optimizer.state.get(master, {}).items()
    }


def _restore(
    candidate: Path,
    trainer: PolicyTrainer,
    weights: dict[str, torch.Tensor],
    moments: dict[str, torch.Tensor],
) -> None:
    shapes = {name: p.shape for name, p in trainer.masters.items()}
    if {name: t.shape for name, t in weights.items()} != shapes:
        raise ModelError(
            f"The checkpoint {candidate} belongs to another model or adapter.",
            hint="Continue with the model it was made from, or start a fresh run in another directory.",
        )
    with torch.no_grad():
        for name, master in trainer.masters.items():
            master.copy_(weights[name])
    trainer.publish_masters()
    trainer.optimizer.state.clear()
    for key, value in moments.items():
        kind, _, name = key.partition("/")
        master = trainer.masters[name]
        trainer.optimizer.state[master][kind] = value.to(master.device)


def _free_name(target: Path) -> Path:
    # A second save at the same step never replaces the first: at no moment is there none.
    names = (target.with_name(f"{target.name}-{i:03d}") for i in range(1, 1000))
    return next(p for p in (target, *names) if not p.exists()) if target.exists() else target


def _checkpoints(directory: Path) -> list[Path]:
    """Newest first."""
    return sorted(directory.glob(f"{_PREFIX}*"), key=lambda p: p.name, reverse=True)


def _complete(candidate: Path) -> dict[str, Any] | None:
    try:
        manifest = json.loads((candidate / _MANIFEST).read_text())
        sizes = {name: (candidate / name).stat().st_size for name in manifest["files"]}
    except (OSError, ValueError, KeyError):
        return None
    return manifest if sizes == manifest["files"] else None


@contextmanager
def _whole(target: Path) -> Generator[Path]:
    try:
        with whole_directory(target) as unfinished:
            yield unfinished
    except SafetensorError as error:
        raise refused(target, error) from error
