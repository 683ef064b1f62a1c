import pytest
from pydantic import Field, ValidationError

from agentlightning.config import StrictModel
from agentlightning.kit.errors import ConfigError


class Inner(StrictModel):
    depth: int = 1


class Example(StrictModel):
    learning_rate: float = Field(default=0.1, gt=0)
    steps: int = 3
    inner: Inner = Inner()


def fault_of(**values) -> ConfigError:
    with pytest.raises(ConfigError) as caught:
        Example(**values)
    return caught.value


def test_an_unknown_key_names_the_nearest_known_one():
    error = fault_of(learning_rat=0.5)
    assert error.message == ("Example: 'learning_rat' is not honoured by this backend (did you mean 'learning_rate'?).")
    assert error.hint == "Known keys: learning_rate, steps, inner."


def test_an_unknown_key_that_resembles_nothing_gets_no_guess():
    assert "did you mean" not in fault_of(zzz=1).message


def test_a_wrong_value_is_shown_with_its_key():
    assert "learning_rate: Input should be greater than 0 (got -1)" in fault_of(learning_rate=-1).message


def test_every_fault_is_listed_at_once():
    error = fault_of(learning_rate=-1, steps="many", nonsense=1)
    assert len(error.details["faults"]) == 3
    assert all(fault in error.message for fault in error.details["faults"])


def test_a_fault_in_a_nested_model_names_that_model_and_its_key():
    assert fault_of(inner={"depth": "deep"}).message.startswith("Inner: depth: Input should be a valid integer")


def test_validating_a_mapping_gives_the_same_error():
    with pytest.raises(ConfigError, match="did you mean 'steps'"):
        Example.model_validate({"stepz": 1})


def test_the_error_keeps_its_cause_and_its_code():
    error = fault_of(steps=None)
    assert isinstance(error.__cause__, ValidationError)
    assert (error.code, error.status) == ("CONFIG_INVALID", 400)


def test_it_cannot_be_changed_afterwards():
    example = Example(steps=5)
    with pytest.raises(ValidationError, match="frozen"):
        example.steps = 6  # pyright: ignore[reportAttributeAccessIssue]
    assert example.steps == 5


def test_defaults_and_given_values_are_told_apart():
    assert Example(steps=3).model_dump(exclude_unset=True) == {"steps": 3}
