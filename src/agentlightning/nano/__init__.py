"""The embedded model of the demo: a tiny text-to-SQL model, its tasks, and how it is built.

Needs only the standard library until something is built or loaded.
"""

from agentlightning.nano.demonstrations import make_demonstrations
from agentlightning.nano.tasks import Task, TaskSplit, grade, make_tasks
from agentlightning.nano.weights import model_path

__all__ = ["Task", "TaskSplit", "grade", "make_demonstrations", "make_tasks", "model_path"]
