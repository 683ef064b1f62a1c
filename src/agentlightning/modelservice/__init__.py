"""The model service: many models at once, each in its own engine, loaded, swapped and unloaded while calls run."""

from agentlightning.modelservice.served import ModelState, ServedModel
from agentlightning.modelservice.service import ModelService

__all__ = ["ModelService", "ModelState", "ServedModel"]
