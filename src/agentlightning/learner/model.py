"""Loads a causal language model and its tokenizer from a directory or the Hugging Face hub.

Every way it can fail is a `ModelError` with the next step. Knows nothing of sampling or training.
"""

from __future__ import annotations

import inspect
import json
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch
from safetensors import SafetensorError
from transformers import AutoConfig, AutoModelForCausalLM, AutoTokenizer

from agentlightning.kit.errors import ConfigError, MissingExtraError, ModelError
from agentlightning.schemas.generation import EngineInfo

_DTYPES = {"float32": torch.float32, "bfloat16": torch.bfloat16, "float16": torch.float16}
_DEFAULT_CONTEXT = 2048
# what remote code, broken files and the hub client raise between them; each becomes a ModelError with its cause
_LOAD_ERRORS = (OSError, ValueError, KeyError, TypeError, AttributeError, RuntimeError, ImportError)


@dataclass
class LoadedModel:
    """A causal LM on its device with its tokenizer and what the engine needs to know about both."""

    name: str
    model: Any
    tokenizer: Any
    device: torch.device
    dtype: torch.dtype
    max_context: int
    vocab_size: int
    eos_ids: frozenset[int]
    takes_logits_to_keep: bool
    lora: bool = False
    served_as: str = ""
    """What answers call it; its name where empty."""

    def describe(self, version: str) -> EngineInfo:
        """The public facts."""
        return EngineInfo(
            model=self.served_as or self.name,
            model_version=version,
            parameters=sum(p.numel() for p in self.model.parameters()),
            vocab_size=self.vocab_size,
            max_context=self.max_context,
            device=str(self.device),
            dtype=str(self.dtype).removeprefix("torch."),
            has_chat_template=bool(self.tokenizer.chat_template),
        )


def _silent(stage: str, fraction: float) -> None:
    del stage, fraction


def load_model(
    name: str,
    *,
    device: str = "auto",
    dtype: str = "auto",
    lora: dict[str, Any] | None = None,
    adapter: str | None = None,
    max_context: int | None = None,
    served_as: str = "",
    on_stage: Callable[[str, float], None] = _silent,
) -> LoadedModel:
    """Load model and tokenizer.

    Args:
        name: Directory in Hugging Face format, or hub id. A directory that holds an adapter only stands for its base
            model with this adapter.
        device: `auto`, `cpu`, `cuda`, `cuda:N`.
        dtype: `auto` (fp32 on CPU, bf16 on CUDA), `float32`, `bfloat16`, `float16`.
        lora: Settings of a new adapter to train, see `with_adapter`; `None` trains all weights.
        adapter: Directory or hub id of a LoRA adapter to merge into the weights.
        max_context: Use less of the model's context.
        served_as: What answers call the model.
        on_stage: Is told what is being done and roughly what share of the loading is behind it.

    Raises:
        ModelError: The model cannot be had or is of the wrong kind; the hint says what to do.
        ConfigError: Unknown device or dtype, unknown adapter setting.
        MissingExtraError: An adapter is asked for and peft is not installed.
    """
    place = _device(device)
    number = _dtype(dtype, place)
    base, adapter = _adapter_base(name, adapter)
    _check_directory(base)
    on_stage("configuration", 0.2)
    config = _load(AutoConfig, base, "configuration")
    if getattr(config, "is_encoder_decoder", False):
        raise ModelError(f"{base} is an encoder-decoder model.", hint="Choose a decoder-only (causal) model.")
    on_stage("weights", 0.3)
    model = _load(AutoModelForCausalLM, base, "weights", dtype=number)
    tokenizer = _load_tokenizer(base)
    if adapter is not None:
        on_stage("adapter", 0.7)
        model = _merged(model, adapter)
    on_stage("device", 0.8)
    model = model.to(place).eval()
    if lora is not None:
        model = with_adapter(model, lora)
    longest = _max_context(model.config, tokenizer)
    return LoadedModel(
        name=name,
        model=model,
        tokenizer=tokenizer,
        device=place,
        dtype=number,
        max_context=min(longest, max_context or longest),
        vocab_size=int(model.get_input_embeddings().weight.shape[0]),
        eos_ids=_eos_ids(model, tokenizer),
        takes_logits_to_keep="logits_to_keep" in inspect.signature(_base(model).forward).parameters,
        lora=lora is not None,
        served_as=served_as,
    )


def _adapter_base(name: str, adapter: str | None) -> tuple[str, str | None]:
    """The model to load, and the adapter to put on it."""
    settings = Path(name).expanduser() / "adapter_config.json"
    if (settings.parent / "config.json").is_file() or not settings.is_file():
        return name, adapter
    if adapter is not None:
        raise ConfigError(f"{name} is an adapter itself; {adapter} cannot be put on it.", hint="Give the base model.")
    try:
        base = json.loads(settings.read_text(encoding="utf-8")).get("base_model_name_or_path")
    except (OSError, ValueError, AttributeError) as error:
        raise ModelError(f"{settings} cannot be read: {error}", hint="Copy the adapter again.") from error
    if not isinstance(base, str) or not base:
        raise ModelError(f"{settings} names no base model.", hint="Give the base model, and this as adapter=.")
    return base, name


def _merged(model: Any, adapter: str) -> Any:
    try:
        from peft import PeftModel
    except ImportError as error:
        raise MissingExtraError("LoRA adapters need the package peft.", hint="Install it: pip install peft.") from error
    try:
        return PeftModel.from_pretrained(model, str(Path(adapter).expanduser())).merge_and_unload()
    except (*_LOAD_ERRORS, SafetensorError) as error:
        reason = (str(error).strip() or type(error).__name__).splitlines()[0]
        raise ModelError(
            f"The adapter {adapter} cannot be put on this model: {reason}",
            hint="Check the path, and that it was trained on this model.",
        ) from error


def take_weights(loaded: LoadedModel, model: str) -> None:
    """Replace the weights by those of another model of the same architecture and vocabulary.

    Raises:
        ModelError: It is another architecture or vocabulary, or cannot be loaded; nothing has changed.
        ConfigError: The model is being trained through an adapter.
    """
    if loaded.lora:
        raise ConfigError("The weights of a model with a LoRA adapter in training cannot be replaced.")
    other = load_model(model, device="cpu", dtype=str(loaded.dtype).removeprefix("torch."))
    current, new = loaded.model.state_dict(), other.model.state_dict()
    same = {k: v.shape for k, v in current.items()} == {k: v.shape for k, v in new.items()}
    if not same or loaded.tokenizer.get_vocab() != other.tokenizer.get_vocab():
        raise ModelError(
            f"{model} has another architecture or vocabulary than {loaded.name}.",
            hint="Load it into an engine of its own.",
        )
    loaded.model.load_state_dict(new)
    loaded.name = model


def with_adapter(model: Any, lora: dict[str, Any]) -> Any:
    """Wrap a model with a LoRA adapter (Hu et al. 2021) and freeze the rest.

    Args:
        model: A causal LM.
        lora: `r` (8), `alpha` (16), `target_modules` (`"all-linear"` or a list of names).

    Raises:
        MissingExtraError: peft is not installed.
        ConfigError: An unknown setting, or target modules the model does not have.
    """
    unknown = set(lora) - {"r", "alpha", "target_modules"}
    if unknown:
        raise ConfigError(
            f"Unknown LoRA setting: {', '.join(sorted(unknown))}.", hint="Known: r, alpha, target_modules."
        )
    try:
        from peft import LoraConfig, get_peft_model
    except ImportError as error:
        raise MissingExtraError(
            "LoRA needs the package peft.", hint="Install it: pip install peft. Or train without LoRA."
        ) from error
    settings = LoraConfig(
        r=int(lora.get("r", 8)),
        lora_alpha=int(lora.get("alpha", 16)),
        target_modules=lora.get("target_modules", "all-linear"),
        lora_dropout=0.0,
        bias="none",
        task_type="CAUSAL_LM",
    )
    try:
        return get_peft_model(model, settings).eval()
    except ValueError as error:
        raise ConfigError(f"The LoRA settings do not fit the model: {error}") from error


def _base(model: Any) -> Any:
    return model.get_base_model() if hasattr(model, "get_base_model") else model


def _device(name: str) -> torch.device:
    if name == "auto":
        return torch.device("cuda" if torch.cuda.is_available() else "cpu")
    try:
        device = torch.device(name)
    except RuntimeError as error:
        raise ConfigError(f"Unknown device {name!r}.", hint="Use auto, cpu, cuda or cuda:N.") from error
    if device.type == "cuda" and not torch.cuda.is_available():
        raise ConfigError(
            f"Device {name} was asked for, but torch sees no CUDA device.",
            hint="Use device=auto, or install a CUDA build of torch.",
        )
    return device


def _dtype(name: str, device: torch.device) -> torch.dtype:
    if name == "auto":
        return torch.bfloat16 if device.type == "cuda" else torch.float32
    if name not in _DTYPES:
        raise ConfigError(f"Unknown dtype {name!r}.", hint=f"Use auto, {', '.join(_DTYPES)}.")
    return _DTYPES[name]


def _check_directory(name: str) -> None:
    path = Path(name).expanduser()
    looks_like_path = path.is_absolute() or name.startswith((".", "~")) or name.count("/") > 1
    if path.is_dir():
        if not (path / "config.json").is_file():
            raise ModelError(
                f"{path} is a directory but not a model: it has no config.json.",
                hint="Give the directory that save_pretrained wrote, or a hub id.",
            )
    elif looks_like_path or path.exists():
        raise ModelError(
            f"There is no model directory {path}.", hint="Check the path, or give a hub id like Qwen/Qwen3-0.6B."
        )


def _load(kind: Any, name: str, what: str, **options: Any) -> Any:
    try:
        return kind.from_pretrained(str(Path(name).expanduser()) if Path(name).exists() else name, **options)
    except (*_LOAD_ERRORS, SafetensorError) as error:
        raise _explain(name, what, error) from error


def _explain(name: str, what: str, error: Exception) -> ModelError:
    text = str(error).strip()
    reason = text.splitlines()[0] if text else type(error).__name__
    if Path(name).exists():
        if "Unrecognized configuration class" in text:
            return ModelError(
                f"The model in {name} is not a causal language model.",
                hint="Choose one that generates text (…ForCausalLM).",
            )
        return ModelError(
            f"The {what} in {name} cannot be loaded: {reason}",
            hint="The files may be incomplete or broken: copy or download the directory again.",
        )
    if "Unrecognized configuration class" in text:
        return ModelError(f"{name} is not a causal language model.", hint="Choose one that generates text.")
    if "gated" in text or "401" in text or "403" in text:
        hint = "Ask for access on its page on huggingface.co and set HF_TOKEN."
    else:
        hint = "Check the spelling and the network, or give the path of a model directory."
    return ModelError(f"Cannot get {what} of {name} from the Hugging Face hub: {reason}", hint=hint)


def _load_tokenizer(name: str) -> Any:
    try:
        tokenizer = _load(AutoTokenizer, name, "tokenizer")
    except ModelError as error:
        raise ModelError(
            f"{name} has no usable tokenizer: {error.message}",
            hint="Save the tokenizer into the model directory (tokenizer.save_pretrained).",
        ) from error
    if not getattr(tokenizer, "is_fast", False):
        raise ModelError(
            f"The tokenizer of {name} has no fast version (tokenizer.json).",
            hint="Convert it with transformers.AutoTokenizer(..., use_fast=True).save_pretrained.",
        )
    if len(tokenizer) == 0:
        raise ModelError(f"The tokenizer of {name} has an empty vocabulary.", hint="Save it again.")
    return tokenizer


def _max_context(config: Any, tokenizer: Any) -> int:
    text = config.get_text_config() if hasattr(config, "get_text_config") else config
    for field in ("max_position_embeddings", "n_positions", "max_sequence_length", "seq_length"):
        value = getattr(text, field, None)
        if isinstance(value, int) and value > 0:
            return value
    length = getattr(tokenizer, "model_max_length", 0)
    return length if 0 < length < 10**7 else _DEFAULT_CONTEXT


def _eos_ids(model: Any, tokenizer: Any) -> frozenset[int]:
    ids: set[int] = set()
    generation = getattr(model, "generation_config", None)
    for value in (getattr(generation, "eos_token_id", None), tokenizer.eos_token_id):
        if isinstance(value, list):
            ids.update(value)
        elif value is not None:
            ids.add(int(value))
    return frozenset(ids)
