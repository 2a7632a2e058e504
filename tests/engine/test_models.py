"""Families of models, adapters and memory savers against plain transformers and plain autograd."""

from __future__ import annotations

import copy
import shutil
from pathlib import Path

import pytest
import torch
from transformers import AutoModelForCausalLM

import fastslow
from conftest import Letters
from families import (
    FAMILIES,
    assert_close,
    assert_predicts_as_plain,
    batch,
    engine,
    learned,
    made,
    plain_gradients,
    plain_logprobs,
)
from fastslow import ConfigError
from fastslow.engine.forward import halve


@pytest.fixture(params=FAMILIES)
def place(request: pytest.FixtureRequest, tiny: Path, tmp_path: Path) -> Path:
    """A directory with a random model of the family, and the tokenizer of the pocket model."""
    return made(request.param, tiny, tmp_path / request.param)


def test_sampling_and_scoring_agree_with_the_plain_model(place: Path):
    assert_predicts_as_plain(engine(place), place)


def test_an_update_is_the_plain_gradient(place: Path):
    made = engine(place)
    data = batch(made)
    assert_close(learned(made, data), plain_gradients(place, data))


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
