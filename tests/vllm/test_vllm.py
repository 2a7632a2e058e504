"""vLLM as a sampler beside the native path, for real: run by `make test-vllm`."""

from __future__ import annotations

import importlib.util
import math
from collections.abc import Iterator
from pathlib import Path
from statistics import fmean, pvariance

import pytest
import torch
from transformers import AutoConfig, AutoModelForCausalLM, AutoTokenizer

import fastslow
from fastslow import Config, pocket
from fastslow.engine.base import SamplingParams
from fastslow.engine.local import LocalEngine
from fastslow.engine.vllm import VllmSampler
from fastslow.errors import ConfigError, ModelError
from vllm_parts import (
    ADVICE,
    StopsAfter3,
    gaps,
    learn,
    pairs,
    run_settings,
    sixteen_contexts,
    trainer,
)

pytestmark = [
    pytest.mark.vllm,
    # This folder alone would be found under that name too, but has no file to be imported from.
    pytest.mark.skipif(
        getattr(importlib.util.find_spec("vllm"), "origin", None) is None,
        reason="vLLM is not installed",
    ),
]

SHARE = {"sampling": {"memory": 0.02}}


def sampler_for(engine: LocalEngine, **sections: dict) -> VllmSampler:
    config = Config.parse(SHARE | {"slow": {"fp32_logits": True}} | sections)
    return VllmSampler(config, engine.source, engine.stops, engine.context_length)


@pytest.fixture(scope="module")
def engine() -> LocalEngine:
    return trainer()


@pytest.fixture(scope="module")
def sampler(engine: LocalEngine) -> VllmSampler:
    return sampler_for(engine)


@pytest.fixture
def pristine(engine: LocalEngine, sampler: VllmSampler) -> Iterator[None]:
    """Both with the weights from disk again, whatever a test did to them."""
    before = {name: tensor.clone() for name, tensor in engine.policy.state_dict().items()}
    yield
    engine.policy.load_state_dict(before)
    engine.reset_optimizer()
    sampler.sync(engine.policy.named_parameters())


@pytest.fixture(scope="module")
def contexts(engine: LocalEngine) -> list[list[int]]:
    return sixteen_contexts(engine)


@pytest.mark.parametrize("temperature", [1.0, 0.6, 1.3])
def test_logprobs_are_the_trainers_of_the_tempered_distribution(
    engine, sampler, contexts, temperature
):
    drawn = sampler.sample(contexts, [4] * 16, SamplingParams(temperature, 1.0, 40), seed=1)
    found = gaps(pairs(contexts, drawn), engine, temperature)
    assert max(found) < 1e-4
    assert fmean(found) < 1e-6


def test_top_p_keeps_to_the_nucleus_and_reports_the_whole_distribution(engine, sampler, contexts):
    params = SamplingParams(1.0, 0.8, 24)
    drawn = sampler.sample_verified(
        contexts[:4], [3] * 4, params, 2, lambda rows, heat: engine.logprobs(rows, "policy", heat)
    )
    for context, one in pairs(contexts[:4], drawn):
        with torch.no_grad():
            logits = engine.policy(torch.tensor([context + one.tokens])).logits[0].double()
        for place, (token, logprob) in enumerate(zip(one.tokens, one.logprobs, strict=True)):
            whole = logits[len(context) + place - 1].softmax(-1)
            assert float(whole[token].log()) == pytest.approx(logprob, abs=1e-4)
            likelier = float(whole[whole > whole[token]].sum())
            assert likelier < 0.8


def test_samples_depend_on_seed_and_arguments_alone(sampler, contexts):
    params = SamplingParams(1.0, 1.0, 40)
    first = sampler.sample(contexts, [2] * 16, params, seed=3)
    other = sampler.sample(contexts, [2] * 16, params, seed=4)
    assert sampler.sample(contexts, [2] * 16, params, seed=3) == first
    assert other != first
    alike = sampler.sample(contexts[:1], [8], params, seed=3)[0]
    assert len({tuple(one.tokens) for one in alike}) > 1


def test_counts_stop_tokens_and_truncation(engine, sampler, contexts):
    drawn = sampler.sample(contexts[:3], [2, 0, 3], SamplingParams(1.0, 1.0, 40), seed=5)
    assert [len(row) for row in drawn] == [2, 0, 3]
    for _, one in pairs(contexts[:3], drawn):
        assert (one.tokens[-1] in engine.stops) != one.truncated
        assert not any(token in engine.stops for token in one.tokens[:-1])
    short = sampler.sample(contexts[:2], [2, 2], SamplingParams(1.0, 1.0, 3), seed=5)
    assert all(one.truncated and len(one.tokens) == 3 for row in short for one in row)
    room = 4  # the context ends a response too
    long = (contexts[0] * 20)[: engine.context_length - room]
    (one,) = sampler.sample([long], [1], SamplingParams(2.0, 1.0, 40), seed=5)[0]
    assert len(one.tokens) <= room
    assert sampler.sample([], [], SamplingParams(), seed=5) == []


def test_same_distribution_as_the_native_path(engine, sampler, contexts):
    """The share of each first token, mean length and mean log-probability, within four standard errors."""
    params, n = SamplingParams(1.0, 1.0, 40), 40
    ours = pairs(contexts, engine.sample(contexts, [n] * 16, params, seed=7))
    theirs = pairs(contexts, sampler.sample(contexts, [n] * 16, params, seed=7))
    assert len(ours) == len(theirs) == 16 * n
    for measure in (
        lambda one: float(len(one.tokens)),
        lambda one: sum(one.logprobs),
        lambda one: float(one.truncated),
        *(
            lambda one, token=token: float(token in one.tokens)
            for token in {one.tokens[0] for _, one in ours}
        ),
    ):
        a, b = ([measure(one) for _, one in side] for side in (ours, theirs))
        error = math.sqrt((pvariance(a) + pvariance(b)) / len(a))
        assert abs(fmean(a) - fmean(b)) <= 4 * error


def test_after_a_sync_the_samples_are_the_new_weights_own(engine, sampler, contexts, pristine):
    params = SamplingParams(1.0, 1.0, 40)
    found = pairs(contexts, sampler.sample(contexts, [4] * 16, params, seed=8))  # fills the cache
    learn(engine, found)
    assert fmean(gaps(found, engine)) > 1e-4  # the update can be seen
    sampler.sync(engine.policy.named_parameters())
    again = pairs(contexts, sampler.sample(contexts, [4] * 16, params, seed=8))
    assert max(gaps(again, engine)) < 1e-4


@pytest.mark.parametrize("top_p", [1.0, 0.9])
def test_a_skipped_sync_is_found_out(engine, sampler, contexts, pristine, top_p):
    def score(rows, heat):
        return engine.logprobs(rows, "policy", heat)

    params = SamplingParams(1.0, top_p, 40)
    sampler.verified = False
    drawn = sampler.sample_verified(contexts, [4] * 16, params, 9, score)
    assert sampler.verified
    learn(engine, pairs(contexts, drawn))  # one update at a learning rate of 1e-5
    sampler.verified = False
    with pytest.raises(ModelError, match="sampler and trainer disagree"):
        sampler.sample_verified(contexts, [4] * 16, params, 9, score)
    sampler.sync(engine.policy.named_parameters())
    sampler.sample_verified(contexts, [4] * 16, params, 9, score)
    assert sampler.verified


# -- a process has room for one vLLM: from here on the shared sampler is closed ----------------------


def test_a_stop_token_of_ones_own_and_a_new_sampler_closes_the_old(engine, sampler, contexts):
    stops = [*engine.stops, engine.tokenizer(",", add_special_tokens=False).input_ids[0]]
    bounded = VllmSampler(Config.parse(SHARE), engine.source, stops, engine.context_length)
    with pytest.raises(ModelError, match="one engine at a time"):
        sampler.sample(contexts, [1] * 16, SamplingParams(), seed=6)
    drawn = bounded.sample(contexts, [4] * 16, SamplingParams(1.0, 1.0, 40), seed=6)
    ends = {one.tokens[-1] for _, one in pairs(contexts, drawn) if not one.truncated}
    assert stops[-1] in ends
    assert ends <= set(stops)


@pytest.mark.parametrize(
    ("kind", "dtype", "tied", "largest"),
    [
        ("qwen3", "float32", False, 1e-4),
        ("llama", "float32", True, 1e-4),
        ("qwen3", "bfloat16", True, 0.1),
    ],
)
def test_other_models_sync_too(tmp_path: Path, kind, dtype, tied, largest):
    """Random weights without biases, tied or not, in either precision."""
    directory = random_model(tmp_path, kind, tied)
    sections = {"model": {"name": str(directory), "dtype": dtype}}
    engine = trainer(**sections | {"slow": {"lr": 1e-2, "warmup": 0}})
    sampler = sampler_for(engine, **sections)
    contexts = [engine.render("Write.", f"Problem {place}.") for place in range(8)]
    params = SamplingParams(1.0, 1.0, 12)
    found = pairs(contexts, sampler.sample(contexts, [2] * 8, params, seed=10))
    assert max(gaps(found, engine)) < largest
    learn(engine, found)
    stale = gaps(found, engine)
    sampler.sync(engine.policy.named_parameters())
    found = pairs(contexts, sampler.sample(contexts, [2] * 8, params, seed=11))
    assert max(gaps(found, engine)) < largest < max(stale)


def random_model(directory: Path, kind: str, tied: bool) -> Path:
    tokenizer = AutoTokenizer.from_pretrained(pocket.path())
    torch.manual_seed(0)
    config = AutoConfig.for_model(
        kind,
        vocab_size=len(tokenizer),
        hidden_size=64,
        intermediate_size=96,
        num_hidden_layers=2,
        num_attention_heads=2,
        num_key_value_heads=1,
        head_dim=32,
        max_position_embeddings=256,
        tie_word_embeddings=tied,
        eos_token_id=tokenizer.eos_token_id,
        pad_token_id=tokenizer.pad_token_id,
    )
    AutoModelForCausalLM.from_config(config).save_pretrained(directory)
    tokenizer.save_pretrained(directory)
    return directory


def test_a_model_that_vllm_cannot_start_is_one_clear_line(engine, tmp_path):
    config = Config.parse({"sampling": {"memory": 1e-6}})
    with pytest.raises(ModelError, match=r"does not start on .* with sampling\.memory = 1e-06"):
        VllmSampler(config, engine.source, engine.stops, engine.context_length)


# -- through the engine and the loop ----------------------------------------------------------------


def test_a_whole_run_and_its_last_checkpoint(tmp_path):
    run = fastslow.train(run_settings(tmp_path / "run", top_p=0.95, memory=0.02))
    assert run.summary is not None
    steps = [row for row in run.metrics if row["step"]]
    assert [row["step"] for row in steps] == [1, 2]
    assert all(row["ratio"]["fresh"]["deviation"] < 1e-3 for row in steps)
    opened = fastslow.api.open_run(run.dir)
    assert isinstance(opened.engine, LocalEngine)
    assert opened.engine.version == sum(row.get("applied", False) for row in steps)
    contexts = [opened.engine.render(ADVICE, problem.prompt) for problem in opened.problems]
    opened.engine.sample(contexts, [2] * len(contexts), SamplingParams(1.0, 1.0, 40), seed=1)


def test_a_run_whose_sync_is_lost_stops(tmp_path, monkeypatch):
    monkeypatch.setattr(VllmSampler, "sync", lambda self, named: setattr(self, "verified", False))
    with pytest.raises(ModelError, match="sampler and trainer disagree"):
        fastslow.train(run_settings(tmp_path / "run", memory=0.02))


def test_what_adapters_learn_reaches_the_sampler(contexts):
    pytest.importorskip("peft")
    engine = trainer(
        model={"lora": {"rank": 4}},
        sampling={"backend": "vllm", "memory": 0.02},
        slow={"lr": 1e-3, "warmup": 0},
    )
    params = SamplingParams(1.0, 1.0, 40)
    found = pairs(contexts, engine.sample(contexts, [2] * 16, params, seed=12))
    learn(engine, found)
    assert fmean(gaps(found, engine)) > 1e-4
    found = pairs(contexts, engine.sample(contexts, [2] * 16, params, seed=12))
    assert max(gaps(found, engine)) < 1e-4


def test_several_processes_are_refused(engine, monkeypatch):
    monkeypatch.setenv("WORLD_SIZE", "2")
    with pytest.raises(ConfigError, match="torchrun"):
        sampler_for(engine)


def test_a_straight_run_and_one_that_was_stopped_agree(tmp_path):
    """To the last bit, on a CPU in FP32: what a call returns depends on nothing that came before it."""
    settings = run_settings(tmp_path / "straight", memory=0.02)
    settings["loop"]["steps"] = 4
    straight = fastslow.train(settings)
    settings["run"]["dir"] = str(tmp_path / "stopped")
    with pytest.raises(KeyboardInterrupt):
        fastslow.train(settings, observer=StopsAfter3())
    resumed = fastslow.resume(tmp_path / "stopped")
    timeless = [[row | {"seconds": None} for row in run.metrics] for run in (straight, resumed)]
    assert timeless[0] == timeless[1]


def test_an_unknown_backend_is_refused():
    with pytest.raises(ConfigError, match="backend"):
        Config.parse({"sampling": {"backend": "sglang"}})
