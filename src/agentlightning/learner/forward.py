"""One forward pass of a Hugging Face causal LM over rows of a `KVRows` cache.

Builds position ids and masks for rows of different lengths. Knows nothing of requests or sampling.
"""

from __future__ import annotations

from contextlib import nullcontext
from typing import Any

import numpy as np
import torch

from agentlightning.kit.errors import ModelError
from agentlightning.learner.attention import decoding
from agentlightning.learner.kv import KVRows, Window, slot_cache
from agentlightning.learner.model import LoadedModel

_TOLERANCE = {torch.float32: 1e-3, torch.bfloat16: 0.1, torch.float16: 0.05}
_MASKS = {"full_attention", "sliding_attention"}


class Forward:
    """Calls the model on rows `low …` of `rows`; writes their keys and values, returns logits of the last column."""

    def __init__(self, loaded: LoadedModel, rows: KVRows) -> None:
        self._loaded = loaded
        self._model = loaded.model
        self._rows = rows
        self._window = Window()
        config = loaded.model.config
        text = config.get_text_config() if hasattr(config, "get_text_config") else config
        kinds = set(getattr(text, "layer_types", None) or ())
        self._sliding = getattr(text, "sliding_window", None)
        if getattr(text, "use_sliding_window", True) is False:
            self._sliding = None
        self._both_masks = len(kinds & _MASKS) == 2 and kinds <= _MASKS
        if kinds == {"full_attention"}:
            self._sliding = None
        self._unknown_layers = sorted(kinds - _MASKS)
        self._cache = slot_cache(rows, self._window, int(text.num_hidden_layers))
        self._options = {"logits_to_keep": 1} if loaded.takes_logits_to_keep else {}
        self._minimum = torch.finfo(loaded.dtype).min
        self._config = text
        self._decodes_apart = loaded.device.type == "cpu" and config._attn_implementation == "sdpa"

    def __call__(self, low: int, ids_bN: np.ndarray, positions_bN: np.ndarray) -> torch.Tensor:
        """Compute columns of tokens.

        Args:
            low: First row; row i of the arguments is row `low + i`.
            ids_bN: int64 token ids.
            positions_bN: int64 positions, increasing along a row except for padding.

        Returns:
            float32 logits [b, V] after the last column.
        """
        device, window = self._loaded.device, self._window
        window.low, window.high, window.keys = low, low + len(ids_bN), int(positions_bN.max()) + 1
        self._rows.reserve(window.high, window.keys)
        positions = torch.from_numpy(positions_bN).to(device)
        window.row_ids = torch.arange(low, window.high, device=device)[:, None]
        window.positions = positions
        apart = self._decodes_apart and ids_bN.shape[1] == 1
        with decoding(self._config) if apart else nullcontext():
            output = self._model(
                input_ids=torch.from_numpy(ids_bN).to(device),
                position_ids=positions,
                attention_mask=self._masks(positions, window.keys),
                past_key_values=self._cache,
                use_cache=True,
                **self._options,
            )
        return output.logits[:, -1].float()

    def _masks(self, positions_bN: torch.Tensor, keys: int) -> Any:
        key_K = torch.arange(keys, device=positions_bN.device)
        query_bN1 = positions_bN[:, :, None]
        hidden_bNK = key_K > query_bN1
        if not self._sliding:
            return self._additive(hidden_bNK)
        sliding = self._additive(hidden_bNK | (key_K <= query_bN1 - self._sliding))
        if not self._both_masks:
            return sliding
        return {"full_attention": self._additive(hidden_bNK), "sliding_attention": sliding}

    def _additive(self, hidden_bNK: torch.Tensor) -> torch.Tensor:
        mask = torch.zeros(hidden_bNK.shape, dtype=self._loaded.dtype, device=hidden_bNK.device)
        return mask.masked_fill_(hidden_bNK, self._minimum)[:, None]

    def verify(self) -> None:
        """Make sure that the model works with the cache, and whether single tokens can be decoded apart.

        Raises:
            ModelError: It does not: the architecture keeps state this cache does not hold.
        """
        if self._decodes_apart:
            try:
                self._verify()
            except ModelError:
                self._decodes_apart = False
            else:
                return
        self._verify()

    @torch.inference_mode()
    def _verify(self) -> None:
        """Compare a ragged prefill and two decode steps with plain forward passes.

        Raises:
            ModelError: They differ: the architecture keeps state this cache does not hold.
        """
        if self._unknown_layers:
            raise self._unsuitable(f"it has {', '.join(self._unknown_layers)} layers")
        size = max(2, min(9, self._loaded.max_context))
        tokens = np.random.default_rng(0).integers(0, self._loaded.vocab_size, (2, size))
        starts = np.array([0, min(3, size - 2)])
        try:
            seen: list[torch.Tensor] = []
            width = size - 1
            ids = np.stack([np.roll(row[:width], start) for row, start in zip(tokens, starts, strict=True)])
            positions = np.arange(width)[None] - starts[:, None]
            positions[positions < 0] = width - starts[1]
            seen.append(self(0, ids, positions))
            last = np.stack([tokens[0, width : width + 1], tokens[1, width - starts[1] : size - starts[1]]])
            seen.append(self(0, last, np.array([[width], [width - starts[1]]])))
            plain = [self._plain(tokens[0]), self._plain(tokens[1, : size - starts[1]])]
        except (TypeError, ValueError, RuntimeError, IndexError, KeyError, AttributeError) as error:
            raise self._unsuitable(str(error)) from error
        for column, logits in zip((-2, -1), seen, strict=True):
            for row in range(2):
                expected = plain[row][column]
                gap = float((logits[row] - expected).abs().max())
                if not gap <= _TOLERANCE[self._loaded.dtype] * (1 + float(expected.abs().max())):
                    raise self._unsuitable(f"cached and plain logits differ by {gap:.2g}")

    def _plain(self, tokens: np.ndarray) -> torch.Tensor:
        ids = torch.from_numpy(tokens)[None].to(self._loaded.device)
        return self._model(input_ids=ids, use_cache=False).logits[0].float()

    def _unsuitable(self, reason: str) -> ModelError:
        return ModelError(
            f"The architecture of {self._loaded.name} ({type(self._model).__name__}) does not work with the batched "
            f"engine: {reason}.",
            hint="Use a model with plain attention layers (Llama, Qwen, Mistral, Gemma, GPT-NeoX, …), or serve it with "
            "another OpenAI-compatible server and give its URL.",
        )
