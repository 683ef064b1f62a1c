"""The platform itself, as typed calls: state, numbers, configuration, stored secrets."""

from __future__ import annotations

from collections.abc import Iterator
from typing import Any

from agentlightning.client.reports import Pool, Secret, SystemConfig, SystemStats, SystemStatus
from agentlightning.client.resources import Resource
from agentlightning.client.transport import part

_CONFIG = "/api/v2/system/config"
_SECRETS = "/api/v2/system/secrets"


class System(Resource):
    """What it is doing; reading needs `system:read`, changing `system:write`."""

    def status(self) -> SystemStatus:
        """State of every part, of the worker that answers and of its models."""
        return SystemStatus.model_validate(self._transport.call("GET", "/api/v2/system/status"))

    def stats(self) -> SystemStats:
        """How much there is: users, agents, tasks, knowledge, rollouts, calls."""
        return SystemStats.model_validate(self._transport.call("GET", "/api/v2/system/stats"))

    def pool(self) -> Pool:
        """The queue of tasks, and who takes from it."""
        return Pool.model_validate(self._transport.call("GET", "/api/v2/pool"))

    def config(self) -> SystemConfig:
        """What was set while it runs, and what is in force."""
        return SystemConfig.model_validate(self._transport.call("GET", _CONFIG))

    def set_config(self, *, version: int, **settings: Any) -> SystemConfig:
        """Change it while it runs; every worker has it within seconds.

        Args:
            version: The one that was read.
            settings: All that shall be set, e.g. `requests_per_minute=600`; the rest has the environment's values.

        Raises:
            ConflictError: Somebody else changed it meanwhile.
        """
        body = {"version": version, "config": settings}
        return SystemConfig.model_validate(self._transport.call("PUT", _CONFIG, json=body))

    def secrets(self) -> Iterator[Secret]:
        """Names of the secrets that are kept encrypted; no values."""
        return iter([Secret.model_validate(each) for each in self._transport.call("GET", _SECRETS)["secrets"]])

    def set_secret(self, name: str, value: str) -> Secret:
        """Keep one under the name of the environment variable that it stands for, e.g. `OPENAI_API_KEY`."""
        path = f"{_SECRETS}/{part(name)}"
        return Secret.model_validate(self._transport.call("PUT", path, json={"value": value}, repeatable=True))

    def delete_secret(self, name: str) -> None:
        """Keep it no longer."""
        self._transport.call("DELETE", f"{_SECRETS}/{part(name)}")
