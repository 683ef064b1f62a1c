"""Models from values that are known to be right, without validating them again."""

from __future__ import annotations

from collections.abc import Iterable
from functools import cache
from typing import Any, TypeVar

from pydantic import BaseModel

M = TypeVar("M", bound=BaseModel)

_new, _set = object.__new__, object.__setattr__


def construct(model: type[M], values: dict[str, Any], given: Iterable[str] | None = None) -> M:
    """Build a model from values that were validated when they were stored; every field has to be there.

    The same as `model_construct`, which spends ten times as long on defaults and aliases that do not occur here.

    Args:
        model: What to build.
        values: Its fields; the dict becomes the object's own.
        given: Those that count as set; by default all.
    """
    fields, takes_extra = _shape(model)
    extra: dict[str, Any] | None = None
    if takes_extra:
        extra = {} if values.keys() <= fields else {key: values.pop(key) for key in values.keys() - fields}
    return assemble(model, values, set(values if given is None else given), extra)


def assemble(model: type[M], values: dict[str, Any], given: set[str], extra: dict[str, Any] | None) -> M:
    """`construct` for those who know the model: `extra` is `{}` where it takes more fields, else `None`."""
    instance = _new(model)
    _set(instance, "__dict__", values)
    _set(instance, "__pydantic_fields_set__", given)
    _set(instance, "__pydantic_extra__", extra)
    _set(instance, "__pydantic_private__", None)
    return instance


@cache
def _shape(model: type[BaseModel]) -> tuple[frozenset[str], bool]:
    return frozenset(model.__pydantic_fields__), model.model_config.get("extra") == "allow"
