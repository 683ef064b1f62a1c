"""TOML text as a pydantic model; a fault is told with its line and the name of the field. Reads no files."""

from __future__ import annotations

import difflib
import tomllib
from collections.abc import Sequence
from typing import Any, TypeVar, cast

from pydantic import BaseModel, ValidationError

from agentlightning.kit.errors import ConfigError

M = TypeVar("M", bound=BaseModel)
Path = tuple[str | int, ...]


class TomlText:
    """A TOML document and where its fields stand.

    Args:
        text: The document.
        source: Its name in messages, e.g. the file's.

    Raises:
        ConfigError: It is no TOML; the message says where.
    """

    def __init__(self, text: str, source: str) -> None:
        self._lines = text.splitlines()
        self.source = source
        try:
            self.data: dict[str, Any] = tomllib.loads(text)
        except tomllib.TOMLDecodeError as error:
            raise ConfigError(f"{source} is no valid TOML: {error}.") from error

    def parse(self, model: type[M]) -> M:
        """The document as a model.

        Raises:
            ConfigError: It has faults; all are listed, each with its line.
        """
        try:
            return model.model_validate(self.data)
        except ValidationError as error:
            faults = [(_path(fault["loc"], self.data), _describe(fault, model)) for fault in error.errors()]
            raise self.error(faults) from error

    def error(self, faults: Sequence[tuple[Path, str]]) -> ConfigError:
        """The error for fields that are wrong, by their paths."""
        told = [f"line {self.line(path)}: {_dotted(path)}: {what}" for path, what in dict(faults).items()]
        return ConfigError(f"{self.source}: " + "; ".join(told) + ".", details={"source": self.source, "faults": told})

    def line(self, path: Path) -> int:
        """The 1-based line in which a field begins; that of the innermost table or field around it when it is missing.

        The first line after which the document has the field: exact for every way to write TOML, and quadratic, which
        does not matter for a file of settings that is wrong.
        """
        while path:
            begun = 1
            for number in range(1, len(self._lines) + 1):
                try:
                    data = tomllib.loads("\n".join(self._lines[:number]))
                except tomllib.TOMLDecodeError:
                    continue  # in the middle of a value of several lines
                if _has(data, path):
                    return _first_of(self._lines, begun, number)
                begun = number + 1
            path = path[:-1]
        return 1


def _first_of(lines: list[str], begun: int, ended: int) -> int:
    """The first line that is neither blank nor a comment."""
    return next((n for n in range(begun, ended) if lines[n - 1].split("#", 1)[0].strip()), ended)


def _has(data: Any, path: Path) -> bool:
    for part in path:
        if isinstance(data, list) and isinstance(part, int):
            items = cast("list[Any]", data)
            if part >= len(items):
                return False
            data = items[part]
        elif isinstance(data, dict) and part in data:
            data = cast("dict[Any, Any]", data)[part]
        else:
            return False
    return True


def _path(loc: tuple[str | int, ...], data: Any) -> Path:
    """The part of pydantic's location that is in the document: it also names the alternatives of unions."""
    path: list[str | int] = []
    for position, part in enumerate(loc):
        if _has(data, (*path, part)):
            path.append(part)
        elif position == len(loc) - 1:
            path.append(part)  # the missing field itself
    return tuple(path)


def _dotted(path: Path) -> str:
    text = ""
    for part in path:
        text += f"[{part}]" if isinstance(part, int) else f".{part}"
    return text.lstrip(".") or "the document"


def _describe(fault: Any, model: type[BaseModel]) -> str:
    if fault["type"] != "extra_forbidden":
        return str(fault["msg"]).removeprefix("Value error, ")
    close = difflib.get_close_matches(str(fault["loc"][-1]), sorted(_field_names(model)), n=1)
    return "there is no such setting" + (f"; did you mean {close[0]!r}?" if close else "")


def _field_names(model: type[BaseModel]) -> set[str]:
    """The names of a model's fields, and of those of the models in it."""
    found: set[str] = set()
    waiting: list[Any] = [model]
    while waiting:
        kind = waiting.pop()
        if isinstance(kind, type) and issubclass(kind, BaseModel):
            found |= set(kind.model_fields)
            waiting += [field.annotation for field in kind.model_fields.values()]
        else:
            waiting += getattr(kind, "__args__", ())
    return found
