"""Which engine runs a model, and what vLLM is told."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest

from agentlightning.config import ModelSpec
from agentlightning.kit.errors import ConfigError, ModelError
from agentlightning.modelservice import engines
from agentlightning.modelservice.engines import choose_engine, has_cuda, vllm_program
from agentlightning.modelservice.source import Source, Sources
from agentlightning.modelservice.vllm import VllmEngine, serve_arguments
from agentlightning.registry import ModelRegistry
from tests.unit.modelservice.rig import VLLM, register, weights

HERE = ["vllm"]


@pytest.mark.parametrize(
    ("spec", "command", "engine"),
    [
        ({"engine": "builtin"}, HERE, "builtin"),
        ({"engine": "vllm"}, HERE, "vllm"),
        ({"engine": "auto"}, HERE, "vllm"),
        ({"engine": "auto", "device": "cpu"}, HERE, "builtin"),
        ({"engine": "auto", "max_memory_mb": 5}, HERE, "builtin"),
    ],
)
def test_the_engine_follows_from_the_settings(spec: dict[str, Any], command: list[str], engine: str) -> None:
    assert choose_engine(ModelSpec(name="m", **spec), command) == engine


def test_vllm_without_itself_or_without_cuda_is_refused_with_the_reason(monkeypatch: pytest.MonkeyPatch) -> None:
    spec = ModelSpec(name="m", engine="vllm")
    monkeypatch.setattr(engines, "vllm_program", lambda: None)
    with pytest.raises(ConfigError, match=r"not installed\. Install vLLM on a machine with an NVIDIA GPU"):
        choose_engine(spec)
    monkeypatch.setattr(engines, "vllm_program", lambda: ["vllm"])
    monkeypatch.setattr(engines, "has_cuda", lambda: False)
    with pytest.raises(ConfigError, match="there is no CUDA device"):
        choose_engine(spec)
    assert choose_engine(ModelSpec(name="m")) == "builtin"
    monkeypatch.setattr(engines, "has_cuda", lambda: True)
    assert choose_engine(ModelSpec(name="m")) == "vllm"
    with pytest.raises(ConfigError, match="max_memory_mb, threads has no effect"):
        choose_engine(ModelSpec(name="m", engine="vllm", max_memory_mb=5, threads=1))


def test_looking_for_vllm_and_cuda_needs_neither() -> None:
    assert vllm_program() is None or vllm_program()
    assert has_cuda() in (True, False)


def test_what_vllm_is_told() -> None:
    spec = ModelSpec(name="m", dtype="float16", max_context=512, max_rows=9, vllm_args=["--tensor-parallel-size", "2"])
    line = " ".join(serve_arguments(spec, "/w", 1234))
    for part in (
        "serve /w --host 127.0.0.1 --port 1234", "--served-model-name m", "--logprobs-mode processed_logprobs",
        "--dtype float16", "--max-model-len 512", "--max-num-seqs 9", "--tensor-parallel-size 2",
    ):  # fmt: skip
        assert part in line
    line = " ".join(serve_arguments(ModelSpec(name="m", adapter="/a"), "/w", 1))
    assert "--enable-lora --lora-modules m=/a" in line
    assert "--served-model-name m " not in line


async def start(spec: ModelSpec, source: Source, folder: Path, command: list[str]) -> VllmEngine:
    return await VllmEngine.start(spec, source, folder / "log", lambda stage, done: None, command=command)


async def test_a_program_that_is_not_there_is_a_clear_error(tmp_path: Path) -> None:
    with pytest.raises(ModelError, match="vllm cannot be run"):
        await start(ModelSpec(name="m"), Source(str(weights(tmp_path / "w", "x"))), tmp_path, ["/nowhere/vllm"])


async def test_an_adapter_answers_by_the_models_name_and_hub_ids_are_not_replaced(tmp_path: Path) -> None:
    source = weights(tmp_path / "w", "x")
    engine = await start(ModelSpec(name="m", adapter="/a", device="cuda:1"), Source(str(source)), tmp_path, VLLM)
    try:
        assert await engine.upstream.list_models() == ["m-without-adapter", "m"]
        with pytest.raises(ModelError, match="between directories only"):
            await engine.swap(Source("org/on-the-hub"))
        assert not engine.is_dead
        await engine.swap(Source(str(weights(tmp_path / "v", "y"))))
        assert await engine.stats() is None
    finally:
        await engine.close()
    assert engine.is_dead
    assert "ended" in await engine.wait_dead()


def test_weights_with_an_adapter_have_another_name_and_are_not_changed_in_place(tmp_path: Path) -> None:
    registry = ModelRegistry(tmp_path / "models")
    register(registry, "demo", 1)
    registry.promote("demo@v1")
    sources = Sources(registry, {"nano": "/the/embedded/one"})
    names = [sources.find(origin, "org/support-lora").version for origin in ("nano", "demo", "org/other")]
    assert names == ["base+support-lora", "demo@v1+support-lora", "base+support-lora"]
    # New weights would take the place of those that the adapter is merged into.
    with pytest.raises(ConfigError, match="use swap = 'beside'"):
        ModelSpec(name="demo", adapter="org/support-lora", swap="in_place")


def test_names_are_found_and_followed(tmp_path: Path) -> None:
    registry = ModelRegistry(tmp_path / "models")
    register(registry, "demo", 2)
    registry.promote("demo@v1")
    sources = Sources(registry, {"nano": "/the/embedded/one"})
    assert sources.find("nano") == Source("/the/embedded/one")
    assert sources.find("demo").version == sources.find("demo@production").version == "demo@v1"
    assert sources.find("demo@v2").path.endswith("v2")
    assert sources.find("org/other") == Source("org/other")
    assert sources.find(str(tmp_path)) == Source(str(tmp_path))
    assert [sources.followed(name) for name in ("demo", "demo@production", "demo@v1", "nano", str(tmp_path))] == [
        "demo", "demo", None, None, None,
    ]  # fmt: skip
