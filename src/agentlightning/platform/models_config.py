"""What is said when there is no model to do the work."""

from __future__ import annotations

from agentlightning.kit.errors import AgentLightningError

WAYS = (
    "OpenAI: set OPENAI_API_KEY (or: agl platform secrets set OPENAI_API_KEY), and AGL_DEFAULT_MODEL to a model's name",
    "Anthropic: set ANTHROPIC_API_KEY (or keep it the same way), and AGL_DEFAULT_MODEL to a model's name",
    "any compatible server: set OPENAI_BASE_URL (and OPENAI_API_KEY, if it asks for one)",
    "a local model: agl up --model DIRECTORY",
)


NO_MODEL = "no model is configured; only agents for the embedded one (sql_agent) work. To configure one:"


class ModelNotConfiguredError(AgentLightningError):
    """No model is configured; the details say how to configure one."""

    code = "MODEL_NOT_CONFIGURED"
    status = 503

    def __init__(self, message: str = "No model is configured.") -> None:
        super().__init__(message, hint=f"{'; '.join(WAYS)}.", details={"ways": list(WAYS)})
