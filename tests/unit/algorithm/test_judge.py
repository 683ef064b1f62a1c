"""Judges that answer well, badly and not at all, over real HTTP."""

from __future__ import annotations

import json
import math
import re
from collections.abc import Iterator

import pytest

from agentlightning.algorithm.asking import HttpProposer
from agentlightning.algorithm.rewards import Agreement, Judge, Pairwise, agreement
from agentlightning.kit.errors import ConfigError, SignalError, UpstreamError
from tests.scripted_model import ScriptedModel


@pytest.fixture
def server() -> Iterator[ScriptedModel]:
    with ScriptedModel() as server:
        yield server


def judge(server: ScriptedModel, **options: object) -> Judge:
    return Judge(judge=HttpProposer(server.url, "judge"), **options)  # pyright: ignore[reportArgumentType]


@pytest.mark.parametrize(
    ("answer", "expected"),
    [
        ('{"reason": "ok", "score": 7}', 0.7),
        ('Thinking {aloud}. {"score": 3, "reason": "x"} Final: {"reason": "y", "score": 10}', 1.0),
        ("Great work! 10/10", None),
        ('{"score": "good"}', None),
        ('{"score": 11}', None),
        ('{"score": true}', None),
        ('{"score": NaN}', None),
        ("", None),
    ],
)
async def test_a_score_is_read_or_there_is_none(server: ScriptedModel, answer: str, expected: float | None) -> None:
    server.answer = lambda text: answer
    assert await judge(server)({"q": "?", "expected": "42"}, "out") == expected
    asked = server.bodies[0]["messages"][0]["content"]
    assert "Reference answer:\n42" in asked
    assert "Output:\nout" in asked


async def test_the_median_of_votes_counts(server: ScriptedModel) -> None:
    votes = iter(["1", "9", "2", "junk", "3"])
    server.answer = lambda text: f'{{"score": {next(votes)}}}'
    assert await judge(server, votes=5)("t", "o") in (pytest.approx(0.2), pytest.approx(0.25))
    server.answer = lambda text: "no"
    assert await judge(server, votes=3)("t", "o") is None


def better(text: str) -> str:
    one, other = re.findall(r"Output [AB]:\n(\d)", text)
    return json.dumps({"better": "A" if one > other else "B" if other > one else "same"})


@pytest.mark.parametrize(("output", "expected"), [("5", 1.0), ("1", 0.0), ("3", 0.5)])
async def test_pairs_are_judged_in_both_orders(server: ScriptedModel, output: str, expected: float) -> None:
    server.answer = better
    pairwise = Pairwise(judge=HttpProposer(server.url, "judge"))
    assert await pairwise({"reference": "3"}, output) == expected
    assert server.total == 2


async def test_a_judge_that_likes_the_first_place_cannot_decide(server: ScriptedModel) -> None:
    server.answer = lambda text: '{"better": "A"}'
    pairwise = Pairwise(judge=HttpProposer(server.url, "judge"))
    assert await pairwise({"reference": "3"}, "5") == 0.5
    assert await pairwise({}, "5") is None
    server.answer = lambda text: "both are nice"
    assert await pairwise({"reference": "3"}, "5") is None


async def test_agreement_tells_a_good_judge_from_a_bad_one(server: ScriptedModel) -> None:
    labelled = [("t", str(n), n / 10) for n in range(10)]
    server.answer = lambda text: json.dumps({"score": int(re.findall(r"Output:\n(\d)", text)[0])})
    good = await agreement(judge(server), labelled)
    assert good.require().correlation == pytest.approx(1.0)
    assert good.mean_error == pytest.approx(0.0)
    server.answer = lambda text: json.dumps({"score": 5})
    constant = await agreement(judge(server), labelled)
    assert math.isnan(constant.correlation)
    assert constant.worst[0][2] == 0.5
    with pytest.raises(SignalError, match="agrees with the labels by nan"):
        constant.require()
    server.answer = lambda text: "hmm"
    silent = await agreement(judge(server), labelled)
    assert (silent.n, silent.missing) == (0, 10)
    with pytest.raises(SignalError, match="no score to 10 of 10"):
        silent.require()
    with pytest.raises(ConfigError, match="labelled"):
        await agreement(judge(server), [])
    assert math.isnan(Agreement(1, 0, math.nan, 0.0).correlation)


async def test_a_judge_needs_a_model_that_answers(monkeypatch: pytest.MonkeyPatch) -> None:
    for name in ("OPENAI_BASE_URL", "OPENAI_API_KEY"):
        monkeypatch.delenv(name, raising=False)
    with pytest.raises(ConfigError, match="needs a model"):
        Judge()
    with pytest.raises(ConfigError, match="scale"):
        Judge(judge=HttpProposer("http://x", "m"), scale=(1, 1))
    with ScriptedModel(status=500) as down:
        impatient = HttpProposer(down.url, "judge", max_attempts=2)
        with pytest.raises(UpstreamError, match="HTTP 500"):
            await Judge(judge=impatient)("t", "o")
        assert down.total == 2
