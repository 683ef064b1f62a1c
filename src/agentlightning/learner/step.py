"""Optimizer steps on a policy: batches in, better weights and metrics out. Knows nothing of where samples come from."""

from __future__ import annotations

import logging
import math
import time
from collections.abc import Callable
from typing import Any

import numpy as np
import torch

from agentlightning.learner.loss import Totals, policy_loss, token_logprobs
from agentlightning.learner.model import LoadedModel, load_model
from agentlightning.learner.packing import MicroBatch, TokenBatch, check_samples, microbatches, minibatches
from agentlightning.learner.protocol import OptimizerConfig, StepConfig
from agentlightning.schemas.call import TrainSample

_log = logging.getLogger(__name__)


class PolicyTrainer:
    """Trains the weights of a loaded model in place with AdamW.

    The model stays in evaluation mode: dropout would make the ratio of new to old probabilities noise. Weights that
    are not float32 have a float32 master copy, so that small updates are not rounded away.
    """

    def __init__(self, loaded: LoadedModel) -> None:
        self.batches = 0
        """Batches trained so far; decides the learning rate and the shuffling."""
        self._loaded = loaded
        self._model = loaded.model
        self.device, self.vocab_size = loaded.device, loaded.vocab_size
        self.parameters: dict[str, torch.nn.Parameter] = {
            name: p for name, p in self._model.named_parameters() if p.requires_grad
        }
        self.masters = {
            name: p if p.dtype == torch.float32 else torch.nn.Parameter(p.detach().float().clone())
            for name, p in self.parameters.items()
        }
        self.optimizer = torch.optim.AdamW(self.masters.values(), lr=0.0, fused=True)
        self.logits = LogitsAt(loaded)
        self._reference: LogitsAt | None = None

    def train(
        self,
        samples: list[TrainSample],
        config: StepConfig,
        *,
        between: Callable[[], None] = lambda: None,
    ) -> dict[str, float]:
        """One batch: `epochs x minibatches` optimizer steps.

        Samples with advantage 0 count in the normalisation; their forward pass is skipped while `beta == 0`, since
        their gradient is zero.

        Args:
            samples: The batch.
            config: How to train.
            between: Called after each microbatch; may raise to stop.

        Returns:
            Means over the tokens trained on: `entropy` (nats), `clip_fraction`, `approx_kl` (k3, old to new),
            `ratio_mean`, `kl_reference` (if `beta`); means over steps: `loss`, `grad_norm` (before clipping); and
            `lr`, `tokens`, `samples`, `optimizer_steps`, `skipped_steps` (not finite), `train_seconds`.

        Raises:
            BadInputError: The samples contradict themselves, or none has a sampled token.
        """
        started = time.perf_counter()
        check_samples(samples, self._loaded.vocab_size)
        rate = learning_rate(config, self.batches)
        self.set_optimizer(config, rate)
        longest = config.max_completion_tokens or max(sum(s.loss_mask) for s in samples)
        tally = _Tally()
        for epoch in range(config.epochs):
            rng = np.random.default_rng([config.seed & (2**63 - 1), self.batches, epoch])
            for part in minibatches(samples, config.minibatches, rng):
                self._minibatch(part, config, longest, tally, between)
        self.batches += 1
        return {
            **tally.metrics(),
            "lr": rate,
            "samples": float(len(samples)),
            "train_seconds": time.perf_counter() - started,
        }

    def _minibatch(
        self,
        samples: list[TrainSample],
        config: StepConfig,
        longest: int,
        tally: _Tally,
        between: Callable[[], None],
    ) -> None:
        totals = Totals(len(samples), max(1, sum(sum(s.loss_mask) for s in samples)), longest)
        if config.beta == 0.0:
            samples = [s for s in samples if s.advantage != 0.0]
        self.clear_gradients()
        loss = 0.0
        tokens = 0
        for batch in microbatches(samples, config.microbatch_tokens, self._loaded.device):
            reference_N = self._reference_logprobs(batch, config) if config.beta else None
            part, sums = policy_loss(self.logits(batch), batch, totals, config, reference_N)
            part.backward()
            loss += float(part.detach())
            tokens += len(batch.targets)
            tally.add(sums, len(batch.targets))
            between()
        if tokens:
            tally.step(loss, self.update(config, loss))
        self.clear_gradients()

    def set_optimizer(self, config: OptimizerConfig, rate: float) -> None:
        """Use these settings from the next step on."""
        for group in self.optimizer.param_groups:
            group.update(lr=rate, betas=config.betas, weight_decay=config.weight_decay)

    def update(self, config: OptimizerConfig, loss: float) -> float | None:
        """Take the step; the gradient's norm before clipping, or `None` if it was not finite and nothing changed."""
        for name, parameter in self.parameters.items():
            master = self.masters[name]
            if master is not parameter:
                master.grad = None if parameter.grad is None else parameter.grad.float()
        limit = config.max_grad_norm or math.inf
        norm = float(torch.nn.utils.clip_grad_norm_(self.masters.values(), limit))
        if not (math.isfinite(norm) and math.isfinite(loss)):
            _log.warning("step skipped: loss %s, gradient norm %s", loss, norm)
            return None
        self.optimizer.step()
        self.publish_masters()
        return norm

    def clear_gradients(self) -> None:
        """Forget gradients, and free their memory."""
        self._model.zero_grad(set_to_none=True)

    def publish_masters(self) -> None:
        """Copy float32 masters into the model's weights, where they are not the same tensors."""
        with torch.no_grad():
            for name, parameter in self.parameters.items():
                if self.masters[name] is not parameter:
                    parameter.copy_(self.masters[name])

    @torch.no_grad()
    def _reference_logprobs(self, batch: MicroBatch, config: StepConfig) -> torch.Tensor:
        if self._loaded.lora:
            with self._model.disable_adapter():
                logits = self.logits(batch)
        else:
            if self._reference is None:
                loaded = self._loaded
                dtype = str(loaded.dtype).removeprefix("torch.")
                self._reference = LogitsAt(load_model(loaded.name, device=str(loaded.device), dtype=dtype))
            logits = self._reference(batch)
        return token_logprobs(logits, batch.targets, config.temperature)


class LogitsAt:
    """Logits at a batch's tokens that count only, where running the output layer on those is exact."""

    def __init__(self, loaded: LoadedModel) -> None:
        model = loaded.model
        self._model = model
        base = model.get_base_model() if hasattr(model, "get_base_model") else model
        self._decoder, self._head = _split(base)
        if self._decoder is not None and not self._split_is_exact(loaded):
            self._decoder = None

    def __call__(self, batch: TokenBatch) -> torch.Tensor:
        """[N, V]. Right padding needs no mask: a causal model's earlier positions do not see it."""
        if self._decoder is None:
            return self._model(input_ids=batch.ids, use_cache=False).logits[batch.rows, batch.columns]
        hidden_BTH = self._decoder(input_ids=batch.ids, use_cache=False).last_hidden_state
        return self._head(hidden_BTH[batch.rows, batch.columns])

    @torch.no_grad()
    def _split_is_exact(self, loaded: LoadedModel) -> bool:
        # Some models scale or cap their logits after the output layer.
        ids = torch.arange(min(4, loaded.vocab_size), device=loaded.device)[None]
        try:
            split = self._head(self._decoder(input_ids=ids, use_cache=False).last_hidden_state)  # pyright: ignore[reportOptionalCall]
            return torch.equal(split, self._model(input_ids=ids, use_cache=False).logits)
        except (AttributeError, TypeError, RuntimeError):
            return False


def _split(model: Any) -> tuple[Any, Any]:
    decoder = getattr(model, model.base_model_prefix, None)
    head = model.get_output_embeddings()
    return (decoder, head) if decoder is not None and head is not None else (None, None)


def learning_rate(config: StepConfig, batch: int) -> float:
    """The rate of batch number `batch` (from 0)."""
    if batch < config.warmup_steps:
        return config.lr * (batch + 1) / config.warmup_steps
    if config.schedule == "constant" or config.total_steps <= config.warmup_steps:
        return config.lr
    done = (batch - config.warmup_steps) / (config.total_steps - config.warmup_steps)
    if config.schedule == "linear":
        return config.lr * max(0.0, 1.0 - done)
    return config.lr * 0.5 * (1 + math.cos(math.pi * min(1.0, done)))


class _Tally:
    """Adds up metrics over microbatches and steps."""

    def __init__(self) -> None:
        self._sums: dict[str, float] = {}
        self._tokens = 0
        self._losses: list[float] = []
        self._norms: list[float] = []
        self._skipped = 0

    def add(self, sums: dict[str, torch.Tensor], tokens: int) -> None:
        self._tokens += tokens
        for name, value in sums.items():
            self._sums[name] = self._sums.get(name, 0.0) + float(value)

    def step(self, loss: float, norm: float | None) -> None:
        if norm is None:
            self._skipped += 1
        else:
            self._losses.append(loss)
            self._norms.append(norm)

    def metrics(self) -> dict[str, float]:
        metrics = {name: value / self._tokens for name, value in self._sums.items()}
        if self._norms:
            metrics["loss"] = sum(self._losses) / len(self._losses)
            metrics["grad_norm"] = sum(self._norms) / len(self._norms)
        metrics["tokens"] = float(self._tokens)
        metrics["optimizer_steps"] = float(len(self._norms))
        metrics["skipped_steps"] = float(self._skipped)
        return metrics
