"""Where the embedded model's files are. Knows nothing else."""

from __future__ import annotations

from pathlib import Path


def model_path() -> Path:
    """The folder that ships with the package, in Hugging Face format."""
    return Path(__file__).parent / "model"
