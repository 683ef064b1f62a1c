"""Resources: what an algorithm improves and an agent receives (prompts, model endpoints)."""

from __future__ import annotations

from typing import Annotated, Any, Literal

from pydantic import BaseModel, Field

from agentlightning.schemas.rollout import AttemptedRollout


class Resource(BaseModel):
    """Base of everything tunable."""

    resource_type: Any


class LLM(Resource):
    """An OpenAI-compatible endpoint and how to sample from it."""

    resource_type: Literal["llm"] = "llm"  # pyright: ignore[reportIncompatibleVariableOverride]
    endpoint: str
    """Base URL, e.g. `http://127.0.0.1:8000/v1`."""
    model: str
    api_key: str | None = None
    sampling_parameters: dict[str, Any] = Field(default_factory=dict[str, Any])
    """`temperature`, `max_tokens`, … as in the OpenAI API."""

    def get_base_url(self, *args: Any, **kwargs: Any) -> str:
        """The URL to give to an OpenAI-compatible client."""
        return self.endpoint


class ProxyLLM(LLM):
    """An endpoint behind the gateway; its URL names the rollout and the attempt, so every call lands on them."""

    resource_type: Literal["proxy_llm"] = "proxy_llm"  # type: ignore[assignment]  # pyright: ignore[reportIncompatibleVariableOverride]

    def get_base_url(self, rollout_id: str | None = None, attempt_id: str | None = None) -> str:  # pyright: ignore[reportIncompatibleMethodOverride]
        """Return the rollout-scoped base URL, or the plain endpoint when neither id is given.

        Raises:
            ValueError: Only one of the two ids is given.
        """
        if rollout_id is None and attempt_id is None:
            return self.endpoint
        if rollout_id is None or attempt_id is None:
            raise ValueError("rollout_id and attempt_id belong together: give both or neither")
        base = self.endpoint.rstrip("/")
        suffix = "/v1" if base.endswith("/v1") else ""
        return f"{base.removesuffix('/v1')}/rollout/{rollout_id}/attempt/{attempt_id}{suffix}"

    def with_attempted_rollout(self, rollout: AttemptedRollout) -> LLM:
        """A plain `LLM` whose endpoint is bound to this attempt."""
        return LLM(
            endpoint=self.get_base_url(rollout.rollout_id, rollout.attempt.attempt_id),
            model=self.model,
            api_key=self.api_key,
            sampling_parameters=self.sampling_parameters,
        )


class PromptTemplate(Resource):
    """A prompt with placeholders."""

    resource_type: Literal["prompt_template"] = "prompt_template"  # pyright: ignore[reportIncompatibleVariableOverride]
    template: str
    engine: Literal["jinja", "f-string", "poml"] = "f-string"

    def format(self, **kwargs: Any) -> str:
        """Fill the placeholders.

        Raises:
            KeyError: A placeholder of an f-string template is not given.
            NotImplementedError: The engine `poml` is not available here.
        """
        if self.engine == "f-string":
            return self.template.format(**kwargs)
        if self.engine == "jinja":
            from jinja2 import StrictUndefined
            from jinja2.sandbox import SandboxedEnvironment

            return SandboxedEnvironment(undefined=StrictUndefined).from_string(self.template).render(**kwargs)
        raise NotImplementedError("The poml engine is not supported; use engine='f-string' or engine='jinja'.")


ResourceUnion = Annotated[LLM | ProxyLLM | PromptTemplate, Field(discriminator="resource_type")]
NamedResources = dict[str, ResourceUnion]


class ResourcesUpdate(BaseModel):
    """One immutable snapshot of named resources."""

    resources_id: str
    create_time: float
    update_time: float
    version: int
    resources: NamedResources
