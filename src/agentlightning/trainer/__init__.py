"""The trainer: wires a run together, resumes it, evaluates it."""

from agentlightning.algorithm.evaluation import Evaluation, evaluate
from agentlightning.trainer.registry import ModelRegistry, ModelVersion
from agentlightning.trainer.trainer import RunResult, Trainer

__all__ = ["Evaluation", "ModelRegistry", "ModelVersion", "RunResult", "Trainer", "evaluate"]
