"""The Tinker engine against SkyRL's own server (JAX backend, CPU, LoRA)."""

from __future__ import annotations

import tarfile
from pathlib import Path

import pytest
import torch

from fastslow import Config, ConfigError
from fastslow.api import make_engine
from fastslow.engine.base import Datum, SamplingParams
from fastslow.engine.tinker import TinkerEngine
from fastslow.engine.tinker_probe import Able

pytestmark = pytest.mark.tinker

RANK = 8
CONTEXTS = [[5, 6, 7, 8, 9, 10], [11, 12, 13], [14, 15, 16, 17]]
FREE = SamplingParams(max_tokens=12)
SLOW = {"lr": 1e-3, "warmup": 0, "kl": 0.0, "tau": 1.05, "clip": 1e6}  # SkyRL does not clip


def settings(skyrl, **slow: object) -> dict:
    engine = {
        "kind": "tinker",
        "base_url": skyrl.url,
        "model": str(skyrl.model),
        "lora_rank": RANK,
    }
    return {"model": {"name": str(skyrl.model)}, "engine": engine, "slow": SLOW | slow}


def served(skyrl, **slow: object) -> TinkerEngine:
    return TinkerEngine(Config.parse(settings(skyrl, **slow)))


@pytest.fixture
def local(skyrl):
    lora = {"rank": RANK, "alpha": 32.0, "targets": "all-linear"}
    return make_engine(
        Config.parse({"model": {"name": str(skyrl.model), "lora": lora}, "slow": SLOW})
    )


def batch(engine, even: bool = False) -> list[Datum]:
    """Responses a little off the policy, with advantages of both signs.

    `even`: advantages above 0, and weights that make each sequence's `min(rho, tau) * A * w` add up to
    the same: the one kind of batch on which SkyRL's JAX backend takes cross_entropy's weights as a sum.
    """
    rows = engine.sample(CONTEXTS, [2, 3, 3], FREE, seed=1)
    drawn = [(c, s) for c, row in zip(CONTEXTS, rows, strict=True) for s in row]
    scores = engine.logprobs([(c, s.tokens) for c, s in drawn], "policy")
    data = []
    for i, ((context, sample), logprobs) in enumerate(zip(drawn, scores, strict=True)):
        n = len(sample.tokens)
        behaviour = [v + 0.1 * ((i + t) % 3 - 1) for t, v in enumerate(logprobs)]
        weights = [1 / (8 * n)] * n
        advantages = [(1.0 if even else (-1.0) ** i) * (1 + 0.1 * t) for t in range(n)]
        if even:
            rho = [
                min(2.718281828459045 ** (p - b), 1.05)
                for p, b in zip(logprobs, behaviour, strict=True)
            ]
            whole = sum(r * a for r, a in zip(rho, advantages, strict=True))
            weights = [1 / (8 * whole)] * n
        data.append(Datum(context, sample.tokens, behaviour, weights, advantages))
    return data


def gap(rows: list[list[float]], others: list[list[float]]) -> float:
    return max(
        abs(a - b)
        for row, other in zip(rows, others, strict=True)
        for a, b in zip(row, other, strict=True)
    )


def adapter(skyrl, directory: Path) -> Path:
    """The newest adapter that the server wrote for sampling, unpacked."""
    packed = max(
        skyrl.state.rglob("sampler_weights/*.tar.gz"), key=lambda path: path.stat().st_mtime
    )
    with tarfile.open(packed) as archive:
        archive.extractall(directory, filter="data")
    return directory


def test_samples_and_scores_are_those_of_the_model(skyrl, local):
    engine = served(skyrl)
    rows = engine.sample(CONTEXTS, [3, 0, 2], FREE, seed=4)
    assert [len(row) for row in rows] == [3, 0, 2]
    assert rows == engine.sample(CONTEXTS, [3, 0, 2], FREE, seed=4)
    sequences = [(c, s.tokens) for c, row in zip(CONTEXTS, rows, strict=True) for s in row]
    expected = local.logprobs(sequences, "base")
    assert gap([s.logprobs for row in rows for s in row], expected) < 1e-4
    assert gap(engine.logprobs(sequences, "policy"), expected) < 1e-4
    assert gap(engine.logprobs(sequences, "base"), expected) < 1e-4
    assert (engine.able.cispo, engine.able.reduction) == (True, "mean")


@pytest.mark.parametrize("path", ["cispo", "importance_sampling", "cross_entropy", "kl"])
def test_updates_equal_the_local_engines(skyrl, local, tmp_path: Path, path: str):
    """One step from the same adapter: loss, gradient norm, log-probabilities and adapters after it."""
    from peft import load_peft_weights, set_peft_model_state_dict

    slow = {"kl": 0.05} if path == "kl" else {}
    engine = served(skyrl, **slow)
    local.slow.kl = engine.slow.kl
    data = batch(
        engine, even=path == "cross_entropy"
    )  # a first sample: the server writes its adapter
    start = load_peft_weights(str(adapter(skyrl, tmp_path / "start")), device="cpu")
    set_peft_model_state_dict(local.policy, start)
    if path in ("importance_sampling", "cross_entropy"):  # as if the server had no CISPO
        engine.able = Able(
            cispo=False, reduction="mean" if path == "importance_sampling" else "sum"
        )
    mine, theirs = engine.update(data), local.update(data)
    assert mine.loss == pytest.approx(theirs.loss, rel=1e-4)
    assert mine.kl == pytest.approx(theirs.kl, abs=1e-6)
    assert mine.grad_norm == pytest.approx(theirs.grad_norm, rel=1e-4)
    assert gap(mine.logprobs, theirs.logprobs) < 1e-4
    sequences = [(datum.context, datum.tokens) for datum in data]
    after = engine.logprobs(sequences, "policy")
    moved = gap(after, mine.logprobs)
    assert moved > 1e-2
    assert gap(after, local.logprobs(sequences, "policy")) < 1e-4
    engine.sample(CONTEXTS, [1, 1, 1], FREE, seed=0)
    weights = load_peft_weights(str(adapter(skyrl, tmp_path / "end")), device="cpu")
    # AdamW's first step is lr * sign(gradient) wherever the gradient is not rounding noise.
    close = [
        (weights[name.replace(".default", "")] - tensor).abs() < 1e-4
        for name, tensor in local.policy.named_parameters()
        if "lora_" in name
    ]
    assert torch.cat([part.flatten() for part in close]).float().mean() > 0.99


def test_sampling_leaves_the_learner_alone(skyrl):
    """SkyRL's JAX backend loads a sampling client's weights into the learner: fresh ones alone may."""
    engine = served(skyrl)
    data = batch(engine)
    old = engine._fresh_sampler()
    sequences = [(datum.context, datum.tokens) for datum in data]
    engine.update(data)
    before = engine.logprobs(sequences, "policy")
    engine.sample(CONTEXTS, [2, 2, 2], FREE, seed=0)
    engine.sample(CONTEXTS, [2, 2, 2], FREE, seed=0, which="base")
    assert engine.logprobs(sequences, "policy") == before
    drawn = engine.client.types.SamplingParams(max_tokens=1, seed=0)
    old.sample(engine.wire.prompt([5, 6]), 1, drawn).result()  # what the engine never does
    assert gap(engine.logprobs(sequences, "policy"), before) > 1e-3


def test_save_and_load_continue_bit_for_bit(skyrl, tmp_path: Path):
    first = served(skyrl)
    data = batch(first)
    sequences = [(datum.context, datum.tokens) for datum in data]
    first.update(data)
    first.save(tmp_path)
    expected = first.update(data), first.logprobs(sequences, "policy")
    second = served(skyrl)
    second.load(tmp_path)
    assert (second.update(data), second.logprobs(sequences, "policy")) == expected
    assert second.version == 2


@pytest.mark.parametrize(("rank", "said"), [(0, "full fine-tuning"), (64, "adapters of rank 64")])
def test_what_it_lacks_is_said_at_the_start(skyrl, rank: int, said: str):
    config = settings(skyrl)
    config["engine"]["lora_rank"] = rank
    with pytest.raises(ConfigError, match=f"engine.lora_rank = {rank}: .* refuses {said}"):
        TinkerEngine(Config.parse(config))


def test_no_server_and_other_models_are_named(skyrl):
    config = settings(skyrl)
    config["engine"] |= {"model": "Qwen/Qwen3-8B", "tokenizer": str(skyrl.model)}
    with pytest.raises(ConfigError, match="engine.model = 'Qwen/Qwen3-8B': .* serves"):
        TinkerEngine(Config.parse(config))
    config["engine"]["base_url"] = "http://127.0.0.1:9"
    with pytest.raises(ConfigError, match="no Tinker server answers there"):
        TinkerEngine(Config.parse(config))
