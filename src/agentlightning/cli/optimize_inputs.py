"""What `agl optimize` is given, as objects: prompts, parts of the data, prices, models, rewards, the run's name."""

from __future__ import annotations

import inspect
import os
import sys
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

from agentlightning.kit.errors import BadInputError, ConfigError, NotFoundError
from agentlightning.schemas import LLM, PromptTemplate

_HELD_OUT_FROM = 16
"""Examples from which on a part of the data is held out for the comparison at the end."""


def load_prompts(subject: Any, reference: str, named: Sequence[str]) -> dict[str, PromptTemplate]:
    """The prompts to start from, by resource name.

    Raises:
        NotFoundError: A file does not exist.
        BadInputError: There is no prompt.
    """
    if named:
        prompts: dict[str, PromptTemplate] = {}
        for entry in named:
            prompts.update(_from_file(entry))
        return prompts
    found = own_prompts(subject)
    if found:
        return found
    raise BadInputError(
        f"{reference} comes without a prompt.",
        hint="Give --prompt FILE, or define a PromptTemplate in the agent's module.",
    )


def own_prompts(subject: Any) -> dict[str, PromptTemplate]:
    """The prompts of an agent's module, by resource name; an only one is `prompt_template`."""
    module = sys.modules.get(getattr(inspect.unwrap(subject), "__module__", "") or "")
    found = {name: value for name, value in vars(module).items() if isinstance(value, PromptTemplate)} if module else {}
    if len(found) == 1:
        return {"prompt_template": next(iter(found.values()))}
    return {name.lower(): value for name, value in found.items()}


def _from_file(entry: str) -> dict[str, PromptTemplate]:
    name, separator, file = entry.partition("=")
    path = Path(file if separator else entry)
    if not path.is_file():
        raise NotFoundError(f"There is no prompt file {path}.", hint="Write --prompt FILE or --prompt NAME=FILE.")
    text = path.read_text(encoding="utf-8")
    if path.suffix == ".json":
        from agentlightning.algorithm.prompt import read_prompts

        try:
            return read_prompts(path)
        except (ValueError, KeyError, TypeError) as error:
            raise BadInputError(f"{path} is no result of agl optimize: {error!r}.") from error
    if not text.strip():
        raise BadInputError(f"The prompt file {path} is empty.", hint="Write the prompt of now into it.")
    engine = "jinja" if path.suffix in (".j2", ".jinja") else "f-string"
    return {name if separator else "prompt_template": PromptTemplate(template=text.rstrip("\n"), engine=engine)}


def load_parts(data: Path, val: Path | None, test: Path | None, subject: Any, *, seed: int) -> dict[str, list[Any]]:
    """`train`, `val` and, where there is enough, `test`.

    Raises:
        NotFoundError: A file does not exist.
        BadInputError: A file cannot be used, or there are too few examples.
    """
    from agentlightning.algorithm.datasets import example_key, split_dataset
    from agentlightning.cli.agents import load_dataset, required_columns

    columns = [name for name in required_columns(subject) if name not in ("llm", "prompt_template", "resources")]
    rows = load_dataset(data, columns=columns)
    parts = {
        **({"val": load_dataset(val, columns=columns)} if val else {}),
        **({"test": load_dataset(test, columns=columns)} if test else {}),
    }
    different = len({example_key(row) for row in rows})
    if different < 4 and "val" not in parts:
        raise BadInputError(
            f"{data} has {different} different task(s); choosing between prompts takes more.",
            hint="Give at least 4, better 40: a part learns, a part chooses, a part is held out.",
        )
    shares = {"train": 2.0, "val": 0.0 if "val" in parts else 1.0}
    shares["test"] = 0.0 if "test" in parts or different < _HELD_OUT_FROM else 1.0
    wanted = {name: share for name, share in shares.items() if share}
    total = sum(wanted.values())
    return {**split_dataset(rows, {n: s / total for n, s in wanted.items()}, seed=seed), **parts}


def held_out(parts: Mapping[str, list[Any]]) -> dict[str, list[Any]]:
    """Parts that nothing is chosen on."""
    return {"test": parts["test"]} if "test" in parts else {}


def run_name(agent: str, optimizer: str, prompts: Any, parts: Any, rest: Any, *, fresh: bool) -> str:
    """A name that the same command has again, budgets and places aside; a new one for `fresh`."""
    from agentlightning.algorithm.prompt.candidate import content_id
    from agentlightning.kit.ids import new_name

    if fresh:
        return new_name("optimize")
    texts = {name: prompt.template for name, prompt in prompts.items()}
    return f"optimize-{content_id([agent, optimizer, texts, parts, rest], 10)}"


def read_prices(entries: Sequence[str]) -> dict[str, tuple[float, float]]:
    """`MODEL=INPUT/OUTPUT` as prices.

    Raises:
        BadInputError: An entry has another form.
    """
    prices: dict[str, tuple[float, float]] = {}
    for entry in entries:
        model, _, amounts = entry.rpartition("=")
        try:
            given, _, taken = amounts.partition("/")
            prices[model] = (float(given), float(taken))
        except ValueError:
            raise BadInputError(f"--price {entry!r} is no price.", hint="Write MODEL=0.4/1.6.") from None
    return prices


def known_prices() -> Any:
    """Prices of an installed LiteLLM's cost map, if there is one."""
    from agentlightning.gateway import PriceTable
    from agentlightning.gateway.prices import find_cost_map

    try:
        table = PriceTable(cost_map=find_cost_map())
    except ConfigError:
        return None

    def price_of(model: str) -> tuple[float, float] | None:
        price = table.find(model)
        return None if price is None else (price.input, price.output)

    return price_of


def find_proposer(model: str | None, url: str | None) -> Any:
    """The proposer that was named, if one was."""
    if model is None:
        return None
    from agentlightning.algorithm.prompt import HttpProposer

    address = url or os.environ.get("OPENAI_BASE_URL") or "https://api.openai.com/v1"
    return HttpProposer(address, model, os.environ.get("OPENAI_API_KEY"))


def agent_model(model: str | None, base_url: str | None) -> dict[str, LLM]:
    """The agent's model behind another server, as a resource."""
    if base_url is None:
        return {}
    return {"llm": LLM(endpoint=base_url, model=model or "default", api_key=os.environ.get("OPENAI_API_KEY"))}


def load_reward(reference: str | None) -> Any:
    """A reward by name, or a function."""
    if reference is None:
        return None
    from agentlightning.algorithm.rewards import find_reward

    return find_reward(reference)
