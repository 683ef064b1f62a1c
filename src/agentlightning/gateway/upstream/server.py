"""What the upstreams that speak HTTP to one server have in common: the connection, the key and the model's name."""

from __future__ import annotations

import os
from collections.abc import Callable, Mapping

from agentlightning.gateway.upstream.connection import Connection
from agentlightning.gateway.upstream.retry import RetryPolicy


class ServerUpstream:
    """One server, and one name for its model if that is given.

    Args:
        base_url: Where paths are appended.
        headers: What is sent with a key, or with none.
        api_key: `None` takes the variable `api_key_env`, if set. Never logged or recorded.
        api_key_env: Name of the environment variable with the key.
        model: Model name to send instead of the agent's.
        connect_timeout_s: Longest time to connect.
        idle_timeout_s: Longest silence of the server during an answer.
        retry: When and how often to try again.
    """

    def __init__(
        self,
        base_url: str,
        headers: Callable[[str | None], Mapping[str, str]],
        *,
        api_key: str | None,
        api_key_env: str,
        model: str | None,
        connect_timeout_s: float,
        idle_timeout_s: float,
        retry: RetryPolicy | None,
    ) -> None:
        self.key_env = api_key_env or None if api_key is None else None
        self._headers = headers
        self._server = Connection(
            base_url,
            headers(api_key or os.environ.get(api_key_env)),
            connect_timeout_s=connect_timeout_s,
            idle_timeout_s=idle_timeout_s,
            retry=retry,
        )
        self._model = model

    def __repr__(self) -> str:
        return f"{type(self).__name__}({self.base_url!r}, model={self._model!r})"

    @property
    def base_url(self) -> str:
        """The server's, without credentials."""
        return self._server.base_url

    def use_key(self, key: str | None) -> None:
        """Send another key, or none, from the next call on."""
        self._server.use_headers(self._headers(key))

    def names(self) -> list[str]:
        """The model it was made for, if one was named."""
        return [self._model] if self._model else []

    async def aclose(self) -> None:
        """Close the connections."""
        await self._server.aclose()
