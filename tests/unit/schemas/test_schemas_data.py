"""The small ones: pages, model calls, generation messages, triplets, names."""

import msgspec
import pytest

from agentlightning import schemas
from agentlightning.schemas import (
    GenerateRequest,
    ModelCall,
    PaginatedResult,
    SamplingParams,
    Span,
    TrainSample,
    Triplet,
    is_model_call,
    semconv,
)


def page() -> PaginatedResult[str]:
    return PaginatedResult[str](items=["a", "b", "c"], limit=3, offset=0, total=10)


def test_a_page_behaves_like_a_sequence():
    assert (len(page()), page()[0], page()[-1], page()[1:]) == (3, "a", "c", ["b", "c"])
    assert list(page()) == ["a", "b", "c"]
    assert "b" in page()
    assert page().index("c") == 2
    assert list(reversed(page())) == ["c", "b", "a"]


def test_a_page_counts_all_matches_apart_from_its_own():
    assert page().total == 10
    assert PaginatedResult[str].model_validate_json(page().model_dump_json()) == page()


def test_a_page_behind_its_end_raises_as_a_list_does():
    with pytest.raises(IndexError):
        page()[3]


def call(**values) -> ModelCall:
    return ModelCall(rollout_id="r", attempt_id="a", sequence_id=1, span_id="s", **values)


def test_a_call_is_trainable_unless_a_reason_is_given():
    assert call().trainable
    assert not call(not_trainable_because="no token ids").trainable


def test_lists_of_two_calls_are_not_shared():
    first, second = call(), call()
    first.messages.append({"role": "user"})
    assert second.messages == []


def test_a_call_survives_msgpack_exactly():
    original = call(
        prompt_token_ids=[1, 2], response_token_ids=[3], response_logprobs=[-0.1234567890123], temperature=0.0
    )
    assert msgspec.msgpack.decode(msgspec.msgpack.encode(original), type=ModelCall) == original


def test_no_reward_and_a_reward_of_zero_stay_apart():
    def there_and_back(reward: float | None) -> float | None:
        sample = TrainSample(token_ids=[1], loss_mask=[0], logprobs=[0.0], advantage=1.0, reward=reward)
        return msgspec.msgpack.decode(msgspec.msgpack.encode(sample), type=TrainSample).reward

    assert there_and_back(None) is None
    assert there_and_back(0.0) == 0.0
    assert Triplet(prompt=1, response=2).reward is None
    assert Triplet.model_validate_json(Triplet(prompt=1, response=2, reward=0.0).model_dump_json()).reward == 0.0


def test_sampling_defaults_do_not_truncate():
    params = SamplingParams()
    assert (params.temperature, params.top_p, params.top_k, params.n) == (1.0, 1.0, 0, 1)


def test_requests_do_not_share_their_sampling():
    first, second = GenerateRequest(), GenerateRequest()
    first.params.temperature = 0.0
    assert second.params.temperature == 1.0


@pytest.mark.parametrize(("name", "expected"), [(semconv.MODEL_CALL, True), (semconv.AGL_REWARD, False)])
def test_a_model_call_is_known_by_the_name_of_its_span(name, expected):
    assert is_model_call(Span.from_attributes(attributes={}, name=name)) is expected


def test_names_on_the_wire_are_distinct():
    names = [value for key, value in vars(semconv).items() if key.isupper()]
    shared = {semconv.AGL_REWARD, semconv.REWARD_PREFIX}  # the span and the prefix of its attributes, as in 0.3
    assert len(shared) == 1
    assert len(set(names)) == len(names) - 1


@pytest.mark.parametrize("name", schemas.__all__)
def test_every_exported_schema_exists(name):
    assert getattr(schemas, name) is not None
