"""A Python client of the platform's API: `Platform`. Knows the API's shapes, and nothing of servers or databases."""

from agentlightning.client.platform import Platform
from agentlightning.client.resources import TimedOutError
from agentlightning.client.transport import PlatformError

__all__ = ["Platform", "PlatformError", "TimedOutError"]
