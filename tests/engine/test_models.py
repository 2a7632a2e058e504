"""Families of models, adapters and memory savers against plain transformers and plain autograd."""

from __future__ import annotations

import copy
import shutil
from pathlib import Path

import pytest
import torch
import transformers
from transformers import AutoModelForCausalLM

import fastslow
from conftest import Letters
from fastslow import Config, ConfigError, ModelError
from fastslow.engine.base import Datum, SamplingParams
from fastslow.engine.forward import halve
from fastslow.engine.local import LocalEngine

SIZES = {
    "vocab_size": 1200,
    "hidden_size": 32,
    "intermediate_size": 48,
    "num_hidden_layers": 2,
    "num_attention_heads": 2,
    "num_key_value_heads": 1,
    "head_dim": 16,
    "max_position_embeddings": 256,
}
EXPERTS = {"num_experts": 4, "num_experts_per_tok": 2, "moe_intermediate_size": 16}
WINDOW = 6
FAMILIES = {
    "Llama": {},
    "Mistral": {"sliding_window": WINDOW},
    "Gemma2": {"sliding_window": WINDOW},  # soft caps on logits, every other layer a window
    "Gemma3Text": {
        "sliding_window": WINDOW,
        "layer_types": ["sliding_attention", "full_attention"],
    },
    "Qwen3Moe": EXPERTS,
}
# Contexts of different lengths, beyond the window, two of them with a stem in common.
STEM = list(range(20, 40))
CONTEXTS = [[*STEM, 50, 51, 52], [*STEM, 60], [*range(70, 79)]]


@pytest.fixture(params=FAMILIES)
def place(request: pytest.FixtureRequest, tiny: Path, tmp_path: Path) -> Path:
    """A directory with a random model of the family, and the tokenizer of the pocket model."""
    return made(request.param, tiny, tmp_path / request.param)


def made(family: str, tiny: Path, directory: Path) -> Path:
    shutil.copytree(tiny, directory)
    torch.manual_seed(0)
    config = getattr(transformers, f"{family}Config")(**SIZES, **FAMILIES[family])
    name = "Gemma3" if family == "Gemma3Text" else family
    getattr(transformers, f"{name}ForCausalLM")(config).save_pretrained(directory)
    return directory


def engine(place: Path, **sections: dict) -> LocalEngine:
    model = {"name": str(place), **sections.pop("model", {})}
    slow = {"lr": 1e-2, "warmup": 0, "kl": 0.1, "clip": 1e6, **sections.pop("slow", {})}
    return LocalEngine(Config.parse({"model": model, "slow": slow, **sections}))


def plain_logprobs(model, context: list[int], tokens: list[int]) -> torch.Tensor:
    """From one forward pass over one unpadded sequence, without a cache."""
    logits = model(input_ids=torch.tensor([context + tokens]), use_cache=False).logits[0].float()
    at = torch.arange(len(tokens)) + len(context) - 1
    return logits.log_softmax(-1)[at, torch.tensor(tokens)]


def batch(model: LocalEngine) -> list[Datum]:
    """Responses to learn from, of different lengths, advantages of both signs."""
    rows = model.sample(CONTEXTS, [3, 1, 4], SamplingParams(max_tokens=12), seed=1)
    drawn = [(c, s) for c, row in zip(CONTEXTS, rows, strict=True) for s in row]
    data = []
    for i, (context, sample) in enumerate(drawn):
        tokens, logprobs = sample.tokens[: 12 - i], sample.logprobs[: 12 - i]
        weights = [1 / (len(drawn) * len(tokens))] * len(tokens)
        data.append(Datum(context, tokens, logprobs, weights, [(-1.0) ** i] * len(tokens)))
    return data


def gradients(model) -> dict[str, torch.Tensor]:
    return {
        name.replace(".base_layer", ""): weight.grad
        for name, weight in model.named_parameters()
        if weight.grad is not None
    }


def learned(model: LocalEngine, data: list[Datum]) -> dict[str, torch.Tensor]:
    """The gradients of an update, which its optimizer would clear."""
    model._optimizer.step = lambda: (1.0, 0.0)  # type: ignore[method-assign]
    model.update(data)
    return gradients(model.policy)


def assert_close(found: dict[str, torch.Tensor], expected: dict[str, torch.Tensor]) -> None:
    assert found.keys() == expected.keys()
    for name, gradient in found.items():
        scale = expected[name].abs().max().clamp(min=1e-4)
        assert (gradient - expected[name]).abs().max() < 2e-4 * scale, name


def test_sampling_and_scoring_agree_with_the_plain_model(place: Path):
    made, plain = engine(place), AutoModelForCausalLM.from_pretrained(place).eval()
    rows = made.sample(CONTEXTS, [2, 2, 2], SamplingParams(max_tokens=12), seed=0)
    sequences = [(c, s.tokens) for c, row in zip(CONTEXTS, rows, strict=True) for s in row]
    behaviour = [s.logprobs for row in rows for s in row]
    scored = made.logprobs(sequences, "policy")
    for (context, tokens), mine, again in zip(sequences, behaviour, scored, strict=True):
        expected = plain_logprobs(plain, context, tokens)
        assert torch.tensor(mine).sub(expected).abs().max() < 2e-5
        assert torch.tensor(again).sub(expected).abs().max() < 2e-5


def test_an_update_is_the_plain_gradient(place: Path):
    made, plain = engine(place), AutoModelForCausalLM.from_pretrained(place).eval()
    data = batch(made)
    total = torch.zeros(())
    for datum in data:
        logprobs = plain_logprobs(plain, datum.context, datum.tokens)
        ratio = (logprobs.detach() - torch.tensor(datum.logprobs)).exp().clamp(max=3.0)
        gap = logprobs.detach() - logprobs  # to the base, which is the same model
        loss = -ratio * torch.tensor(datum.advantages) * logprobs + 0.1 * (gap.exp() - gap - 1)
        total = total + (loss * torch.tensor(datum.weights)).sum()
    total.backward()
    assert_close(learned(made, data), gradients(plain))


@pytest.mark.parametrize(
    "sections",
    [
        {"model": {"gradient_checkpointing": True}},
        {"engine": {"logits": 5 * 1200}},
        {"engine": {"token_budget": 60}},
        {"model": {"gradient_checkpointing": True}, "engine": {"logits": 1, "token_budget": 60}},
        {"model": {"attention": "eager"}},
    ],
    ids=["checkpointing", "chunked logits", "micro-batches", "all of it", "eager"],
)
def test_saving_memory_changes_nothing(place: Path, sections: dict):
    usual = engine(place)
    data = batch(usual)
    thrifty = engine(place, **copy.deepcopy(sections))
    sequences = [(datum.context, datum.tokens) for datum in data]
    pairs = zip(usual.logprobs(sequences, "base"), thrifty.logprobs(sequences, "base"), strict=True)
    assert all(row == pytest.approx(other, abs=2e-5) for row, other in pairs)
    assert_close(learned(thrifty, data), learned(usual, data))


@pytest.mark.slow
@pytest.mark.skipif(shutil.which("c++") is None, reason="torch.compile wants a C++ compiler")
def test_compiling_changes_nothing(tiny: Path):
    usual = engine(tiny)
    data = batch(usual)
    torch._dynamo.utils.counters.clear()
    compiled = engine(tiny, model={"compile": True})
    assert_close(learned(compiled, data), learned(usual, data))
    assert torch._dynamo.utils.counters["stats"]["unique_graphs"] > 0  # something was compiled


def test_the_logits_of_a_long_batch_never_exist_whole(tiny: Path, tmp_path: Path):
    model = engine(made("Llama", tiny, tmp_path / "m"), engine={"logits": 5 * 1200})
    most = 0

    def watch(module, inputs, output):
        nonlocal most
        most = max(most, output.numel())

    model.policy.get_output_embeddings().register_forward_hook(watch)
    data = batch(model)
    most = 0
    model.update(data)
    assert sum(len(datum.tokens) for datum in data) > 40
    assert most == 5 * 1200


def test_a_head_that_does_more_than_its_layer_stays_whole(tiny: Path, tmp_path: Path):
    for family, whole in (("Llama", False), ("Gemma2", True)):
        model = AutoModelForCausalLM.from_pretrained(made(family, tiny, tmp_path / family)).eval()
        hidden = halve(model).body(input_ids=torch.tensor([[1, 2]]), use_cache=False)
        assert hidden.shape[-1] == (1200 if whole else 32)


def test_adapters_learn_alone_and_the_base_is_the_model_without_them(place: Path, tmp_path: Path):
    pytest.importorskip("peft")
    model = engine(place, model={"lora": {"rank": 4}})
    plain = AutoModelForCausalLM.from_pretrained(place).eval()
    data = batch(model)
    sequences = [(datum.context, datum.tokens) for datum in data]
    before = model.logprobs(sequences, "policy")
    for row, (context, tokens) in zip(before, sequences, strict=True):
        assert row == pytest.approx(plain_logprobs(plain, context, tokens).tolist(), abs=2e-5)
    for _ in range(3):
        model.update(data)
    trained = {name for name, w in model.policy.named_parameters() if w.requires_grad}
    assert trained
    assert all("lora_" in name for name in trained)
    after = model.logprobs(sequences, "policy")
    assert (
        max(
            abs(a - b)
            for x, y in zip(before, after, strict=True)
            for a, b in zip(x, y, strict=True)
        )
        > 1e-3
    )
    base = model.logprobs(sequences, "base")
    for row, old in zip(base, before, strict=True):
        assert row == pytest.approx(old, abs=2e-5)

    model.save(tmp_path / "saved")
    assert (tmp_path / "saved/model/adapter_model.safetensors").stat().st_size < 200_000
    again = engine(place, model={"lora": {"rank": 4}})
    again.load(tmp_path / "saved")
    assert again.version == 3
    assert again.logprobs(sequences, "policy") == after
    for continued in (model, again):
        continued.update(data)
    assert again.logprobs(sequences, "policy") == model.logprobs(sequences, "policy")
    # A folder of adapters is a model like any other, to begin a second run with.
    merged = engine(tmp_path / "saved/model", model={"base": str(place)})
    for row, old in zip(merged.logprobs(sequences, "policy"), after, strict=True):
        assert row == pytest.approx(old, abs=2e-5)
    for row, old in zip(merged.logprobs(sequences, "base"), base, strict=True):
        assert row == pytest.approx(old, abs=2e-5)


def test_adapters_repeat_themselves_and_say_what_is_wrong(tiny: Path):
    pytest.importorskip("peft")
    first, second = (engine(tiny, model={"lora": {"rank": 2}}) for _ in range(2))
    weights = [dict(e.policy.named_parameters()) for e in (first, second)]
    assert all(torch.equal(weights[0][name], weights[1][name]) for name in weights[0])
    with pytest.raises(ConfigError, match="model.lora.targets = .'nothing'"):
        engine(tiny, model={"lora": {"targets": ["nothing"]}})


def test_a_whole_run_with_adapters_resumes(small: dict):
    pytest.importorskip("peft")
    small["model"] |= {"lora": {"rank": 4}}
    small["slow"] |= {"lr": 1e-2}
    run = fastslow.train(small, task=Letters())
    assert run.summary is not None
    assert run.summary["kl_to_base"] > 1e-6
    fastslow.api.evaluate_run(run.dir, "seed", 1, task=Letters())


def test_recurrent_layers_are_refused(tiny: Path, tmp_path: Path):
    shutil.copytree(tiny, tmp_path / "m")
    config = transformers.Qwen3NextConfig(
        **SIZES,
        **EXPERTS,
        layer_types=["linear_attention", "full_attention"],
        linear_num_key_heads=2,
        linear_num_value_heads=2,
        linear_key_head_dim=8,
        linear_value_head_dim=8,
    )
    transformers.Qwen3NextForCausalLM(config).save_pretrained(tmp_path / "m")
    with pytest.raises(ModelError, match="layers keep Linear.*takes models whose layers attend"):
        engine(tmp_path / "m")
