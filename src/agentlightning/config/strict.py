"""Strict settings models: an unknown key is an error that names the nearest known one."""

from __future__ import annotations

import difflib
from typing import Any

from pydantic import BaseModel, ConfigDict, ValidationError

from agentlightning.kit.errors import ConfigError


class StrictModel(BaseModel):
    """Base of run configs: immutable, no unknown keys, no silently ignored ones.

    Raises:
        ConfigError: On construction, when a key is unknown or a value wrong; the message lists every fault and the
            closest valid key.
    """

    model_config = ConfigDict(extra="forbid", frozen=True)

    def __init__(self, **values: Any) -> None:
        try:
            super().__init__(**values)
        except ValidationError as error:
            known = list(type(self).model_fields)
            faults = [_describe(fault, known) for fault in error.errors()]
            raise ConfigError(
                f"{type(self).__name__}: " + "; ".join(faults) + ".",
                hint=f"Known keys: {', '.join(known)}.",
                details={"faults": faults},
            ) from error


def _describe(fault: Any, known: list[str]) -> str:
    key = ".".join(str(part) for part in fault["loc"])
    if fault["type"] == "extra_forbidden":
        close = difflib.get_close_matches(key, known, n=1)
        return f"{key!r} is not honoured by this backend" + (f" (did you mean {close[0]!r}?)" if close else "")
    return f"{key}: {fault['msg']} (got {fault['input']!r})"
