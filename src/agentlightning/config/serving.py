"""What the model service is told about one model. Torch-free."""

from __future__ import annotations

from typing import Literal, Self

from pydantic import Field, model_validator

from agentlightning.config.strict import StrictModel

EngineKind = Literal["auto", "builtin", "vllm"]


class ModelSpec(StrictModel):
    """One model to serve, and how."""

    name: str = Field(pattern=r"^[A-Za-z0-9][A-Za-z0-9._:@/-]{0,127}$")
    """What clients call it."""
    source: str = ""
    """Directory, hub id, registered model (`name`, `name@v3`, `name@production`) or `nano`; by default the name."""
    aliases: list[str] = []
    """Other names for it."""
    engine: EngineKind = "auto"
    """`builtin` runs everywhere, `vllm` needs CUDA; `auto` takes vLLM where both are there."""
    device: str = "auto"
    """`auto`, `cpu`, `cuda`, `cuda:1`."""
    dtype: Literal["auto", "float32", "bfloat16", "float16"] = "auto"
    adapter: str | None = None
    """Directory or hub id of a LoRA adapter to put on it."""
    threads: int | None = Field(default=None, ge=1)
    """CPU threads; by default half of the cores."""
    max_rows: int = Field(default=256, ge=1)
    """Most sequences decoded together."""
    max_context: int | None = Field(default=None, ge=1)
    """Use less of the model's context."""
    max_memory_mb: int | None = Field(default=None, ge=1)
    """Most memory for keys and values; by default a share of what is free. vLLM is told in `vllm_args`."""
    lazy: bool = False
    """Load it when the first call comes."""
    idle_unload_s: float | None = Field(default=None, gt=0)
    """Unload it after so long without a call; the next call loads it again."""
    wait_timeout_s: float = Field(default=120.0, gt=0)
    """How long a call waits while it is being loaded."""
    load_timeout_s: float = Field(default=900.0, gt=0)
    drain_timeout_s: float = Field(default=120.0, gt=0)
    """How long an engine that is replaced or unloaded may finish the calls it has."""
    swap: Literal["beside", "in_place"] = "beside"
    """New weights are loaded into a second engine while the first goes on, or into the same one between requests."""
    vllm_args: list[str] = []
    """More arguments for `vllm serve`."""

    @model_validator(mode="after")
    def _keeps_its_adapter(self) -> Self:
        if self.adapter is not None and self.swap == "in_place":
            raise ValueError("new weights that are loaded in place come without the adapter; use swap = 'beside'")
        return self

    @property
    def origin(self) -> str:
        """Where its weights come from."""
        return self.source or self.name

    @property
    def loads_by_itself(self) -> bool:
        """Whether a call loads it."""
        return self.lazy or self.idle_unload_s is not None
