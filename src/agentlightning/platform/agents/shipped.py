"""The agents that come with the program, read from `definitions/`. Knows no database."""

from __future__ import annotations

import functools
import hashlib
import tomllib
from pathlib import Path
from typing import Any

from pydantic import ValidationError

from agentlightning.kit.errors import ConfigError, NotFoundError
from agentlightning.schemas.agent import AgentDefinition

FOLDER = Path(__file__).parent / "definitions"


@functools.cache
def shipped_names() -> tuple[str, ...]:
    """Of all agents that come with the program."""
    return tuple(sorted(path.stem for path in FOLDER.glob("*.toml")))


def digest(name: str) -> str:
    """Of a shipped definition's file; another content has another one."""
    return hashlib.sha256(_path(name).read_bytes()).hexdigest()


def shipped(name: str) -> AgentDefinition:
    """The definition of that name as it comes with the program.

    Raises:
        NotFoundError: There is none.
        ConfigError: The file holds no definition.
    """
    return read_definition(_path(name))


def read_definition(path: Path) -> AgentDefinition:
    """From a TOML file, whose name is the agent's.

    Raises:
        ConfigError: It holds no definition; the message says what is wrong with it.
    """
    try:
        data: dict[str, Any] = tomllib.loads(path.read_text(encoding="utf-8"))
        return AgentDefinition.model_validate({"name": path.stem, **data})
    except (OSError, UnicodeDecodeError, tomllib.TOMLDecodeError) as error:
        raise ConfigError(f"{path.name} cannot be read: {error}.") from error
    except ValidationError as error:
        raise ConfigError(f"{path.name} is no agent: {problems_of(error)}") from error


def problems_of(error: ValidationError) -> str:
    """What is wrong with a definition, in a line; without the values."""
    found = error.errors(include_url=False, include_context=False, include_input=False)
    return "; ".join(f"{'.'.join(map(str, item['loc'])) or 'as a whole'}: {item['msg']}" for item in found[:10])


def _path(name: str) -> Path:
    if name not in shipped_names():
        raise NotFoundError(
            f"No agent {name!r} comes with the program.", hint=f"There are {', '.join(shipped_names())}."
        )
    return FOLDER / f"{name}.toml"
