"""SFT and DPO: equal to TRL's own trainers, independent of batching, and dialogues become what the engine would see."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch

from agentlightning.kit.errors import BadInputError
from agentlightning.learner.chat import ChatFormat
from agentlightning.learner.dialogues import encode_dialogue
from agentlightning.learner.model import load_model
from agentlightning.learner.protocol import FitConfig
from agentlightning.learner.step import PolicyTrainer
from agentlightning.learner.supervised import fit_examples, fit_pairs, score
from agentlightning.schemas.example import Dialogue, TokenExample, TokenPair
from agentlightning.schemas.generation import GenerateRequest
from tests.unit.learner.tiny import make_tokenizer

END = "<|im_end|>"
ASKS = [{"role": "user", "content": "how many rows"}]
SAYS = {"role": "assistant", "content": "hello world"}


def some_examples(vocab: int, rng: np.random.Generator, count: int = 5) -> list[TokenExample]:
    """Prompts and answers of different lengths; some answers are interrupted, as by a tool's result."""
    found = []
    for number in range(count):
        prompt, answer = int(rng.integers(2, 8)), int(rng.integers(2, 9))
        mask = [0] * prompt + [1] + (rng.integers(0, 2, answer - 1).tolist() if number % 2 else [1] * (answer - 1))
        found.append(TokenExample(token_ids=rng.integers(3, vocab, prompt + answer).tolist(), loss_mask=mask))
    return found


def some_pairs(vocab: int, rng: np.random.Generator, count: int = 4) -> list[TokenPair]:
    pairs = []
    for _ in range(count):
        prompt = rng.integers(3, vocab, int(rng.integers(2, 8))).tolist()
        sides = []
        for _ in range(2):
            answer = rng.integers(3, vocab, int(rng.integers(2, 9))).tolist()
            mask = [0] * len(prompt) + [1] * len(answer)
            sides.append(TokenExample(token_ids=prompt + answer, loss_mask=mask))
        gap = rng.normal(-30, 2, 2).tolist()
        pairs.append(TokenPair(chosen=sides[0], rejected=sides[1], reference_chosen=gap[0], reference_rejected=gap[1]))
    return pairs


def gradients(trainer: PolicyTrainer, fit: Any) -> tuple[dict[str, float], dict[str, torch.Tensor]]:
    """Metrics and unclipped gradients of one call, whose step has no effect."""
    found: dict[str, torch.Tensor] = {}
    clear = trainer.clear_gradients

    def keep() -> None:
        found.update({n: p.grad.clone() for n, p in trainer.parameters.items() if p.grad is not None})
        clear()

    trainer.clear_gradients = keep  # type: ignore[method-assign]
    return fit(), found


def settings(**options: Any) -> FitConfig:
    return FitConfig(lr=0.0, max_grad_norm=0.0, **options)


# -- TRL


def trl_arguments(output: Path) -> dict[str, Any]:
    return {
        "output_dir": str(output),
        "report_to": [],
        "use_cpu": True,
        "bf16": False,
        "disable_tqdm": True,
        "per_device_train_batch_size": 8,
    }


@pytest.mark.filterwarnings("ignore")
def test_sft_loss_and_gradients_equal_trl(llama_dir: Path, tmp_path: Path) -> None:
    trl = pytest.importorskip("trl", reason="trl is in the dev extra")
    from datasets import Dataset

    theirs, ours = load_model(str(llama_dir)), load_model(str(llama_dir))
    examples = some_examples(ours.vocab_size, np.random.default_rng(0))
    rows = [
        {"input_ids": e.token_ids, "labels": [t if m else -100 for t, m in zip(e.token_ids, e.loss_mask, strict=True)]}
        for e in examples
    ]
    trainer = trl.SFTTrainer(
        model=theirs.model,
        args=trl.SFTConfig(**trl_arguments(tmp_path), dataset_kwargs={"skip_prepare_dataset": True}),
        train_dataset=Dataset.from_list(rows),
        processing_class=theirs.tokenizer,
    )
    trainer.model.train()
    expected = trainer.compute_loss(trainer.model, trainer.data_collator(rows))
    expected.backward()

    policy = PolicyTrainer(ours)
    metrics, grads = gradients(policy, lambda: fit_examples(policy, examples, settings(microbatch_tokens=30)))
    assert metrics["loss"] == pytest.approx(float(expected.detach()), abs=1e-5)
    assert metrics["token_accuracy"] == pytest.approx(trainer._metrics["train"]["mean_token_accuracy"][-1], abs=1e-6)
    for name, parameter in theirs.model.named_parameters():
        torch.testing.assert_close(grads[name], parameter.grad, atol=1e-5, rtol=1e-4)


@pytest.mark.filterwarnings("ignore")
@pytest.mark.parametrize(("beta", "sft_weight"), [(0.1, 0.0), (0.5, 0.3)])
def test_dpo_loss_metrics_and_gradients_equal_trl(
    llama_dir: Path, tmp_path: Path, beta: float, sft_weight: float
) -> None:
    trl = pytest.importorskip("trl", reason="trl is in the dev extra")
    from datasets import Dataset

    theirs, ours = load_model(str(llama_dir)), load_model(str(llama_dir))
    pairs = some_pairs(ours.vocab_size, np.random.default_rng(1))
    kinds = {"loss_type": ["sigmoid", "sft"], "loss_weights": [1.0, sft_weight]} if sft_weight else {}
    trainer = trl.DPOTrainer(
        model=theirs.model,
        ref_model=load_model(str(llama_dir)).model,
        args=trl.DPOConfig(**trl_arguments(tmp_path), beta=beta, **kinds),
        train_dataset=Dataset.from_list([{"prompt": "how", "chosen": " many", "rejected": " rows"}]),
        processing_class=theirs.tokenizer,
    )
    trainer.precompute_ref_logps = True
    prompts = [p.chosen.token_ids[: p.chosen.loss_mask.index(1)] for p in pairs]
    rows = [
        {
            "prompt_ids": prompt,
            "chosen_ids": p.chosen.token_ids[len(prompt) :],
            "rejected_ids": p.rejected.token_ids[len(prompt) :],
            "ref_chosen_logps": p.reference_chosen,
            "ref_rejected_logps": p.reference_rejected,
        }
        for p, prompt in zip(pairs, prompts, strict=True)
    ]
    trainer.model.train()
    expected = trainer._compute_loss(trainer.model, trainer.data_collator(rows), return_outputs=False)
    expected.backward()

    policy = PolicyTrainer(ours)
    config = settings(microbatch_tokens=60, beta=beta, sft_weight=sft_weight)
    metrics, grads = gradients(policy, lambda: fit_pairs(policy, pairs, config))
    assert metrics["loss"] == pytest.approx(float(expected.detach()), abs=1e-5)
    logged = trainer._metrics["train"]
    for ours_name, name in {
        "reward_chosen": "rewards/chosen",
        "reward_rejected": "rewards/rejected",
        "margin": "rewards/margins",
        "accuracy": "rewards/accuracies",
    }.items():
        assert metrics[ours_name] == pytest.approx(logged[name][-1], abs=1e-4)
    for name, parameter in theirs.model.named_parameters():
        torch.testing.assert_close(grads[name], parameter.grad, atol=1e-5, rtol=1e-4)


@pytest.mark.filterwarnings("ignore")
def test_reference_log_probabilities_equal_trl(llama_dir: Path, tmp_path: Path) -> None:
    trl = pytest.importorskip("trl", reason="trl is in the dev extra")
    from datasets import Dataset

    loaded = load_model(str(llama_dir))
    row = {"prompt": ASKS, "chosen": [SAYS], "rejected": [{"role": "assistant", "content": "it is there"}]}
    trainer = trl.DPOTrainer(
        model=loaded.model,
        ref_model=load_model(str(llama_dir)).model,
        args=trl.DPOConfig(**trl_arguments(tmp_path)),
        train_dataset=Dataset.from_list([row]),
        processing_class=loaded.tokenizer,
    )
    tokens = trainer.train_dataset[0]
    batch = trainer.data_collator([tokens])
    expected = [float(value) for value in trainer.compute_ref_log_probs(trainer.ref_model, batch)]
    examples = [
        TokenExample(
            token_ids=tokens["prompt_ids"] + tokens[side],
            loss_mask=[0] * len(tokens["prompt_ids"]) + [1] * len(tokens[side]),
        )
        for side in ("chosen_ids", "rejected_ids")
    ]
    assert score(PolicyTrainer(loaded), examples, 4096) == pytest.approx(expected, abs=1e-4)
    # Ours stop at the end token, where the model itself stops; TRL learns the template's line break behind it, too.
    chat, ends = ChatFormat(loaded.tokenizer), [END]
    [chosen] = encode_dialogue(chat, Dialogue(prompt=ASKS, completion=[SAYS]), ends).examples
    assert tokens["prompt_ids"] + tokens["chosen_ids"][: len(chosen.token_ids) - len(tokens["prompt_ids"])] == (
        chosen.token_ids
    )


# -- by itself


@pytest.mark.filterwarnings("ignore::FutureWarning")  # peft with transformers 5
@pytest.mark.parametrize("lora", [None, {"r": 2}])
def test_a_step_does_not_depend_on_how_it_is_cut(llama_dir: Path, lora: dict[str, Any] | None) -> None:
    def after(most_tokens: int) -> tuple[list[dict[str, float]], list[torch.Tensor]]:
        torch.manual_seed(3)
        trainer = PolicyTrainer(load_model(str(llama_dir), lora=lora))
        config = FitConfig(lr=1e-2, microbatch_tokens=most_tokens)
        rng = np.random.default_rng(2)
        examples, pairs = some_examples(trainer.vocab_size, rng), some_pairs(trainer.vocab_size, rng)
        seen = [fit_examples(trainer, examples, config) for _ in range(2)]
        seen += [fit_pairs(trainer, pairs, config) for _ in range(2)]
        assert trainer.batches == 4
        return seen, [p.detach().clone() for p in trainer.parameters.values()]

    (whole, weights), (cut, others) = after(10_000), after(1)
    assert whole[1]["loss"] < whole[0]["loss"]
    assert whole[3]["margin"] > whole[2]["margin"]
    for one, other in zip(whole, cut, strict=True):
        assert one == pytest.approx({**other, "train_seconds": one["train_seconds"]}, rel=1e-3, abs=1e-4)
    for weight, other in zip(weights, others, strict=True):
        torch.testing.assert_close(weight, other, atol=2e-3, rtol=1e-2)


def test_weights_count(llama_dir: Path) -> None:
    trainer = PolicyTrainer(load_model(str(llama_dir)))
    first, second = some_examples(trainer.vocab_size, np.random.default_rng(4), 2)
    alone = fit_examples(trainer, [first], settings())["loss"]
    second.weight = 0.0
    assert fit_examples(trainer, [first, second], settings())["loss"] == pytest.approx(alone, abs=1e-5)
    one, two = some_pairs(trainer.vocab_size, np.random.default_rng(5), 2)
    alone = fit_pairs(trainer, [one], settings(sft_weight=1.0))["loss"]
    two.weight = 0.0
    assert fit_pairs(trainer, [one, two], settings(sft_weight=1.0))["loss"] == pytest.approx(alone, abs=1e-5)


@pytest.mark.parametrize(
    ("example", "message"),
    [
        (TokenExample(token_ids=[1, 2], loss_mask=[0]), "mask entries"),
        (TokenExample(token_ids=[1, 2], loss_mask=[0, 0]), "learns no token"),
        (TokenExample(token_ids=[1, 2], loss_mask=[1, 1]), "its first one"),
        (TokenExample(token_ids=[1, 99_999], loss_mask=[0, 1]), "another model's tokenizer"),
        (TokenExample(token_ids=[1, 2], loss_mask=[0, 1], weight=float("nan")), "weight"),
        (TokenExample(token_ids=[1, 2], loss_mask=[0, 1], weight=0.0), "nothing to learn"),
    ],
)
def test_bad_examples_are_refused(llama_dir: Path, example: TokenExample, message: str) -> None:
    trainer = PolicyTrainer(load_model(str(llama_dir)))
    with pytest.raises(BadInputError, match=message):
        fit_examples(trainer, [example], settings())
    if example.weight:
        pair = TokenPair(chosen=example, rejected=example)
        with pytest.raises(BadInputError, match=message):
            fit_pairs(trainer, [pair], settings())


def test_no_examples_are_nothing_to_learn(llama_dir: Path) -> None:
    trainer = PolicyTrainer(load_model(str(llama_dir)))
    with pytest.raises(BadInputError, match="nothing to learn"):
        fit_pairs(trainer, [], settings())


# -- dialogues

CALL = {
    "role": "assistant",
    "content": None,
    "tool_calls": [
        {"id": "1", "type": "function", "function": {"name": "count", "arguments": '{"from": "it"}'}},
    ],
}
TOOLS = [{"type": "function", "function": {"name": "count", "parameters": {"type": "object"}}}]


@pytest.fixture(scope="module")
def chat() -> ChatFormat:
    return ChatFormat(make_tokenizer())


def learned(chat: ChatFormat, example: TokenExample) -> str:
    kept = [t for t, m in zip(example.token_ids, example.loss_mask, strict=True) if m]
    return chat._backend.decode(kept, skip_special_tokens=False)


def test_a_conversation_is_one_sequence_as_the_engine_would_have_it(chat: ChatFormat) -> None:
    seen = {"role": "tool", "tool_call_id": "1", "content": "3"}
    dialogue = Dialogue(prompt=ASKS, completion=[CALL, seen, SAYS], tools=TOOLS)
    [example] = encode_dialogue(chat, dialogue, [END]).examples
    assert learned(chat, example) == (
        '<tool_call>\n{"name": "count", "arguments": {"from": "it"}}\n</tool_call><|im_end|>hello world<|im_end|>'
    )
    # The first answer stands exactly behind the prompt that the engine encodes for the same request.
    prompt = chat.encode(GenerateRequest(messages=ASKS, tools=TOOLS)).token_ids
    assert example.token_ids[: len(prompt)] == prompt
    assert example.loss_mask[: len(prompt) + 1] == [0] * len(prompt) + [1]
    # And the second behind the prompt of a second request, when the first answer was sampled in these tokens.
    first = example.loss_mask.index(0, len(prompt))
    chat.remember(chat.encode(GenerateRequest(messages=ASKS, tools=TOOLS)), example.token_ids[len(prompt) : first])
    again = chat.encode(GenerateRequest(messages=[*ASKS, CALL, seen], tools=TOOLS)).token_ids
    assert example.token_ids[: len(again)] == again


def test_whole_conversations_learn_every_answer_but_those_of_weight_0(chat: ChatFormat) -> None:
    messages = [*ASKS, SAYS, {"role": "user", "content": "where"}, {"role": "assistant", "content": "there"}]
    [example] = encode_dialogue(chat, Dialogue(prompt=[], completion=messages), [END]).examples
    assert learned(chat, example) == "hello world<|im_end|>there<|im_end|>"
    messages[1] = {**SAYS, "weight": 0}
    [example] = encode_dialogue(chat, Dialogue(prompt=[], completion=messages), [END]).examples
    assert learned(chat, example) == "there<|im_end|>"


def test_plain_texts_are_a_chat_or_raw(chat: ChatFormat) -> None:
    as_chat = encode_dialogue(chat, Dialogue(prompt="how many rows", completion="hello world"), [END])
    assert as_chat == encode_dialogue(chat, Dialogue(prompt=ASKS, completion=[SAYS]), [END])
    [raw] = encode_dialogue(chat, Dialogue(prompt="how ", completion="many", plain_text="raw"), [END]).examples
    assert chat._backend.decode(raw.token_ids, skip_special_tokens=False) == "how many<|im_end|>"
    assert learned(chat, raw) == "many<|im_end|>"
    bare = ChatFormat(make_tokenizer(template=False))
    assert encode_dialogue(bare, Dialogue(prompt="how ", completion="many"), [END]).examples == [raw]
    [text] = encode_dialogue(bare, Dialogue(prompt="", completion="how many"), [END]).examples
    assert text.loss_mask[0] == 0


def test_templates_that_forget_thoughts_give_a_sequence_each_turn() -> None:
    tokenizer = make_tokenizer()
    tokenizer.chat_template = """{% for m in messages %}<|im_start|>{{ m.role }}
{% if m.role == 'assistant' and not loop.last %}{{ m.content.split('/')[-1] }}{% else %}{{ m.content }}{% endif -%}
<|im_end|>
{% endfor %}{% if add_generation_prompt %}<|im_start|>assistant
{% endif %}"""
    chat = ChatFormat(tokenizer)
    messages = [{"role": "assistant", "content": "it is/hello"}, *ASKS, {"role": "assistant", "content": "it/world"}]
    found = encode_dialogue(chat, Dialogue(prompt=ASKS, completion=messages), [END]).examples
    assert [learned(chat, example) for example in found] == ["it is/hello<|im_end|>", "it/world<|im_end|>"]
    assert "it is/hello" not in chat._backend.decode(found[1].token_ids, skip_special_tokens=False)


@pytest.mark.parametrize(
    ("dialogue", "problem"),
    [
        (Dialogue(prompt=ASKS, completion=[{"role": "assistant", "content": ""}]), "no_response"),
        (Dialogue(prompt=ASKS, completion=ASKS), "no_response"),
        (Dialogue(prompt="a", completion="", plain_text="raw"), "no_response"),
        (Dialogue(prompt=[{"role": "nobody", "content": "x"}], completion="hello"), "template_refuses"),
        (Dialogue(prompt=[{"role": "user", "content": [{"type": "image_url"}]}], completion="x"), "template_refuses"),
    ],
)
def test_why_a_dialogue_cannot_be_used(chat: ChatFormat, dialogue: Dialogue, problem: str) -> None:
    found = encode_dialogue(chat, dialogue, [END])
    assert (found.examples, found.problem) == ([], problem)


def test_a_template_that_writes_answers_elsewhere_is_noticed() -> None:
    tokenizer = make_tokenizer()
    tokenizer.chat_template = (
        "{% for m in messages %}{{ m.content }}{% endfor %}{% if add_generation_prompt %}now: {% endif %}"
    )
    found = encode_dialogue(ChatFormat(tokenizer), Dialogue(prompt=ASKS, completion=[SAYS]), [END])
    assert found.problem == "template_differs"


def test_an_answer_that_the_template_leaves_open_is_ended() -> None:
    tokenizer = make_tokenizer()
    tokenizer.chat_template = "{% for m in messages %}{{ m.content }} {% endfor %}"
    chat = ChatFormat(tokenizer)
    [example] = encode_dialogue(chat, Dialogue(prompt=ASKS, completion=[SAYS]), [END]).examples
    assert learned(chat, example) == "hello world <|im_end|>"
