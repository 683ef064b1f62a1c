"""Agent Lightning: the trainer that makes any AI agent better.

Public names load on first use, so that `import agentlightning` stays fast and pulls in neither torch nor a server.
"""

from __future__ import annotations

import importlib
from typing import Any

__version__ = "0.4.0.dev0"

# 0.3's module paths (`agentlightning.types`, …) are in a folder of their own.
__path__ = [*__path__, *(f"{folder}/compat" for folder in __path__)]

# name -> room that re-exports it
_PUBLIC: dict[str, str] = {}


def _register(room: str, names: str) -> None:
    for name in names.split():
        _PUBLIC[name] = f"agentlightning.{room}"


_register(
    "schemas",
    """Attempt AttemptedRollout AttemptStatus EnqueueRolloutRequest Event FilterField FilterOptions LLM Link
    ModelCall NamedResources OtelResource PaginatedResult PromptTemplate ProxyLLM Resource ResourcesUpdate ResourceUnion
    Feedback Lineage LineageSession LineageStep Preference
    Rollout RolloutConfig RolloutMode RolloutStatus SortOptions Span SpanContext SpanCoreFields StatusCode
    TaskInput TraceStatus TrainSample Triplet Worker WorkerStatus""",
)
_register("kit.errors", "AgentLightningError")
_register("kit.logs", "setup_logging setup_module_logging")
_register(
    "store",
    """InMemoryLightningStore LightningStore LightningStoreCapabilities LightningStoreClient LightningStoreServer
    LightningStoreStatistics LightningStoreThreaded SqlLightningStore UNSET Unset is_finished is_queuing is_running""",
)
_register(
    "agent",
    """AgentOpsTracer Hook LitAgent OtelTracer TraceAdapter TraceToMessages TraceToTripletBase
    TracerTraceToTriplet LlmProxyTraceToTriplet Tracer
    emit_annotation emit_exception emit_message emit_object emit_reward find_final_reward find_reward_spans
    get_message_value get_object_value get_reward_value get_rewards_from_span is_reward_span llm_rollout operation
    prompt_rollout reward rollout BadResultError as_agent make_link_attributes make_tag_attributes""",
)
_register("store.transfer", "export_store import_store")
_register("store.replay", "rebuild_store")
_register("runner", "CommandAgent FailurePolicy LitAgentRunner RayPool Runner RunnerPool")
_register(
    "algorithm",
    """APO Algorithm Auto Baseline Budget DPO Dataset EditSearch FewShot GEPA GRPO HttpProposer LearningResult
    OptimizationResult PreferencePair PromptOptimizer SFT ScoredSample algo preference_pairs scored_samples""",
)
_register("algorithm.experiment", "ABTest Schedule")
_register("algorithm.rewards", "Judge Reward Weighted find_reward register_reward")
_register("trainer", "ClientServerExecutionStrategy Evaluation SharedMemoryExecutionStrategy Trainer evaluate")
_register("config", "DPOConfig GRPOConfig ModelSpec SFTConfig Settings")
_register("registry", "ModelRegistry ModelVersion")
_register("gateway", "Gateway")

__all__ = ["__version__", *sorted(_PUBLIC)]  # pyright: ignore[reportUnsupportedDunderAll]


def __getattr__(name: str) -> Any:
    room = _PUBLIC.get(name)
    if room is None:
        raise AttributeError(f"module 'agentlightning' has no attribute {name!r}")
    value = getattr(importlib.import_module(room), name)
    globals()[name] = value
    return value


def __dir__() -> list[str]:
    return sorted({*globals(), *_PUBLIC})
