"""Which ways a model allows, and that a plainer one is taken, or a line said, where others are wrong."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest
import transformers

import fastslow
from conftest import Letters
from families import (
    EXPERTS,
    RECURRENT,
    SIZES,
    WINDOW,
    assert_close,
    assert_predicts_as_plain,
    batch,
    engine,
    learned,
    made,
    plain_gradients,
)
from fastslow import Config, ConfigError, ModelError
from fastslow.engine.batching import side_by_side
from fastslow.engine.layout import Layout
from fastslow.engine.memory import Shape, parts_of_memory

ALL = Layout(shared=True, stems=True, padded=True)
NO_STEMS = Layout(shared=True, stems=False, padded=True)
WHOLE = Layout(shared=False, stems=False, padded=True)
ALONE = Layout(shared=False, stems=False, padded=False)

ROUTED = {
    **EXPERTS,
    "num_local_experts": 4,
    "n_routed_experts": 4,
    "n_shared_experts": 1,
    "n_group": 1,
    "topk_group": 1,
    "first_k_dense_replace": 1,
    "shared_expert_intermediate_size": 16,
    "intermediate_size_mlp": 48,
}
LATENT = {
    **ROUTED,
    "num_key_value_heads": 2,
    "head_dim": 8,
    "q_lora_rank": 16,
    "kv_lora_rank": 16,
    "qk_rope_head_dim": 8,
    "qk_nope_head_dim": 8,
    "v_head_dim": 16,
}
STATES = {
    "mamba_n_heads": 4,
    "mamba_d_head": 16,
    "mamba_d_ssm": 64,
    "mamba_d_state": 8,
    "mamba_n_groups": 1,
    "mamba_chunk_size": 8,
    "mamba_num_heads": 4,
    "mamba_head_dim": 16,
    "mamba_dt_rank": 4,
    "ssm_state_size": 8,
    "n_groups": 1,
    "chunk_size": 8,
}

# What each family's layers keep decides; beside it, what else is odd about it.
FOUND: dict[str, tuple[Layout, dict[str, Any]]] = {
    "Mpt": (NO_STEMS, {"d_model": 32, "n_heads": 2, "n_layers": 2}),  # a bias by cache slots
    "DeepseekV4": (
        ALONE,
        LATENT | {"num_key_value_heads": 1},
    ),  # blocks of tokens, a cache of its own
    "JetMoe": (ALL, ROUTED | {"kv_channels": 16}),  # heads are repeated after the cache
}
MORE: dict[str, tuple[Layout, dict[str, Any]]] = {
    "Apertus": (ALL, {}),
    "Bamba": (WHOLE, STATES | {"attn_layer_indices": [1]}),
    "Bloom": (NO_STEMS, {"n_layer": 2, "n_head": 2}),  # a bias by distance, no limit to its context
    "Cohere2": (NO_STEMS, {"sliding_window": WINDOW}),
    "DeepseekV3": (ALL, LATENT),
    "DeepseekV32": (WHOLE, LATENT | {"index_n_heads": 2, "index_head_dim": 16}),
    "Ernie4_5": (ALL, {}),
    "Exaone4": (NO_STEMS, {"sliding_window": WINDOW}),
    "FalconH1": (WHOLE, STATES),
    "GPT2": (ALL, {"n_inner": 48}),
    "GPTNeoX": (ALL, {}),
    "Gemma4Text": (NO_STEMS, {}),
    "Glm4": (ALL, {}),
    "Glm4Moe": (ALL, ROUTED),
    "GptOss": (NO_STEMS, ROUTED | {"sliding_window": WINDOW}),  # sinks
    "Granite": (ALL, {}),
    "GraniteMoeHybrid": (WHOLE, ROUTED | STATES | {"layer_types": ["mamba", "attention"]}),
    "HunYuanDenseV1": (ALL, {}),
    "Jamba": (WHOLE, ROUTED | STATES | {"attn_layer_period": 2, "attn_layer_offset": 1}),
    "KimiLinear": (WHOLE, LATENT | RECURRENT),
    "Lfm2Moe": (WHOLE, ROUTED | {"layer_types": ["conv", "full_attention"]}),
    "Llama4Text": (NO_STEMS, ROUTED | {"attention_chunk_size": 8}),
    "Mamba": (WHOLE, {}),  # its cache goes by another name, and it wants no mask for one token
    "Mamba2": (WHOLE, STATES | {"num_heads": 4, "head_dim": 16, "state_size": 8}),
    "MiniMaxM2": (ALL, ROUTED),
    "Mixtral": (ALL, ROUTED),
    "Nemotron": (ALL, {}),
    "NemotronH": (WHOLE, ROUTED | STATES),
    "OPT": (ALL, {"ffn_dim": 48, "word_embed_proj_dim": 32}),
    "Olmo3": (NO_STEMS, {"sliding_window": WINDOW}),
    "OlmoHybrid": (WHOLE, RECURRENT),
    "Phi3": (NO_STEMS, {"sliding_window": WINDOW}),
    "Phimoe": (NO_STEMS, ROUTED | {"sliding_window": WINDOW}),
    "Qwen2": (ALL, {}),
    "Qwen2Moe": (ALL, ROUTED),
    "Qwen3Next": (WHOLE, ROUTED | RECURRENT),
    "SeedOss": (ALL, {}),
    "SmolLM3": (ALL, {}),
    "StableLm": (ALL, {}),
    "Starcoder2": (ALL, {}),
}


def known(family: str, settings: dict[str, Any]) -> dict[str, Any]:
    """The sizes and settings that a family's configuration has a name for; it would keep others as well."""
    usual = getattr(transformers, f"{family}Config")()
    names = usual.to_dict()
    marks = {"pad_token_id": 0, "bos_token_id": 1, "eos_token_id": 2}
    wanted = SIZES | marks | settings
    return {name: wanted[name] for name in wanted if name in names or hasattr(usual, name)}


@pytest.mark.parametrize(
    "family", [*FOUND, *(pytest.param(name, marks=pytest.mark.slow) for name in MORE)]
)
def test_each_family_is_as_plain_transformers_have_it(family: str, tiny: Path, tmp_path: Path):
    layout, settings = (FOUND | MORE)[family]
    place = made(family, tiny, tmp_path / family, **known(family, settings))
    model = engine(place)
    assert model.layout == layout
    assert_predicts_as_plain(model, place)
    data = batch(model)
    assert_close(learned(model, data), plain_gradients(place, data))


def test_a_model_with_recurrent_layers_makes_a_whole_run(small: dict, tiny: Path, tmp_path: Path):
    place = made("Qwen3_5Text", tiny, tmp_path / "recurrent")
    small["model"] = {"name": str(place)}
    run = fastslow.train(small, task=Letters())
    assert run.summary is not None
    assert run.summary["rollouts"]["reused"] > 0
    # Behaviour is what is learned from: sampled by a recurrent cache, scored without one.
    ratios = [row["ratio"]["fresh"] for row in run.metrics if "fresh" in row.get("ratio", {})]
    assert ratios
    assert all(ratio["deviation"] < 1e-4 for ratio in ratios)


def test_a_base_of_another_family_is_refused(tiny: Path, tmp_path: Path):
    other = made("Mistral", tiny, tmp_path / "windows")
    model = engine(tiny, model={"base": str(other)})
    with pytest.raises(ConfigError, match="model.base = .*windows.*take a base of the same family"):
        model.logprobs([([1, 2], [3])], "base")


def test_a_plan_counts_contexts_as_often_as_they_are_forwarded(tiny: Path, tmp_path: Path):
    def learning(family: str, **settings: Any) -> float:
        place = made(family, tiny, tmp_path / family, **settings)
        config = Config.parse({"model": {"name": str(place)}, "fast": {"k": 1}})
        return parts_of_memory(config, Shape.of(config), 100, 10)["learning"]

    # Eight rollouts: 8 x 110 tokens for each problem, where sharing leaves 100 + 8 x 10.
    shared = learning("Llama")
    assert learning("Qwen3_5Text") > 3 * shared
    assert learning("Mamba", **SIZES) > 3 * shared  # its configuration knows no heads


REFUSED = {
    "Bert": (
        "does not predict each token from those before it alone .* off by",
        {"initializer_range": 0.3},
    ),
    "OpenAIGPT": ("does not predict each token from those before it alone", {}),  # it has no cache
    "GPT2": ("does not run as a causal language model .IndexError", {"max_position_embeddings": 2}),
}


@pytest.mark.parametrize("family", REFUSED)
def test_what_is_no_causal_model_is_refused_in_one_line(family: str, tiny: Path, tmp_path: Path):
    message, settings = REFUSED[family]
    with pytest.raises(ModelError, match=f"model.name = .*{family}.*{message}") as caught:
        engine(made(family, tiny, tmp_path / family, **known(family, settings)))
    assert "\n" not in str(caught.value)


@pytest.mark.slow
def test_checkpointing_draws_no_lots(tiny: Path, tmp_path: Path):
    place = made("Phimoe", tiny, tmp_path / "Phimoe", **known("Phimoe", MORE["Phimoe"][1]))
    data = batch(engine(place))
    frugal = engine(place, model={"gradient_checkpointing": True})
    assert_close(learned(frugal, data), learned(engine(place), data))


@pytest.mark.parametrize(
    ("family", "model", "message"),
    [
        (
            "Llama4Text",
            {"lora": {"rank": 2}},
            "model.lora.targets = 'all-linear': with adapters there",
        ),
        ("JetMoe", {"gradient_checkpointing": True}, "model.gradient_checkpointing = True: JetMoe"),
    ],
)
def test_what_a_family_cannot_do_is_said_in_one_line(
    family: str, model: dict, message: str, tiny: Path, tmp_path: Path
):
    if "lora" in model:
        pytest.importorskip("peft")
    place = made(family, tiny, tmp_path / family, **known(family, (FOUND | MORE)[family][1]))
    with pytest.raises(ConfigError, match=message) as caught:
        engine(place, model=model)
    assert "\n" not in str(caught.value)


def test_contexts_side_by_side():
    contexts, counts = [[1], [2, 2], [3], [4, 4], [5]], [2, 2, 2, 2, 9]
    order = [0, 2, 4, 1, 3]
    assert list(side_by_side(contexts, counts, order, 4, padded=True)) == [[0, 2], [4], [1, 3]]
    assert list(side_by_side(contexts, counts, order, 99, padded=True)) == [order]
    assert list(side_by_side(contexts, counts, order, 99, padded=False)) == [[0, 2, 4], [1, 3]]
    assert list(side_by_side(contexts, counts, [], 4, padded=True)) == []
