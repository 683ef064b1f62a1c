"""Triplets: (prompt, response, reward), the view of a trace that RL code traditionally takes."""

from __future__ import annotations

from typing import Any

from pydantic import BaseModel, Field


class Triplet(BaseModel):
    """One turn. `prompt` and `response` hold `{"token_ids": [...], ...}` for captured calls."""

    prompt: Any
    response: Any
    reward: float | None = None
    metadata: dict[str, Any] = Field(default_factory=dict[str, Any])
