"""The local engine against plain transformers, autograd and AdamW written out."""

import random
import shutil
from pathlib import Path

import pytest
import torch
from transformers import AutoModelForCausalLM

from fastslow import Config, ConfigError, ModelError, RunError
from fastslow.api import make_engine
from fastslow.engine.base import Datum, SamplingParams
from fastslow.engine.batching import pack
from fastslow.engine.forward import read, segments
from fastslow.engine.local import LocalEngine

CONTEXTS = [[5, 6, 7, 8, 9, 10], [11, 12, 13], [14, 15, 16, 17]]
FREE = SamplingParams(max_tokens=12)


def oracle(model, context: list[int], tokens: list[int], temperature: float = 1.0) -> torch.Tensor:
    """Log-probabilities of a response, from one plain forward pass over one unpadded sequence."""
    logits = model(input_ids=torch.tensor([context + tokens])).logits[0].float() / temperature
    at = torch.arange(len(tokens)) + len(context) - 1
    return logits.log_softmax(-1)[at, torch.tensor(tokens)]


def sequences(engine: LocalEngine) -> list[tuple[list[int], list[int]]]:
    samples = engine.sample(CONTEXTS, [3, 1, 4], FREE, seed=1)
    return [(c, s.tokens) for c, row in zip(CONTEXTS, samples, strict=True) for s in row]


@pytest.fixture
def plain(tiny: Path):
    return AutoModelForCausalLM.from_pretrained(tiny).eval()


def test_how_rows_are_batched_changes_no_draw(tiny):
    contexts = [[5, 6, 7], [5, 6, 7, 8], [9] * 12, [3]]
    drawn = []
    for rows in (512, 3):
        engine = LocalEngine(Config.parse({"model": {"name": str(tiny)}, "engine": {"rows": rows}}))
        samples = engine.sample(contexts, [3, 2, 0, 4], SamplingParams(max_tokens=9), seed=7)
        drawn.append([[sample.tokens for sample in row] for row in samples])
    assert drawn[0] == drawn[1]
    assert [len(row) for row in drawn[0]] == [3, 2, 0, 4]
    assert len({tuple(tokens) for tokens in drawn[0][0]}) == 3  # each row has luck of its own


def test_behaviour_logprobs_are_those_of_the_model(engine: LocalEngine, plain):
    for temperature in (1.0, 0.7):
        params = SamplingParams(temperature=temperature, max_tokens=12)
        for context, row in zip(
            CONTEXTS, engine.sample(CONTEXTS, [3, 1, 4], params, seed=0), strict=True
        ):
            for sample in row:
                expected = oracle(plain, context, sample.tokens, temperature)
                assert torch.tensor(sample.logprobs).sub(expected).abs().max() < 1e-5


def test_counts_seeds_and_stops(engine: LocalEngine):
    first = engine.sample(CONTEXTS, [3, 0, 4], FREE, seed=3)
    assert [len(row) for row in first] == [3, 0, 4]
    assert first == engine.sample(CONTEXTS, [3, 0, 4], FREE, seed=3)
    assert first != engine.sample(CONTEXTS, [3, 0, 4], FREE, seed=4)
    engine.stops = list(range(0, 600, 2))  # half of the vocabulary ends a response
    for row in engine.sample(CONTEXTS, [30, 30, 30], FREE, seed=5):
        for sample in row:
            ends = [token in engine.stops for token in sample.tokens]
            assert ends.index(True) == len(ends) - 1 if True in ends else sample.truncated
            assert len(sample.tokens) == len(sample.logprobs)
            assert sample.truncated == (not ends[-1])


def test_sampling_follows_the_models_distribution(engine: LocalEngine, plain):
    params = SamplingParams(temperature=0.5, max_tokens=1)
    draws = [s.tokens[0] for s in engine.sample([CONTEXTS[0]], [20_000], params, seed=0)[0]]
    probs = (plain(input_ids=torch.tensor([CONTEXTS[0]])).logits[0, -1] / 0.5).softmax(-1)
    seen = torch.bincount(torch.tensor(draws), minlength=len(probs)) / len(draws)
    assert (seen - probs).abs().max() < 5 * (probs.max() / len(draws)).sqrt()


def test_top_p_keeps_the_smallest_set_that_reaches_p(engine: LocalEngine, plain):
    params = SamplingParams(temperature=1.0, top_p=0.5, max_tokens=1)
    draws = {s.tokens[0] for s in engine.sample([CONTEXTS[0]], [2000], params, seed=0)[0]}
    probs = (plain(input_ids=torch.tensor([CONTEXTS[0]])).logits[0, -1] / 1.0).softmax(-1)
    order = probs.argsort(descending=True)
    needed = int((probs[order].cumsum(0) < 0.5).sum()) + 1
    assert draws <= set(order[:needed].tolist())
    assert needed > 1


def test_logprobs_equal_the_plain_pass(engine: LocalEngine, plain):
    pairs = sequences(engine)
    for budget in (10_000, 40):  # one micro-batch, and many
        engine.settings.token_budget = budget
        for which in ("policy", "base"):
            found = engine.logprobs(pairs, which)
            for (context, tokens), values in zip(pairs, found, strict=True):
                expected = oracle(plain, context, tokens)
                assert torch.tensor(values).sub(expected).abs().max() < 1e-5


@pytest.mark.parametrize("budget", [10_000, 40])  # all at once, and chunks computed twice
@pytest.mark.parametrize("temperature", [1.0, 0.5])
def test_read_is_log_softmax_with_its_entropy_and_gradient(budget: int, temperature: float):
    torch.manual_seed(0)
    hidden = (torch.randn(9, 20) * torch.logspace(-2, 2, 9)[:, None]).requires_grad_()
    tokens, slope = torch.randint(20, (9,)), torch.randn(9)
    found, entropy = read(torch.nn.Identity(), hidden, tokens, temperature, budget)
    (gradient,) = torch.autograd.grad(found, hidden, slope)
    assert not entropy.requires_grad

    exact = hidden.detach().double().requires_grad_()
    every = (exact / temperature).log_softmax(-1)
    expected = every[torch.arange(9), tokens]
    assert expected.min() < -200  # far beyond where FP32's exponential is zero
    torch.testing.assert_close(found, expected.float(), rtol=1e-6, atol=1e-5)
    torch.testing.assert_close(entropy, -(every.exp() * every).sum(-1).float(), atol=1e-4, rtol=0)
    (wanted,) = torch.autograd.grad(expected, exact, slope.double())
    torch.testing.assert_close(gradient, wanted.float(), rtol=1e-5, atol=1e-6)


def unpacked(packed) -> list[tuple[list[int], list[int]]]:
    """What a packed batch stands for, read back from its tensors."""
    whole: list[list[int]] = []
    for stage in packed.stages:
        own = [
            row[mask.bool()].tolist()
            for row, mask in zip(stage.tokens_NL, stage.mask_NL, strict=True)
        ]
        before = [[]] * len(own) if stage.parent_N is None else [whole[n] for n in stage.parent_N]
        whole = [start + rest for start, rest in zip(before, own, strict=True)]
    return [
        (whole[packed.parent_R[r]], packed.tokens_RT[r][packed.token_mask_RT[r].bool()].tolist())
        for r in range(len(packed.rows))
    ]


def test_packing_keeps_to_its_budget_and_loses_nothing():
    pairs = [([1] * (3 + i // 4), [2] * (1 + i % 5)) for i in range(40)]
    seen = []
    for packed in pack(pairs, 60, 0, torch.device("cpu")):
        assert (
            sum(stage.tokens_NL.numel() for stage in packed.stages) + packed.tokens_RT.numel() <= 60
        )
        assert unpacked(packed) == [pairs[row] for row in packed.rows]
        seen += packed.rows
    assert sorted(seen) == list(range(40))


def staged_pairs() -> list[tuple[list[int], list[int]]]:
    """Three system prompts of unlike lengths, four problems each, two responses to every one."""
    prompts = [list(range(20, 60)), list(range(100, 120)), [*range(20, 40), *range(200, 255)]]
    problems = [[7, 8, 9, 10 + i] + [5] * i for i in range(4)]
    return [
        (prompt + problem, [3 + i, 4, *range(30, 30 + i)])
        for prompt in prompts
        for problem in problems
        for i in range(2)
    ]


def test_shared_stems_are_forwarded_once_and_change_nothing(engine: LocalEngine, plain):
    pairs = staged_pairs()
    (packed,) = pack(pairs, 10_000, 0, torch.device("cpu"))
    stems, rests = packed.stages
    assert (len(stems.tokens_NL), len(rests.tokens_NL)) == (3, 12)
    assert rests.tokens_NL.shape[1] < 20
    assert unpacked(packed) == [pairs[row] for row in packed.rows]
    for (context, tokens), values in zip(pairs, engine.logprobs(pairs, "policy"), strict=True):
        assert torch.tensor(values).sub(oracle(plain, context, tokens)).abs().max() < 1e-5
    contexts = [context for context, _ in pairs[::2]]
    for context, row in zip(contexts, engine.sample(contexts, [2] * 12, FREE, seed=0), strict=True):
        for sample in row:
            expected = oracle(plain, context, sample.tokens)
            assert torch.tensor(sample.logprobs).sub(expected).abs().max() < 1e-5


def test_random_batches_equal_the_plain_pass(engine: LocalEngine, plain):
    """Contexts of all lengths, alike to all degrees, one response token or many."""
    rng = random.Random(0)
    stems = [
        [rng.randrange(5, 500) for _ in range(rng.choice((1, 12, 13, 30, 60)))] for _ in range(5)
    ]
    for _ in range(15):
        pairs = []
        for _ in range(rng.randrange(1, 12)):
            context = [*rng.choice(stems), *rng.choice(stems)[: rng.randrange(20)]]
            for _ in range(rng.randrange(1, 4)):
                pairs.append((context, [rng.randrange(5, 500) for _ in range(rng.randrange(1, 9))]))
        rng.shuffle(pairs)
        engine.settings.token_budget = rng.choice((50, 300, 10_000))
        for (context, tokens), values in zip(pairs, engine.logprobs(pairs, "policy"), strict=True):
            assert torch.tensor(values).sub(oracle(plain, context, tokens)).abs().max() < 2e-5


@pytest.mark.parametrize("staged", [False, True])
@pytest.mark.parametrize("budget", [10_000, 40])
def test_update_is_one_cispo_step_of_adamw(tiny: Path, plain, budget: int, staged: bool):
    """Weights after `update` against loss, gradient, clipping and AdamW spelled out on the plain model."""
    slow = {"lr": 1e-2, "warmup": 0, "kl": 0.1, "clip": 0.5, "tau": 1.05}
    engine = make_engine(
        Config.parse(
            {"model": {"name": str(tiny)}, "slow": slow, "engine": {"token_budget": budget}}
        )
    )
    pairs = staged_pairs()[:8] if staged else sequences(engine)
    advantages = [1.0, -0.5, 0.3, -1.2, 0.8, 0.1, -0.4, 2.0]
    behaviour = [
        [v + 0.1 * (i % 3 - 1) for v in row]
        for i, row in enumerate(engine.logprobs(pairs, "policy"))
    ]
    data = [
        Datum(
            context,
            tokens,
            logprobs,
            [1 / (len(tokens) * 8)] * len(tokens),
            [advantage - 0.2 * i for i in range(len(tokens))],
        )
        for (context, tokens), logprobs, advantage in zip(pairs, behaviour, advantages, strict=True)
    ]
    result = engine.update(data)

    total = torch.tensor(0.0)
    for datum in data:
        logp = oracle(plain, datum.context, datum.tokens)
        rho = (logp.detach() - torch.tensor(datum.logprobs)).exp().clamp(max=1.05)
        gap = logp.detach() - logp  # the base is the same model here: its values are logp's
        k3 = gap.exp() - gap - 1
        total = (
            total
            + (
                (-rho * torch.tensor(datum.advantages) * logp + 0.1 * k3)
                * torch.tensor(datum.weights)
            ).sum()
        )
    total.backward()
    norm = torch.nn.utils.clip_grad_norm_(plain.parameters(), 0.5)
    torch.optim.AdamW(plain.parameters(), lr=1e-2, betas=(0.9, 0.999), weight_decay=0.0).step()

    assert result.loss == pytest.approx(total.item(), abs=1e-5)
    assert result.grad_norm == pytest.approx(norm.item(), rel=1e-4)
    assert engine.version == 1
    for mine, theirs in zip(engine.policy.parameters(), plain.parameters(), strict=True):
        # AdamW's first step is lr * sign(gradient) wherever the gradient is not rounding noise.
        sure = theirs.grad.abs() > 1e-6
        assert (mine - theirs)[sure].abs().max() < 1e-3 * 1e-2 + 1e-6


def test_warm_up_is_linear(tiny: Path):
    engine = make_engine(
        Config.parse({"model": {"name": str(tiny)}, "slow": {"lr": 1.0e-6, "warmup": 4}})
    )
    data = [Datum([1, 2], [3, 4], [-1.0, -1.0], [0.5, 0.5], [1.0, 1.0])]
    rates = [engine.update(data).lr for _ in range(6)]
    assert rates == pytest.approx([0.25e-6, 0.5e-6, 0.75e-6, 1e-6, 1e-6, 1e-6])


def test_the_base_stays_frozen(engine: LocalEngine, plain):
    pairs = sequences(engine)
    before = engine.logprobs(pairs, "base")
    engine.update([Datum(c, t, [-1.0] * len(t), [0.1] * len(t), [1.0] * len(t)) for c, t in pairs])
    assert engine.logprobs(pairs, "base") == before
    assert engine.logprobs(pairs, "policy") != before


def test_save_and_load_continue_bit_for_bit(tiny: Path, tmp_path: Path):
    config = Config.parse({"model": {"name": str(tiny)}, "slow": {"lr": 1e-3, "warmup": 3}})
    first, second = make_engine(config), make_engine(config)
    data = [Datum([1, 2], [3, 4, 5], [-1.0] * 3, [0.3] * 3, [1.0] * 3)]
    first.update(data)
    first.save(tmp_path)
    second.load(tmp_path)
    for engine in (first, second):
        engine.update(data)
    assert second.version == 2
    for a, b in zip(first.policy.parameters(), second.policy.parameters(), strict=True):
        assert torch.equal(a, b)
    AutoModelForCausalLM.from_pretrained(tmp_path / "model")  # plain Hugging Face format


def test_half_precision_learns_from_tiny_rates(tiny: Path):
    """A rate of 1e-6 vanishes in a bf16 weight; FP32 masters keep it until it adds up."""
    config = {"model": {"name": str(tiny), "dtype": "bfloat16"}, "slow": {"lr": 2e-5, "warmup": 0}}
    engine = make_engine(Config.parse(config))
    data = [Datum([1, 2], [3, 4], [-1.0, -1.0], [0.5, 0.5], [1.0, 1.0])]
    before = engine.policy.get_input_embeddings().weight.clone()
    for _ in range(60):
        engine.update(data)
    moved = engine.policy.get_input_embeddings().weight - before
    assert engine.policy.dtype == torch.bfloat16
    assert moved.abs().max() > 5e-4
    fresh = engine.sample([[1, 2]], [4], FREE, seed=0)[0]
    found = engine.logprobs([([1, 2], s.tokens) for s in fresh], "policy")
    for sample, values in zip(fresh, found, strict=True):
        assert torch.tensor(values).sub(torch.tensor(sample.logprobs)).abs().max() < 0.1


def test_bad_models_are_named(tiny: Path, tmp_path: Path):
    with pytest.raises(ModelError, match="nowhere"):
        make_engine(Config.parse({"model": {"name": str(tmp_path / "nowhere")}}))
    bare = tmp_path / "bare"
    bare.mkdir()
    for path in tiny.iterdir():
        if "chat_template" not in path.name:
            (bare / path.name).write_bytes(path.read_bytes())
    with pytest.raises(ModelError, match="no chat template"):
        make_engine(Config.parse({"model": {"name": str(bare)}}))


def test_damaged_models_are_named(tiny: Path, tmp_path: Path):
    from safetensors.torch import load_file, save_file

    def copy(name: str) -> Path:
        return Path(shutil.copytree(tiny, tmp_path / name))

    cut = copy("cut")
    (cut / "model.safetensors").write_bytes((tiny / "model.safetensors").read_bytes()[:999])
    lacking = copy("lacking")
    weights = load_file(tiny / "model.safetensors")
    weights.pop("model.layers.1.mlp.up_proj.weight")
    save_file(weights, lacking / "model.safetensors", {"format": "pt"})
    odd = copy("odd")
    (odd / "chat_template.jinja").write_text("{% for %}")
    wide = copy("wide")
    text = (wide / "config.json").read_text()
    (wide / "config.json").write_text(
        text.replace('"intermediate_size": 96', '"intermediate_size": 80')
    )
    for path, said in [
        (cut, "model.name"),
        (lacking, "1 weights are missing, model.layers.1.mlp.up_proj"),
        (odd, "chat template fails"),
        (wide, "model.name"),
    ]:
        with pytest.raises(ModelError, match=said):
            make_engine(Config.parse({"model": {"name": str(path)}}))


def test_weights_that_diverged_are_said_so(engine: LocalEngine):
    lost = Datum([1, 2], [3, 4], [-1.0, -1.0], [0.5, 0.5], [float("inf")] * 2)
    result = engine.update([lost])
    assert not result.applied  # no step is taken on a gradient that is not finite
    assert engine.sample([[1, 2]], [1], FREE, seed=0)
    with torch.no_grad():
        engine.policy.get_input_embeddings().weight.fill_(float("nan"))
    with pytest.raises(ModelError, match="not finite after 1 updates.*lower slow.lr"):
        engine.sample([[1, 2]], [1], FREE, seed=0)


def test_unknown_devices_are_named(tiny: Path):
    for device in ("foo", "cuda:99"):
        with pytest.raises(ConfigError, match=f"model.device = '{device}'"):
            make_engine(Config.parse({"model": {"name": str(tiny), "device": device}}))


def test_stop_strings_must_be_tokens(tiny: Path):
    with pytest.raises(ConfigError, match="sampling.stop"):
        make_engine(
            Config.parse({"model": {"name": str(tiny)}, "sampling": {"stop": ["xylophone zebra"]}})
        )


def test_a_prompt_longer_than_the_context_is_refused(engine: LocalEngine):
    with pytest.raises(
        ConfigError, match="600 tokens leaves no room in the model's context of 512"
    ):
        engine.sample([[1] * 600], [1], FREE, seed=0)


def test_damaged_checkpoints_are_named(engine: LocalEngine, tmp_path: Path):
    engine.save(tmp_path)
    weights = tmp_path / "model" / "model.safetensors"
    weights.write_bytes(weights.read_bytes()[:1000])
    with pytest.raises(RunError, match="damaged checkpoint"):
        engine.load(tmp_path)


def test_rows_that_have_ended_are_let_go():
    assert segments([5, 5, 5]) == [(0, 4)]
    assert segments([1, 1]) == []
    assert segments([1, 9]) == [(0, 8)]  # half is padding, but no cut of one row's makes it less
    assert segments([4, 4, 4, 40]) == [(0, 3), (3, 39)]
    rng = random.Random(0)
    for _ in range(200):
        lengths = [round(rng.lognormvariate(3, 0.7)) + 1 for _ in range(rng.randint(1, 60))]
        found = segments(lengths)
        assert [a for a, _ in found[1:]] == [b for _, b in found[:-1]]
        assert found[-1][1] == max(lengths) - 1
        fed = sum((b - a) * sum(n - 1 > a for n in lengths) for a, b in found)
        real = sum(n - 1 for n in lengths)
        assert real <= fed <= real + 0.5 * len(lengths) * (max(lengths) - 1)
