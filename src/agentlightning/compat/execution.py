"""0.3's `agentlightning.execution`: strategies as objects; `Trainer(strategy="cs")` says the same."""

from agentlightning.trainer.strategies import (
    ClientServerExecutionStrategy,
    ExecutionStrategy,
    SharedMemoryExecutionStrategy,
)

__all__ = ["ClientServerExecutionStrategy", "ExecutionStrategy", "SharedMemoryExecutionStrategy"]
