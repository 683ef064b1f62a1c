import inspect

import pytest

from agentlightning.kit import errors
from agentlightning.kit.errors import AgentLightningError

ALL = [value for value in vars(errors).values() if inspect.isclass(value) and issubclass(value, AgentLightningError)]


def test_message_and_hint_read_as_one_sentence_pair():
    error = AgentLightningError("The port is taken.", hint="Choose another.")
    assert str(error) == "The port is taken. Choose another."


def test_without_a_hint_the_text_is_the_message():
    assert str(AgentLightningError("Broken.")) == "Broken."


def test_as_dict_carries_everything_a_client_needs():
    error = errors.PortInUseError("Taken.", hint="Use 0.", details={"port": 80})
    assert error.as_dict() == {"code": "PORT_IN_USE", "message": "Taken.", "hint": "Use 0.", "details": {"port": 80}}


def test_details_of_two_errors_are_not_shared():
    first, second = AgentLightningError("a"), AgentLightningError("b")
    first.details["key"] = 1
    assert second.details == {}


@pytest.mark.parametrize("kind", ALL, ids=lambda kind: kind.__name__)
def test_every_error_has_a_code_of_its_own_a_status_and_a_docstring(kind):
    assert sum(other.code == kind.code for other in ALL) == 1
    assert kind.code.isupper()
    assert 400 <= kind.status < 600
    assert kind.__doc__


@pytest.mark.parametrize("kind", ALL, ids=lambda kind: kind.__name__)
def test_every_error_can_be_raised_with_message_and_hint(kind):
    with pytest.raises(AgentLightningError, match=r"It broke\. Do this\.") as caught:
        raise kind("It broke.", hint="Do this.")
    assert caught.value.as_dict()["code"] == kind.code


@pytest.mark.parametrize(
    ("kind", "builtin"),
    [
        (errors.BadInputError, ValueError),
        (errors.NotFoundError, ValueError),
        (errors.ConflictError, ValueError),
        (errors.MissingExtraError, ImportError),
        (errors.PortInUseError, OSError),
    ],
)
def test_errors_that_callers_know_under_a_builtin_name_are_caught_by_it(kind, builtin):
    with pytest.raises(builtin):
        raise kind("x")
