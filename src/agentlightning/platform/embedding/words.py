"""The embedder that is always there: a vector for each piece of a word, averaged. Milliseconds for a page, on any CPU.

The vectors were distilled from all-MiniLM-L6-v2 (Apache-2.0) in the way of model2vec: each piece of its vocabulary went
through the model alone, the 128 main directions were kept, and frequent pieces count less (SIF, Arora et al. 2017).
Word order means nothing to it. Spearman correlation on the English STS benchmark: 0.68; the model itself has 0.82,
hashed n-grams 0.40.
"""

from __future__ import annotations

import asyncio
import re
import unicodedata
import zlib
from collections.abc import Sequence
from functools import lru_cache
from pathlib import Path
from typing import TYPE_CHECKING, Any

from agentlightning.kit.errors import MissingExtraError
from agentlightning.platform.embedding.base import normalised

if TYPE_CHECKING:
    from agentlightning.platform.embedding.base import Matrix

FILE = Path(__file__).with_name("words.npz")
DIMENSION = 128

_IDEOGRAPHS = "\u3400-\u4dbf\u4e00-\u9fff\uf900-\ufaff"
_WORD = re.compile(rf"[{_IDEOGRAPHS}]|[^\W_{_IDEOGRAPHS}]+")
_LONGEST = 40  # letters of a word that is still looked up
_MAX_CHARS = 20_000
_FEW = 8  # texts that are embedded at once rather than in a thread


class WordEmbedder:
    """Averages the vectors of words' pieces; words that it does not know get a vector from their letters' hash."""

    name = f"words-{DIMENSION}.1"
    dimension = DIMENSION

    def __init__(self) -> None:
        self._table: _Table | None = None

    async def embed(self, texts: Sequence[str], *, bulk: bool = False) -> Matrix:
        if not bulk and sum(len(text) for text in texts) < 1000 and len(texts) <= _FEW and self._table is not None:
            return self._embed(texts)
        return await asyncio.to_thread(self._embed, list(texts))

    async def close(self) -> None:
        self._table = None

    def _embed(self, texts: Sequence[str]) -> Matrix:
        table = self._table = self._table or _table()
        return table.embed(texts)


class _Table:
    def __init__(self) -> None:
        try:
            import numpy as np
        except ImportError as error:
            raise MissingExtraError(
                "Search by meaning needs numpy.", hint="Run: pip install 'agentlightning[platform]'"
            ) from error
        with np.load(FILE, allow_pickle=False) as file:
            vectors: Any = file["vectors"].astype(np.float32) * file["scales"][:, None].astype(np.float32)
            words = file["words"].tobytes().decode().split("\n")
        self._np = np
        self._vectors = vectors
        self._numbers = {word: number for number, word in enumerate(words)}
        self._vector_of = lru_cache(200_000)(self._sum_of)

    def embed(self, texts: Sequence[str]) -> Matrix:
        np = self._np
        sums = np.zeros((len(texts), DIMENSION), np.float32)
        for row, text in enumerate(texts):
            for word in words_of(text[:_MAX_CHARS]):
                sums[row] += self._vector_of(word)
        return normalised(sums)

    def _sum_of(self, word: str) -> Any:
        pieces = self._pieces(word)
        if pieces:
            return self._vectors[pieces].sum(0)
        random = self._np.random.default_rng(zlib.crc32(word.encode()))
        return random.normal(0.0, 0.3 / DIMENSION**0.5, DIMENSION).astype(self._np.float32)

    def _pieces(self, word: str) -> list[int]:
        """Longest pieces first (WordPiece); nothing if some part of the word is in no piece."""
        found: list[int] = []
        start = 0
        while start < len(word):
            prefix = "##" if start else ""
            end = next((e for e in range(len(word), start, -1) if prefix + word[start:e] in self._numbers), None)
            if end is None:
                return []
            found.append(self._numbers[prefix + word[start:end]])
            start = end
        return found


@lru_cache(1)
def _table() -> _Table:
    return _Table()


def words_of(text: str) -> list[str]:
    """Words in lower case without accents; ideographs one by one."""
    plain = unicodedata.normalize("NFD", text.lower())
    plain = (
        "".join(letter for letter in plain if unicodedata.category(letter) != "Mn") if not plain.isascii() else plain
    )
    return [word[:_LONGEST] for word in _WORD.findall(plain)]
