"""Fills the arguments of a user's function by their names: from the task, the resources and the rollout.

Knows nothing of how the function is run.
"""

from __future__ import annotations

import inspect
import logging
from collections.abc import Callable, Mapping
from typing import Any, cast

from agentlightning.agent.errors import AgentSignatureError, MissingResourceError
from agentlightning.kit.errors import BadInputError
from agentlightning.schemas import LLM, AttemptedRollout, NamedResources, PromptTemplate, ProxyLLM, Rollout

logger = logging.getLogger(__name__)

TASK = "task"
_TYPED_RESOURCES: dict[str, type[LLM | PromptTemplate]] = {"llm": LLM, "prompt_template": PromptTemplate}
_POSITIONAL = (inspect.Parameter.POSITIONAL_ONLY, inspect.Parameter.POSITIONAL_OR_KEYWORD)
_MISSING = object()

Arguments = tuple[list[Any], dict[str, Any]]


class Injector:
    """Binds one function's arguments, many times.

    The task goes to the parameter `task`; without one, a mapping is spread over the parameters whose names it has, when
    that fills all that are required; else the task goes to the first parameter that is not otherwise provided for.
    `llm` and `prompt_template` take the resource of that name, else the first of that type; `resources` and `rollout`
    take what they say; any other resource comes by its key.
    """

    def __init__(self, function: Callable[..., Any], *, strip_proxy: bool = True) -> None:
        self.name = getattr(function, "__name__", type(function).__name__)
        self._strip_proxy = strip_proxy
        try:
            parameters = list(inspect.signature(function).parameters.values())
        except (TypeError, ValueError) as error:  # some builtins have none
            raise AgentSignatureError(
                f"The arguments of {self.name} cannot be read: {error}", hint="Wrap it in a function of your own."
            ) from error
        self._parameters = [p for p in parameters if p.kind not in (p.VAR_POSITIONAL, p.VAR_KEYWORD)]
        self._takes_any_name = any(p.kind is p.VAR_KEYWORD for p in parameters)
        self._takes_any_value = any(p.kind is p.VAR_POSITIONAL for p in parameters)
        self.names = frozenset(p.name for p in self._parameters)
        self.required = [p.name for p in self._parameters if p.default is p.empty]

    def bind(self, task: Any, resources: NamedResources, rollout: Rollout) -> Arguments:
        """Positional and keyword arguments for one call.

        Raises:
            MissingResourceError: A required `llm` or `prompt_template` is not among the resources.
            AgentSignatureError: A required argument cannot be filled.
        """
        given = self.offers(resources, rollout)
        loose = self._place_task(task, given)
        missing = [name for name in self.required if name not in given]
        if missing:
            raise self._unfilled(missing, task, resources)
        return self._ordered(given, loose)

    def fill(self, offers: Mapping[str, Any]) -> Arguments:
        """Arguments taken from `offers` by name; the caller has seen to it that all required ones are there."""
        return self._ordered({name: offers[name] for name in self.names if name in offers}, [])

    def offers(self, resources: NamedResources, rollout: Rollout) -> dict[str, Any]:
        """What resources and rollout have for this function's parameters."""
        given: dict[str, Any] = {}
        for name in self.names:
            value = self._provided(name, resources, rollout)
            if value is not _MISSING:
                given[name] = value
        return given

    def _provided(self, name: str, resources: NamedResources, rollout: Rollout) -> Any:
        if name == TASK:
            return _MISSING
        if name == "rollout":
            return rollout
        if name == "resources":
            return resources
        kind = _TYPED_RESOURCES.get(name)
        if kind is not None:
            return self._typed(name, kind, resources, rollout)
        return self._strip(resources[name], rollout) if name in resources else _MISSING

    def _typed(self, name: str, kind: type[Any], resources: NamedResources, rollout: Rollout) -> Any:
        named = resources.get(name)
        if isinstance(named, kind):
            return self._strip(named, rollout)
        matching = [key for key, resource in resources.items() if isinstance(resource, kind)]
        if not matching:
            return _MISSING
        if len(matching) > 1:
            logger.warning("%s asks for %r; of %s it gets %r.", self.name, name, matching, matching[0])
        return self._strip(resources[matching[0]], rollout)

    def _strip(self, resource: Any, rollout: Rollout) -> Any:
        if self._strip_proxy and isinstance(resource, ProxyLLM) and isinstance(rollout, AttemptedRollout):
            return resource.with_attempted_rollout(rollout)
        return resource

    def _place_task(self, task: Any, given: dict[str, Any]) -> list[Any] | dict[str, Any]:
        """Put the task into `given`; returns what goes to `*args` or `**kwargs`."""
        if TASK in self.names:
            given[TASK] = task
            return []
        if self._can_spread(task, given):
            given.update({name: value for name, value in task.items() if name in self.names})
            if self._takes_any_name:
                return {name: value for name, value in task.items() if name not in self.names}
            return []
        for parameter in self._parameters:
            if parameter.kind in _POSITIONAL and parameter.name not in given:
                given[parameter.name] = task
                return []
        if self._takes_any_value:
            return [task]
        raise AgentSignatureError(
            f"{self.name} has no argument for the task.", hint="Give it a first argument, e.g. `def agent(task):`."
        )

    def _can_spread(self, task: Any, given: Mapping[str, Any]) -> bool:
        if not isinstance(task, Mapping) or not all(isinstance(key, str) for key in cast("Any", task)):
            return False
        keys = set(cast("Mapping[str, Any]", task))
        if self._takes_any_name and not self._parameters:
            return True
        return bool(keys & self.names) and set(self.required) <= keys | set(given)

    def _ordered(self, given: dict[str, Any], loose: list[Any] | dict[str, Any]) -> Arguments:
        if isinstance(loose, dict):
            given.update(loose)
        positional_only = [p for p in self._parameters if p.kind is p.POSITIONAL_ONLY and p.name in given]
        values = [given.pop(p.name) for p in positional_only]
        if isinstance(loose, list):
            values.extend(loose)
        return values, given

    def _unfilled(self, missing: list[str], task: Any, resources: NamedResources) -> BadInputError:
        there = ", ".join(f"{key} ({type(value).__name__})" for key, value in resources.items()) or "none"
        wanted = [name for name in missing if name in _TYPED_RESOURCES]
        if wanted:
            kind = _TYPED_RESOURCES[wanted[0]].__name__
            return MissingResourceError(
                f"{self.name} asks for {wanted[0]!r}, but there is no {kind} among the resources: {there}.",
                hint=f'Add one, e.g. Trainer(initial_resources={{"{wanted[0]}": {kind}(...)}}).',
            )
        keys = sorted(map(str, task)) if isinstance(task, Mapping) else type(task).__name__
        return AgentSignatureError(
            f"{self.name} has arguments that nothing fills: {', '.join(missing)}.",
            hint=f"There are task, resources and rollout; resources: {there}; task: {keys}.",
        )
