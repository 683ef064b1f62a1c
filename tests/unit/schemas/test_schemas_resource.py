import pytest
from jinja2.exceptions import SecurityError, UndefinedError
from pydantic import TypeAdapter, ValidationError

from agentlightning.schemas import (
    LLM,
    Attempt,
    AttemptedRollout,
    NamedResources,
    PromptTemplate,
    ProxyLLM,
    ResourcesUpdate,
    ResourceUnion,
)


@pytest.fixture
def attempted() -> AttemptedRollout:
    attempt = Attempt(rollout_id="ro-1", attempt_id="at-2", sequence_id=1, start_time=0.0)
    return AttemptedRollout(rollout_id="ro-1", input=None, start_time=0.0, attempt=attempt)


def test_a_plain_llm_gives_its_endpoint_whatever_the_rollout():
    llm = LLM(endpoint="http://host/v1", model="m")
    assert llm.get_base_url() == llm.get_base_url("ro-1", "at-2") == "http://host/v1"


@pytest.mark.parametrize(
    ("endpoint", "scoped"),
    [
        ("http://host:8000/v1", "http://host:8000/rollout/ro-1/attempt/at-2/v1"),
        ("http://host:8000/v1/", "http://host:8000/rollout/ro-1/attempt/at-2/v1"),
        ("http://host:8000", "http://host:8000/rollout/ro-1/attempt/at-2"),
        ("http://host:8000/", "http://host:8000/rollout/ro-1/attempt/at-2"),
        ("http://host/sub/v1", "http://host/sub/rollout/ro-1/attempt/at-2/v1"),
    ],
)
def test_a_proxied_llm_names_rollout_and_attempt_in_its_url(endpoint, scoped):
    assert ProxyLLM(endpoint=endpoint, model="m").get_base_url("ro-1", "at-2") == scoped


def test_a_proxied_llm_without_ids_is_its_endpoint():
    assert ProxyLLM(endpoint="http://host/v1", model="m").get_base_url() == "http://host/v1"


@pytest.mark.parametrize("ids", [("ro-1", None), (None, "at-2")])
def test_one_id_without_the_other_is_refused(ids):
    with pytest.raises(ValueError, match="belong together"):
        ProxyLLM(endpoint="http://host/v1", model="m").get_base_url(*ids)


def test_bound_to_an_attempt_a_proxied_llm_is_a_plain_one(attempted):
    proxied = ProxyLLM(endpoint="http://h/v1", model="m", api_key="k", sampling_parameters={"temperature": 0.3})
    bound = proxied.with_attempted_rollout(attempted)
    assert type(bound) is LLM
    assert bound.get_base_url() == "http://h/rollout/ro-1/attempt/at-2/v1"
    assert (bound.model, bound.api_key, bound.sampling_parameters) == ("m", "k", {"temperature": 0.3})


def test_f_string_template_fills_its_placeholders():
    template = PromptTemplate(template="Answer {question} in {language!r}. {{literal}}")
    assert template.format(question="x", language="nl") == "Answer x in 'nl'. {literal}"


def test_f_string_template_names_a_missing_placeholder():
    with pytest.raises(KeyError, match="question"):
        PromptTemplate(template="{question}").format()


def test_jinja_template_has_loops_and_filters():
    template = PromptTemplate(engine="jinja", template="{% for n in names %}{{ n | upper }} {% endfor %}")
    assert template.format(names=["a", "b"]) == "A B "


def test_jinja_template_refuses_a_missing_placeholder():
    with pytest.raises(UndefinedError, match="question"):
        PromptTemplate(engine="jinja", template="{{ question }}").format()


def test_a21_a_jinja_template_cannot_reach_into_python():
    # Prompts may be written by a model, so a template is not trusted.
    template = PromptTemplate(engine="jinja", template="{{ x.__class__.__mro__ }}")
    with pytest.raises(SecurityError):
        template.format(x="")


def test_poml_says_what_to_use_instead():
    with pytest.raises(NotImplementedError, match="engine='f-string' or engine='jinja'"):
        PromptTemplate(engine="poml", template="").format()


def test_resources_survive_json_with_their_types():
    resources: NamedResources = {
        "main": ProxyLLM(endpoint="http://h/v1", model="m"),
        "judge": LLM(endpoint="http://j/v1", model="j"),
        "prompt": PromptTemplate(template="{x}", engine="f-string"),
    }
    update = ResourcesUpdate(resources_id="rs-1", create_time=1.0, update_time=1.0, version=1, resources=resources)
    again = ResourcesUpdate.model_validate_json(update.model_dump_json())
    assert again == update
    assert {name: type(value) for name, value in again.resources.items()} == {
        "main": ProxyLLM,
        "judge": LLM,
        "prompt": PromptTemplate,
    }


@pytest.mark.parametrize("value", [{"resource_type": "weights"}, {"template": "{x}"}])
def test_an_unknown_kind_of_resource_is_refused(value):
    with pytest.raises(ValidationError, match="resource_type"):
        TypeAdapter(ResourceUnion).validate_python(value)
