"""Log output of this package for people: one call that shows it on the console or in files. Knows no messages."""

from __future__ import annotations

import logging
from collections.abc import Mapping, Sequence
from typing import Any

_FORMAT = "%(asctime)s [%(levelname)s] (%(process)d %(name)s) %(message)s"
_TIME = "%H:%M:%S"
_OURS = "_agentlightning_handler"


def setup_logging(
    level: int | str = "INFO",
    *,
    console: bool = True,
    color: bool | Mapping[str, Any] = True,
    propagate: bool = False,
    disable_existing_loggers: bool = False,
    capture_warnings: bool = False,
    submodule_levels: Mapping[str, int | str] | None = None,
    extra_handlers: Sequence[logging.Handler] | None = None,
    formatter: logging.Formatter | None = None,
    apply_to: Sequence[str] | None = None,
    files: str | Mapping[str, str] | None = None,
) -> None:
    """Show what the package logs. Other loggers stay as they are, but for those in `apply_to`.

    Args:
        level: Lowest level shown, a number or a name.
        console: Write to standard error.
        color: In colours; a mapping has arguments of `rich.logging.RichHandler`.
        propagate: Hand messages on to the root logger, too.
        disable_existing_loggers: Silence loggers that exist already.
        capture_warnings: Let Python's warnings go to the log.
        submodule_levels: Levels of single loggers by name.
        extra_handlers: Handlers of your own.
        formatter: Of console and files.
        apply_to: Further loggers that get the same handlers and level.
        files: A file for everything, or files by logger name.

    Raises:
        ValueError: An unknown level.
    """
    logger = setup_module_logging(
        level,
        console=console,
        color=color,
        propagate=propagate,
        disable_existing_loggers=disable_existing_loggers,
    )
    for handler in extra_handlers or ():
        _add(logger, handler)
    by_name = {logger.name: files} if isinstance(files, str) else dict(files or {})
    for name, path in by_name.items():
        handler = logging.FileHandler(path, encoding="utf-8")
        handler.setFormatter(logging.Formatter(_FORMAT, _TIME))
        _add(logging.getLogger(name), handler)
    if formatter is not None:
        for handler in logger.handlers:
            handler.setFormatter(formatter)
    for name, own_level in (submodule_levels or {}).items():
        logging.getLogger(name).setLevel(_number(own_level))
    for name in apply_to or ():
        other = logging.getLogger(name)
        other.setLevel(_number(level))
        other.propagate = propagate
        _clear(other)
        for handler in logger.handlers:
            other.addHandler(handler)
    logging.captureWarnings(capture_warnings)


def setup_module_logging(
    level: int | str = "INFO",
    *,
    name: str = "agentlightning",
    console: bool = True,
    color: bool | Mapping[str, Any] = True,
    propagate: bool = False,
    disable_existing_loggers: bool = False,
) -> logging.Logger:
    """As `setup_logging`, for the one logger `name`; calling it again replaces what it did.

    Returns:
        The logger.

    Raises:
        ValueError: An unknown level.
    """
    number = _number(level)
    if disable_existing_loggers:
        for other in list(logging.root.manager.loggerDict.values()):
            if isinstance(other, logging.Logger) and other.name.partition(".")[0] != name:
                other.disabled = True
    logger = logging.getLogger(name)
    logger.setLevel(number)
    logger.propagate = propagate
    _clear(logger)
    if console:
        _add(logger, _console(color))
    return logger


def _console(color: bool | Mapping[str, Any]) -> logging.Handler:
    if color is False:
        handler = logging.StreamHandler()
        handler.setFormatter(logging.Formatter(_FORMAT, _TIME))
        return handler
    from rich.console import Console
    from rich.logging import RichHandler

    options: dict[str, Any] = {"console": Console(stderr=True), "show_path": False}
    rich = RichHandler(**{**options, **(dict(color) if isinstance(color, Mapping) else {})})
    rich.setFormatter(logging.Formatter("(%(process)d %(name)s) %(message)s", _TIME))
    return rich


def _add(logger: logging.Logger, handler: logging.Handler) -> None:
    setattr(handler, _OURS, True)
    logger.addHandler(handler)


def _clear(logger: logging.Logger) -> None:
    for handler in list(logger.handlers):
        if getattr(handler, _OURS, False):
            logger.removeHandler(handler)
            handler.close()


def _number(level: int | str) -> int:
    if isinstance(level, int):
        return level
    known = logging.getLevelNamesMapping()
    if level.upper() not in known:
        raise ValueError(f"{level!r} is no level; use one of {', '.join(known)}")
    return known[level.upper()]
