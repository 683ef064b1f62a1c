"""Runs inside LiteLLM's proxy, in LiteLLM's environment: appends what its callback is told to the file CAPTURE_FILE.

The least that a user has to write to keep calls with LiteLLM; the file is neither synced nor waited for.
"""

import json
import os

from litellm.integrations.custom_logger import CustomLogger  # pyright: ignore[reportMissingImports]


class Capture(CustomLogger):
    async def async_log_success_event(self, kwargs, response_obj, start_time, end_time):
        response = response_obj.model_dump() if hasattr(response_obj, "model_dump") else response_obj
        line = json.dumps({"messages": kwargs.get("messages"), "response": response}, default=str)
        with open(os.environ["CAPTURE_FILE"], "a") as stream:  # noqa: ASYNC230 - a few microseconds, the cheapest there is
            stream.write(line + "\n")


capture = Capture()
