"""`training_config.ini` and the `TONGYI_*` variables."""

from pathlib import Path

import pytest

from agentlightning.integrations.tongyi.config import load_config
from agentlightning.integrations.tongyi.training_manager import get_training_manager
from agentlightning.kit.errors import ConfigError

# As the guide to the integration writes it, comments behind quoted values included.
GUIDE = """
[training]
enabled = false
mode = "prompt"  # "prompt", "rl", "sft"
training_data_path = ".tongyi_training"

[prompt_optimization]
iterations = 100
optimization_target = "research_efficiency"  # Options:
# research_efficiency - Focus on research quality
# response_speed - Focus on faster responses
use_history = true
history_size = 50

[performance_metrics]
max_response_time = 30.0
min_success_rate = 0.8
min_tool_efficiency = 0.6

[experiments]
enable_ab_testing = true
control_ratio = 0.5
experiment_duration = 100

[optimization_schedule]
schedule = "periodic"
periodic_interval = 100
trigger_on_performance_drop = true
performance_threshold = 0.7
"""


def written(place: Path, text: str, name: str = "training_config.ini") -> Path:
    (place / name).write_text(text)
    return place / name


def test_the_documented_file_is_understood(place: Path) -> None:
    written(place, GUIDE)
    found = load_config(environment={})
    assert (found.training.enabled, found.training.mode) == (False, "prompt")
    assert found.training.training_data_path == Path(".tongyi_training")
    assert found.prompt_optimization.optimization_target == "research_efficiency"
    assert found.prompt_optimization.history_size == 50
    assert found.prompt_optimization.use_history
    assert found.performance_metrics.min_tool_efficiency == 0.6
    assert found.experiments.enable_ab_testing
    assert found.experiments.experiment_duration == 100
    assert found.optimization_schedule.schedule == "periodic"
    assert found.optimization_schedule.trigger_on_performance_drop


def test_variables_win_over_the_file_and_arguments_over_both(place: Path) -> None:
    written(place, GUIDE)
    environment = {
        "TONGYI_TRAINING_ENABLED": "true",
        "TONGYI_TRAINING_MODE": "rl",
        "TONGYI_TRAINING_PATH": "./my_training_data",
        "TONGYI_PROMPT_OPTIMIZATION_ITERATIONS": "7",
        "TONGYI_MODEL": "",
    }
    found = load_config(environment=environment)
    assert (found.training.enabled, found.training.mode) == (True, "rl")
    assert found.training.training_data_path == Path("my_training_data")
    assert found.prompt_optimization.iterations == 7
    assert found.prompt_optimization.history_size == 50
    assert found.agent.model is None
    assert found.changed(training={"mode": "sft", "enabled": None}).training.mode == "sft"
    assert found.changed(training={"mode": "sft"}).training.enabled


def test_quotes_and_comments(place: Path) -> None:
    path = written(place, "[agent]\nmodel = 'a #1 model' ; the best\nbase_url = http://x/v1#top  # here\n", "other.ini")
    found = load_config(path, environment={})
    assert (found.agent.model, found.agent.base_url) == ("a #1 model", "http://x/v1#top")
    assert load_config(environment={"TONGYI_CONFIG": str(path)}).agent.model == "a #1 model"


@pytest.mark.parametrize(
    ("text", "told"),
    [
        ("[trainning]\nmode = rl", r"section \[trainning\] is not known; the nearest is 'training'"),
        ("[training]\nmodus = rl", r"modus in \[training\] is not known; the nearest is 'mode'"),
        ("[training]\nmode = dpo", r"\[training\] mode: Input should be 'prompt', 'rl' or 'sft' \(got 'dpo'\)"),
        ("[experiments]\ncontrol_ratio = 1.5", "control_ratio: Input should be less than 1"),
        ("[optimization_schedule]\nschedule = cron", "belong together"),
        ("[training]\nmode = rl\nmode = sft", "no configuration"),
        ("mode = rl", "no configuration"),
        ("[training]\nenabled = perhaps", "enabled: Input should be a valid boolean"),
    ],
)
def test_what_is_wrong_is_named(place: Path, text: str, told: str) -> None:
    written(place, text)
    with pytest.raises(ConfigError, match=told):
        load_config(environment={})


def test_a_file_that_is_named_has_to_be_there_and_to_be_text(place: Path) -> None:
    with pytest.raises(ConfigError, match=r"There is no configuration nowhere\.ini"):
        load_config("nowhere.ini", environment={})
    (place / "training_config.ini").write_bytes(b"\xff\xfe\x00[")
    with pytest.raises(ConfigError, match="no configuration"):
        load_config(environment={})


def test_a_wrong_variable_is_an_error_and_a_misspelt_one_a_warning(caplog: pytest.LogCaptureFixture) -> None:
    with pytest.raises(ConfigError, match=r"the TONGYI_\* variables: \[training\] mode"):
        load_config(environment={"TONGYI_TRAINING_MODE": "x"})
    load_config(environment={"TONGYI_TRAINIG_ENABLED": "true", "TONGYI_API_KEY": "mine"})
    assert [record.getMessage() for record in caplog.records] == [
        "The variable TONGYI_TRAINIG_ENABLED is not read; is it meant to be TONGYI_TRAINING_ENABLED?"
    ]


def test_an_argument_that_is_not_known_is_an_error() -> None:
    with pytest.raises(ConfigError, match="the nearest is 'mode'"):
        load_config(environment={}).changed(training={"modes": "rl"})
    with pytest.raises(ConfigError, match="section"):
        load_config(environment={}).changed(traning={"mode": "rl"})


def test_an_experiment_too_short_to_tell_anything_is_refused(place: Path) -> None:
    written(place, "[experiments]\nenable_ab_testing = true\nexperiment_duration = 10")
    with pytest.raises(ConfigError, match="experiment_duration is 10"):
        get_training_manager().create_optimized_agent()
