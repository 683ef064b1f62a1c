"""Personal data and secrets in what the platform says about people's work: log lines, audit details, kept errors.

Off unless a policy is set, and then nothing is in the way. What users ask for and are answered stays theirs as it is;
the copies that the store keeps of it are masked, here and, for model calls, by the gateway. Who did something stays in
the audit log, too.
"""

from __future__ import annotations

import contextlib
import logging
from collections.abc import Callable, Generator
from typing import Any

import msgspec

from agentlightning.gateway import MaskingPolicy
from agentlightning.gateway.masking import LogMask, Masker
from agentlightning.platform.settings import PlatformSettings

_masks: list[Callable[[str], str]] = []
"""Of the platforms that run in this process, the newest last."""
_factories: dict[Callable[..., logging.LogRecord], Callable[..., logging.LogRecord]] = {}
"""Of log records: ours, and what was there before."""


class MaskedRecord(logging.LogRecord):
    """A log record that holds masked text only, whichever handler writes it; tracebacks when they are written."""

    def __init__(self, *args: Any, **kwargs: Any) -> None:
        super().__init__(*args, **kwargs)
        try:
            message = self.getMessage()
        except (TypeError, ValueError):  # its arguments do not fit: the handler will say so
            return
        masked = _masked(message)
        if masked != message:
            self.msg, self.args = masked, ()
        if self.stack_info:
            self.stack_info = _masked(self.stack_info)

    def __setattr__(self, name: str, value: Any) -> None:
        """What a formatter makes of an exception it keeps here."""
        super().__setattr__(name, _masked(value) if name == "exc_text" and value else value)


class Masking:
    """What a platform masks.

    Args:
        policy: `None` masks nothing.

    Raises:
        ConfigError: The policy names what there is not.
        MissingExtraError: The libraries are not installed.
    """

    def __init__(self, policy: MaskingPolicy | None) -> None:
        self._masker = None if policy is None else Masker(policy)
        self._places = frozenset[str]() if policy is None else policy.places

    def text(self, text: str) -> str:
        """An error's words."""
        return text if self._masker is None or "errors" not in self._places else self._masker.text(text)

    def record(self, value: Any, place: str) -> Any:
        """A copy, for the store, of what somebody asked (`prompts`) or was answered (`completions`): JSON or text."""
        return value if self._masker is None or place not in self._places else self._masker.value(value, set())

    def details(self, details: dict[str, Any]) -> dict[str, Any]:
        """What the audit log tells of a change; names of fields stay."""
        masker = self._masker
        if masker is None or "logs" not in self._places:
            return details
        return {name: masker.value(value, set()) for name, value in details.items()}

    @contextlib.contextmanager
    def logs(self) -> Generator[None]:
        """Mask every line that is logged in this process within the block."""
        if self._masker is None or "logs" not in self._places:
            yield
            return
        mask = self._masker.text
        if not _masks:
            logging.setLogRecordFactory(_factory(logging.getLogRecordFactory()))
        _masks.append(mask)
        try:
            yield
        finally:
            _masks.remove(mask)
            made = logging.getLogRecordFactory()
            if not _masks and made in _factories:  # else somebody has put another one around it, which stays
                logging.setLogRecordFactory(_factories.pop(made))


def policy_of(settings: PlatformSettings) -> MaskingPolicy | None:
    """The policy that the settings ask for.

    Raises:
        ConfigError: A kind is unknown.
    """
    return None if not settings.mask else MaskingPolicy.parse(settings.mask, phone_regions=settings.mask_phone_regions)


def without_logs(policy: MaskingPolicy | None) -> MaskingPolicy | None:
    """The same for whom log lines are none of their business."""
    return None if policy is None else msgspec.structs.replace(policy, places=policy.places - {"logs"})


def _masked(text: str) -> str:
    return _masks[-1](text) if _masks else text


def _factory(before: Callable[..., logging.LogRecord]) -> Callable[..., logging.LogRecord]:
    if before is logging.LogRecord:
        _factories[MaskedRecord] = before
        return MaskedRecord
    mask = LogMask(_masked)

    def made(*args: Any, **kwargs: Any) -> logging.LogRecord:
        record = before(*args, **kwargs)
        mask.filter(record)
        return record

    _factories[made] = before
    return made
