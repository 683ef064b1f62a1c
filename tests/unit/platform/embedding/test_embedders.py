"""Texts to vectors: what is alike is near, whatever is sent, and the event loop never waits."""

import asyncio
import json
import os
import signal
import struct
from pathlib import Path

import numpy as np
import pytest
from starlette.applications import Starlette
from starlette.responses import JSONResponse
from starlette.routing import Route

from agentlightning.kit.errors import ConfigError, UpstreamError
from agentlightning.kit.http import HttpServer
from agentlightning.platform.embedding.base import normalised
from agentlightning.platform.embedding.choose import choose_embedder
from agentlightning.platform.embedding.minilm import MiniLM, find_weights
from agentlightning.platform.embedding.remote import RemoteEmbedder
from agentlightning.platform.embedding.words import WordEmbedder, words_of
from agentlightning.platform.embedding.worker import MiniLMEmbedder
from tests.unit.platform.site import settings_for

VOCABULARY = ["[PAD]", "[UNK]", "[CLS]", "[SEP]", *"abcdefghijklmnopqrstuvwxyz", *(f"##{c}" for c in "abcdefghijklmno")]


def tiny_model(folder: Path) -> Path:
    """The architecture with random numbers and one letter a token: a model that fits into a test."""
    from tokenizers import Tokenizer, models, normalizers, pre_tokenizers, processors

    folder.mkdir(exist_ok=True)
    tokens = {word: number for number, word in enumerate(VOCABULARY)}
    tokenizer = Tokenizer(models.WordPiece(tokens, unk_token="[UNK]"))
    tokenizer.normalizer = normalizers.BertNormalizer(lowercase=True)
    tokenizer.pre_tokenizer = pre_tokenizers.BertPreTokenizer()
    tokenizer.post_processor = processors.BertProcessing(("[SEP]", 3), ("[CLS]", 2))
    tokenizer.save(str(folder / "tokenizer.json"))
    random = np.random.default_rng(1)
    shapes = {
        "embeddings.word_embeddings.weight": (len(VOCABULARY), 384),
        "embeddings.position_embeddings.weight": (512, 384),
        "embeddings.token_type_embeddings.weight": (2, 384),
    }
    norms = ["embeddings"]
    for layer in (f"encoder.layer.{number}" for number in range(6)):
        norms += [f"{layer}.attention.output", f"{layer}.output"]
        for name in ("attention.self.query", "attention.self.key", "attention.self.value", "attention.output.dense"):
            shapes |= {f"{layer}.{name}.weight": (384, 384), f"{layer}.{name}.bias": (384,)}
        shapes |= {f"{layer}.intermediate.dense.weight": (1536, 384), f"{layer}.intermediate.dense.bias": (1536,)}
        shapes |= {f"{layer}.output.dense.weight": (384, 1536), f"{layer}.output.dense.bias": (384,)}
    tensors = {name: random.normal(0, 0.05, shape).astype(np.float32) for name, shape in shapes.items()}
    for name in norms:
        tensors[f"{name}.LayerNorm.weight"] = np.ones(384, np.float32) + random.normal(0, 0.05, 384).astype(np.float32)
        tensors[f"{name}.LayerNorm.bias"] = random.normal(0, 0.05, 384).astype(np.float32)
    head, body = {}, b""
    for name, tensor in tensors.items():
        head[name] = {
            "dtype": "F32",
            "shape": list(tensor.shape),
            "data_offsets": [len(body), len(body) + tensor.nbytes],
        }
        body += tensor.tobytes()
    described = json.dumps(head).encode()
    described += b" " * (-len(described) % 8)
    (folder / "model.safetensors").write_bytes(struct.pack("<Q", len(described)) + described + body)
    return folder


@pytest.fixture(scope="module")
def model(tmp_path_factory):
    return tiny_model(tmp_path_factory.mktemp("minilm") / "m")


async def test_words_that_mean_something_alike_are_near():
    embedder = WordEmbedder()
    texts = ["a kitten drinks milk", "cats like cream", "the bank raises interest rates", ""]
    vectors = await embedder.embed(texts)
    assert vectors.shape == (4, embedder.dimension)
    assert np.allclose(np.linalg.norm(vectors, axis=1), 1, atol=1e-5)
    likeness = vectors @ vectors.T
    assert likeness[0, 1] > likeness[0, 2] + 0.1
    assert np.array_equal(vectors, await embedder.embed(texts, bulk=True))


@pytest.mark.parametrize("text", ["", "\0", "🎉🎉", "日本語", "คำที่ไม่รู้จัก", "x" * 100_000, "\ud800", "Ünïcödé", "_" * 50])
async def test_any_text_has_a_vector_of_its_own(text):
    vectors = await WordEmbedder().embed([text, text, "something else"])
    assert np.isfinite(vectors).all()
    assert np.array_equal(vectors[0], vectors[1])
    assert vectors[0] @ vectors[2] < 0.9


def test_words_are_found_without_case_accents_and_spaces():
    assert words_of("Élan, VITAL_force 東京!") == ["elan", "vital", "force", "東", "京"]


def test_vectors_without_a_direction_get_one():
    found = normalised(np.array([[0, 0], [np.nan, 1], [3, 4]], np.float32))
    assert found.tolist()[0] == [1, 0]
    assert found.tolist()[1] == [1, 0]
    assert np.allclose(found[2], [0.6, 0.8])


@pytest.mark.slow
def test_numpys_forward_pass_is_transformers(model):
    torch = pytest.importorskip("torch")
    from transformers import BertConfig, BertModel

    torch.set_num_threads(1)
    config = BertConfig(
        vocab_size=len(VOCABULARY), hidden_size=384, num_hidden_layers=6, num_attention_heads=12, intermediate_size=1536
    )
    reference = BertModel(config, add_pooling_layer=False).eval()
    ours = MiniLM(model)
    reference.load_state_dict({name: torch.tensor(np.array(w)) for name, w in ours._weights.items()}, strict=False)
    texts = ["abc", "a b c d e f", "z", "hello there " * 30]
    vectors = ours.embed(texts)
    for text, vector in zip(texts, vectors, strict=True):
        ids = torch.tensor([ours._tokens.encode(text).ids])
        with torch.no_grad():
            hidden = reference(ids).last_hidden_state[0].mean(0).numpy()
        assert np.abs(hidden / np.linalg.norm(hidden) - vector).max() < 2e-5


async def test_the_model_runs_in_processes_that_are_replaced_when_they_die(model):
    embedder = MiniLMEmbedder(model)
    try:
        texts = ["abc", "de"] * 20
        first = await embedder.embed(texts)
        assert np.abs(first - MiniLM(model).embed(texts)).max() < 1e-5
        process = embedder._workers[False]._process
        assert process is not None
        os.kill(process.pid, signal.SIGKILL)
        await process.wait()
        assert np.array_equal(await embedder.embed(texts), first)
        waiting = asyncio.create_task(embedder.embed(["abc"] * 2000))
        await asyncio.sleep(0.05)
        waiting.cancel()
        with pytest.raises(asyncio.CancelledError):
            await waiting
        assert np.array_equal(await embedder.embed(texts[:2]), first[:2])  # not the answer of the cancelled one
        assert (await embedder.embed(["abc"], bulk=True)).shape == (1, 384)
    finally:
        await embedder.close()


async def test_a_folder_without_the_model_is_said(tmp_path):
    (tmp_path / "model.safetensors").write_bytes(b"\x08" + b"\0" * 20)
    (tmp_path / "tokenizer.json").write_text("{}")
    with pytest.raises(ConfigError, match="does not hold"):
        MiniLM(tmp_path)
    embedder = MiniLMEmbedder(tmp_path)
    with pytest.raises(UpstreamError):
        await embedder.embed(["x"])
    await embedder.close()


@pytest.mark.parametrize("answer", ["right", "short", "text", "status", "unsorted"])
async def test_a_server_of_embeddings(answer):
    async def embeddings(request):
        body = await request.json()
        assert request.headers["authorization"] == "Bearer key"
        data = [{"index": n, "embedding": [3.0, float(n)]} for n, _ in enumerate(body["input"])]
        return {
            "right": JSONResponse({"data": data}),
            "unsorted": JSONResponse({"data": data[::-1]}),
            "short": JSONResponse({"data": data[:1]}),
            "text": JSONResponse({"data": "no"}),
            "status": JSONResponse({"error": "no"}, 500),
        }[answer]

    app = Starlette(routes=[Route("/v1/embeddings", embeddings, methods=["POST"])])
    async with HttpServer(app) as server:
        embedder = RemoteEmbedder(f"{server.url}/v1", "m", 2, "key")
        try:
            if answer in ("right", "unsorted"):
                found = await embedder.embed(["a", "b"])
                assert np.allclose(found, normalised(np.array([[3, 0], [3, 1]], np.float32)))
                assert (await embedder.embed([])).shape == (0, 2)
            else:
                with pytest.raises(UpstreamError):
                    await embedder.embed(["a", "b"])
        finally:
            await embedder.close()


async def test_settings_choose(tmp_path, model):
    assert choose_embedder(settings_for(tmp_path, embedder="words")).name.startswith("words")
    if find_weights() is None:
        assert choose_embedder(settings_for(tmp_path)).name.startswith("words")
        with pytest.raises(ConfigError, match="not here"):
            choose_embedder(settings_for(tmp_path, embedder="minilm"))
    chosen = choose_embedder(settings_for(tmp_path, embedder="minilm", embedder_model=str(model)))
    assert (chosen.name, chosen.dimension) == ("all-MiniLM-L6-v2.1", 384)
    await chosen.close()
    with pytest.raises(ConfigError):
        choose_embedder(settings_for(tmp_path, embedder="minilm", embedder_model=str(tmp_path)))
    with pytest.raises(ConfigError, match="AGL_EMBEDDER_URL"):
        choose_embedder(settings_for(tmp_path, embedder="http"))
    given = {"embedder_url": "http://127.0.0.1:1/v1", "embedder_model": "m", "embedder_dimension": 3}
    remote = choose_embedder(settings_for(tmp_path, embedder="http", **given))
    assert (remote.name, remote.dimension) == ("m-3", 3)
    with pytest.raises(UpstreamError):
        await remote.embed(["x"])
    await remote.close()
