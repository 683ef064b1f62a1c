"""The reference is complete: what exists in the code is on its page, with the default it has."""

import inspect
import re

import pytest
import typer

import agentlightning as agl
from agentlightning.agent import find_final_reward
from agentlightning.cli import main as cli
from agentlightning.cli.agents_shipped import table_of
from agentlightning.config import DPOConfig, GRPOConfig, Settings, SFTConfig
from agentlightning.learner import FitConfig, StepConfig
from agentlightning.platform.agents.shipped import shipped, shipped_names
from agentlightning.platform.auth.permissions import ROLES, TABLE
from agentlightning.platform.settings import PlatformSettings
from agentlightning.runner.policy import DEFAULT_ACTIONS
from agentlightning.schemas import EVENT_KINDS
from tests.docs.pages import ROOT

REFERENCE = ROOT / "docs" / "reference"


def text(name: str) -> str:
    return (REFERENCE / f"{name}.md").read_text(encoding="utf-8")


def rows(name: str, heading: str = "") -> dict[str, str]:
    """First cell (without backticks) to second cell of every table row of a page, or of one of its sections."""
    shown = text(name).split(f"## {heading}\n")[1].split("\n## ")[0] if heading else text(name)
    return dict(re.findall(r"^\|\s*`([^`]+)`\s*\|\s*([^|]*?)\s*\|", shown, flags=re.MULTILINE))


def test_the_table_of_shipped_agents_is_that_of_the_files():
    assert table_of([shipped(name) for name in shipped_names()]) in text("agents")


@pytest.mark.parametrize("name", list(GRPOConfig.model_fields))
def test_every_grpo_setting_is_documented_with_its_default(name):
    default = GRPOConfig.model_fields[name].default
    assert rows("config", "GRPO")[name] == ("none" if default is None else str(default))


@pytest.mark.parametrize("kind", [SFTConfig, DPOConfig])
def test_every_setting_of_fine_tuning_is_documented_with_its_default(kind):
    documented = rows("config", "SFT and DPO")
    for name, field in kind.model_fields.items():
        plain = SFTConfig.model_fields.get(name, field).default
        shown = ", ".join(plain) if isinstance(plain, tuple) else "none" if plain is None else str(plain)
        assert documented.pop(name) == shown
    others = DPOConfig if kind is SFTConfig else SFTConfig
    assert set(documented) == set(others.model_fields) - set(kind.model_fields)


def test_no_grpo_setting_is_documented_that_does_not_exist():
    section = text("config").split("## GRPO")[1].split("\n## ")[0]
    assert set(re.findall(r"^\| `(\w+)`", section, flags=re.MULTILINE)) == set(GRPOConfig.model_fields)


@pytest.mark.parametrize("name", list(Settings.model_fields))
def test_every_environment_setting_is_documented_with_its_default(name):
    default = Settings.model_fields[name].default
    assert rows("config")[f"AGL_{name.upper()}"] == ("none" if default is None else f"`{default}`")


@pytest.mark.parametrize("name", list(DEFAULT_ACTIONS))
def test_every_class_of_failure_is_documented_with_its_default(name):
    assert re.search(rf"\| `{name}` \|.*\| {DEFAULT_ACTIONS[name]} \|", text("config"))


@pytest.mark.parametrize("name", list(PlatformSettings.model_fields))
def test_every_setting_of_the_platform_is_documented_with_its_default(name):
    field = PlatformSettings.model_fields[name]
    variable = field.validation_alias or f"AGL_{name.upper()}"
    documented = rows("platform-api")[variable]
    if isinstance(field.default, int):
        assert documented == f"`{field.default}`"
    elif field.default == ():
        assert documented == "none"


def test_every_call_of_the_platform_is_documented_with_who_may():
    documented = {call: rule for call, rule in rows("platform-api").items() if " /" in call}
    assert documented == {f"{method} {path}": rule for (method, path), rule in TABLE.items()}
    assert all(rows("platform-api")[role] for role in ROLES)


def public_methods(kind: type) -> list[str]:
    return [name for name in dir(kind) if not name.startswith("_") and callable(getattr(kind, name))]


@pytest.mark.parametrize("name", [n for n in public_methods(agl.LightningStore) if n != "execute"])
def test_every_store_method_is_documented(name):
    assert f"`{name}`" in text("store")


@pytest.mark.parametrize("kind", EVENT_KINDS)
def test_every_kind_of_event_is_documented(kind):
    assert kind in rows("store")


@pytest.mark.parametrize("name", [n for n in inspect.signature(agl.Trainer.__init__).parameters if n != "self"])
def test_every_trainer_argument_is_documented(name):
    assert f"`{name}`" in text("trainer")


@pytest.mark.parametrize("name", [*StepConfig.__struct_fields__, *FitConfig.__struct_fields__])
def test_every_step_setting_is_documented(name):
    assert f"`{name}`" in text("learner")


@pytest.mark.parametrize("name", [n for n in agl.__all__ if n.startswith(("emit_", "find_", "get_", "is_reward"))])
def test_every_emitter_and_reader_is_documented(name):
    assert name in text("tracing")
    assert find_final_reward([]) is None


OPTIMIZERS = [agl.APO, agl.GEPA, agl.FewShot, agl.EditSearch, agl.PromptOptimizer]
SETTINGS = {
    name
    for kind in OPTIMIZERS
    for name in inspect.signature(kind.__init__).parameters
    if name not in ("self", "options")
}


@pytest.mark.parametrize("name", sorted(SETTINGS))
def test_every_setting_of_a_prompt_optimizer_is_documented(name):
    assert f"`{name}`" in text("prompts")


def commands() -> list:
    if not cli.app.registered_commands:
        cli._register()
    found = []
    for name, command in typer.main.get_command(cli.app).commands.items():
        inner = getattr(command, "commands", {name: command})
        options = {o for c in inner.values() for p in c.params for o in p.opts if o.startswith("--") and o != "--help"}
        found.append(pytest.param(name, sorted(options), id=name))
    return found


@pytest.mark.parametrize(("name", "options"), commands())
def test_every_command_and_option_is_documented(name, options):
    section = text("cli").split(f"## agl {name}\n")[1].split("\n## ")[0]
    assert [option for option in options if option not in section] == []
