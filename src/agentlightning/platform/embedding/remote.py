"""Embeddings of a server that speaks OpenAI's protocol, such as our gateway."""

from __future__ import annotations

from collections.abc import Sequence
from typing import TYPE_CHECKING, Any

from agentlightning.kit.errors import UpstreamError
from agentlightning.platform.embedding.base import normalised

if TYPE_CHECKING:
    from agentlightning.platform.embedding.base import Matrix

_TIMEOUT_S = 30.0
_AT_ONCE = 64


class RemoteEmbedder:
    """`POST {url}/embeddings`. The address comes from the operator's settings, never from a request.

    Args:
        url: Up to and with `/v1`.
        model: As the server calls it.
        dimension: Length of its vectors.
        key: Sent as a bearer token; `None` sends none.
    """

    def __init__(self, url: str, model: str, dimension: int, key: str | None = None) -> None:
        import httpx

        self.name = f"{model}-{dimension}"[:100]
        self.dimension = dimension
        self._model = model
        headers = {} if key is None else {"Authorization": f"Bearer {key}"}
        self._client = httpx.AsyncClient(base_url=url.rstrip("/") + "/", timeout=_TIMEOUT_S, headers=headers)

    async def embed(self, texts: Sequence[str], *, bulk: bool = False) -> Matrix:
        import numpy as np

        del bulk  # the server has its own queue
        parts = [await self._ask(list(texts[start : start + _AT_ONCE])) for start in range(0, len(texts), _AT_ONCE)]
        return np.concatenate(parts) if parts else np.zeros((0, self.dimension), np.float32)

    async def close(self) -> None:
        await self._client.aclose()

    async def _ask(self, texts: list[str]) -> Matrix:
        import httpx
        import numpy as np

        body = {"model": self._model, "input": texts, "encoding_format": "float"}
        try:
            answer = await self._client.post("embeddings", json=body)
            answer.raise_for_status()
            data: list[dict[str, Any]] = sorted(answer.json()["data"], key=lambda entry: entry["index"])
            vectors = np.asarray([entry["embedding"] for entry in data], np.float32)
        except (httpx.HTTPError, KeyError, TypeError, ValueError) as error:
            raise UpstreamError(
                f"The embedding server does not answer as it should ({type(error).__name__}).",
                hint="Check AGL_EMBEDDER_URL and AGL_EMBEDDER_MODEL.",
            ) from error
        if vectors.shape != (len(texts), self.dimension):
            raise UpstreamError(
                f"The embedding server answers vectors of shape {vectors.shape}, not {(len(texts), self.dimension)}.",
                hint="Set AGL_EMBEDDER_DIMENSION to what the model gives.",
            )
        return normalised(vectors)
