"""What an embedder is: texts in, unit vectors out. Knows no database and no model."""

from __future__ import annotations

from collections.abc import Sequence
from typing import TYPE_CHECKING, Protocol, TypeAlias

if TYPE_CHECKING:
    import numpy as np
    from numpy.typing import NDArray

    Matrix: TypeAlias = NDArray[np.float32]


class Embedder(Protocol):
    """Turns texts into vectors of length 1, so that their dot product is the cosine similarity.

    Attributes:
        name: With its version, e.g. `words-128.1`. It is kept with each vector: another name, other vectors.
        dimension: Length of a vector.
    """

    name: str
    dimension: int

    async def embed(self, texts: Sequence[str], *, bulk: bool = False) -> Matrix:
        """Vectors `[N, dimension]`, float32.

        Args:
            texts: What to embed; long ones are cut where the model ends.
            bulk: Nobody waits for it: it must not delay those who do.

        Raises:
            UpstreamError: The model does not answer.
        """
        ...

    async def close(self) -> None:
        """Let go of processes and connections."""
        ...


def normalised(vectors: Matrix) -> Matrix:
    """Rows of length 1. A row of zeros, from a text without a word, becomes a direction of its own."""
    import numpy as np

    vectors = np.array(vectors, dtype=np.float32, copy=True)
    lengths = np.linalg.norm(vectors, axis=1, keepdims=True)
    empty = ~(np.isfinite(lengths[:, 0]) & (lengths[:, 0] > 1e-12))
    vectors[empty], lengths[empty] = 0.0, 1.0
    vectors[empty, 0] = 1.0
    return (vectors / lengths).astype(np.float32)
