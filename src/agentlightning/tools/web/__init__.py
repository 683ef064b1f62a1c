"""The one way out: a guarded HTTP client. No other client is made in this room or in `platform` (a test sees to it)."""

from agentlightning.tools.web.addresses import is_public
from agentlightning.tools.web.client import Fetched, GuardedClient, WebDeniedError, WebError

__all__ = ["Fetched", "GuardedClient", "WebDeniedError", "WebError", "is_public"]
