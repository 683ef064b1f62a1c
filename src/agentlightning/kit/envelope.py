"""The envelope of our own JSON APIs: success with data, or an error with a code. Pure data."""

from __future__ import annotations

import time
from typing import Any

from agentlightning.kit.clock import iso
from agentlightning.kit.errors import AgentLightningError
from agentlightning.kit.ids import new_id


def success(data: Any, message: str = "") -> dict[str, Any]:
    """`{"success": true, "data", "message", "timestamp", "request_id"}`."""
    return {"success": True, "data": data, "message": message, **_about()}


def failure(error: AgentLightningError) -> dict[str, Any]:
    """`{"success": false, "error": {"code", "message", "hint", "details"}, "timestamp", "request_id"}`."""
    return {"success": False, "error": error.as_dict(), **_about()}


def _about() -> dict[str, str]:
    return {"timestamp": iso(time.time()), "request_id": new_id("req")}
