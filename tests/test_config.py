"""Configuration: names that others rely on, defaults of the paper, and errors of one clear line."""

from pathlib import Path

import pytest

from fastslow import Config, ConfigError
from fastslow.config import parse_override
from fastslow.tasks import make_task

CONFIGS = sorted((Path(__file__).parents[1] / "configs").rglob("*.yaml"))


@pytest.mark.parametrize("path", CONFIGS, ids=lambda path: path.stem)
def test_shipped_configurations_load(path: Path):
    config = Config.load(path)
    if path.parent.name == "pocket" or config.task.name == "star_graph":
        assert make_task(config.task).problems("train")  # the others need the hub, or half a minute


def test_defaults_are_the_papers():
    config = Config()
    assert (config.loop.cycle, config.loop.group, config.loop.problems) == (6, 8, 32)
    assert (config.fast.k, config.fast.budget, config.fast.anchors) == (8, 960, 200)
    assert (config.slow.tau, config.slow.kl, config.slow.lr, config.slow.clip) == (
        3.0,
        1e-3,
        1e-6,
        1.0,
    )
    assert (config.slow.betas, config.slow.warmup) == ((0.9, 0.999), 10)
    assert (config.eval.temperature, config.eval.top_p, config.eval.n) == (0.6, 0.95, 4)


@pytest.mark.parametrize(
    ("data", "parts"),
    [
        ({"slow": {"leraning_rate": 1}}, ["slow.leraning_rate", "valid keys", "lr"]),
        ({"loop": {"setps": 3}}, ["loop.setps", "did you mean 'steps'"]),
        ({"looop": {}}, ["looop", "did you mean 'loop'"]),
        ({"slow": {"lr": "fast"}}, ["slow.lr = 'fast'", "number"]),
        ({"slow": {"baseline": "batch"}}, ["slow.baseline = 'batch'", "'problem' or 'prompt'"]),
        ({"loop": {"steps": 0}}, ["loop.steps = 0", "greater than or equal to 1"]),
        ({"fast": {"k": 3}}, ["fast.k = 3", "does not divide loop.group = 8", "[1, 2, 4, 8]"]),
        ({"fast": {"anchors": 2, "minibatch": 3}}, ["fast.anchors = 2", "fast.minibatch = 3"]),
        ({"fast": {"anchors": "all"}}, ["fast.anchors", "'all'"]),
        ({"fast": {"anchors": "lookahead"}}, ["fast.budget = 960", "192 anchors", "at least 1731"]),
        ({"loop": {"steps": True}}, ["loop.steps = True", "truth value"]),
        ({"slow": {"lr": float("inf")}}, ["slow.lr = inf"]),
        ({"slow": {"betas": [0.9, 1.0]}}, ["slow.betas.1 = 1.0", "less than 1"]),
        ({"fast": {"budget": 20}}, ["fast.budget = 20", "at least 39"]),
        ({"loop": {"group": 1}, "fast": {"k": 1}}, ["loop.group = 1"]),
        ({"slow": {"baseline": "prompt"}}, ["slow.baseline = 'prompt'", "fast.k = loop.group = 8"]),
    ],
)
def test_errors_name_place_value_and_what_would_do(data: dict, parts: list[str]):
    with pytest.raises(ConfigError) as caught:
        Config.parse(data, "my.yaml")
    message = str(caught.value)
    assert "\n" not in message
    for part in ["my.yaml", *parts]:
        assert part in message


def test_k_is_free_where_no_prompts_evolve():
    assert Config.parse({"fast": {"k": 3}, "loop": {"method": "rl"}}).fast.k == 3


def test_overrides_are_laid_over_the_file(tmp_path: Path):
    path = tmp_path / "a.yaml"
    path.write_text("slow: {lr: 0.1}\n")
    overrides = dict(map(parse_override, ["slow.lr=1e-4", "slow.tau=5", "task.args.degree=3"]))
    with pytest.raises(ConfigError, match="slow.lr"):  # YAML reads 1e-4 as text, as it always has
        Config.load(path, {"slow.lr": "abc"})
    config = Config.load(path, overrides)
    assert (config.slow.lr, config.slow.tau, config.task.args) == (1e-4, 5.0, {"degree": 3})


def test_a_model_may_be_written_for_short(tmp_path: Path):
    path = tmp_path / "c.yaml"
    path.write_text("model: {dtype: bf16, thinking: on, attention: sdpa}\n")
    model = Config.load(path).model
    assert (model.dtype, model.thinking) == ("bfloat16", "on")
    model = Config.load(path, dict([parse_override("model.thinking=off")])).model
    assert model.thinking == "off"
    assert Config.parse({"model": {"dtype": "fp32"}}).model.dtype == "float32"
    for wrong in ("bf15", True, [], None):
        with pytest.raises(ConfigError, match="model.dtype"):
            Config.parse({"model": {"dtype": wrong}})


def test_files_that_are_no_configuration(tmp_path: Path):
    for text, part in [
        ("a: [", "not valid YAML"),
        ("- 1", "expected sections"),
        ("\x00", "YAML"),
        ("run: {dir: 2001-99-99}", "YAML"),
    ]:
        path = tmp_path / "bad.yaml"
        path.write_text(text)
        with pytest.raises(ConfigError, match=part):
            Config.load(path)
    with pytest.raises(ConfigError, match="cannot be read"):
        Config.load(tmp_path / "absent.yaml")
    with pytest.raises(ConfigError, match="key.path=value"):
        parse_override("slow.lr")


def test_a_resolved_configuration_reads_back(tmp_path: Path):
    config = Config.parse({"slow": {"lr": 3e-5}, "fast": {"anchors": "lookahead", "budget": 2000}})
    path = tmp_path / "config.yaml"
    path.write_text(config.dump())
    assert Config.load(path) == config


def test_tasks_by_name_and_by_class():
    assert make_task(Config.parse({"task": {"name": "conftest:Letters"}}).task).name == "letters"
    for name, part in [
        ("star_grph", "did you mean 'star_graph'"),
        ("nowhere:Class", "nowhere"),
        ("conftest:rollout", "subclass of fastslow.Task"),
    ]:
        with pytest.raises(ConfigError, match=part):
            make_task(Config.parse({"task": {"name": name}}).task)
    with pytest.raises(ConfigError, match="task.args"):
        make_task(Config.parse({"task": {"args": {"sides": 3}}}).task)


def test_arguments_of_a_task_may_stand_beside_its_name():
    flat = Config.parse({"task": {"name": "codeio", "source": "generated", "lines": [2]}})
    args = {"source": "generated", "lines": [2]}
    assert flat.task == Config.parse({"task": {"name": "codeio", "args": args}}).task
    assert Config.parse(flat.model_dump()).task == flat.task
    mixed = Config.parse({"task": {"name": "codeio", "args": args, "test": 5}})
    assert mixed.task.args == args | {"test": 5}
    with pytest.raises(ConfigError, match="'lines' stands both in args and beside"):
        Config.parse({"task": {"name": "codeio", "args": args, "lines": [3]}})
    with pytest.raises(ConfigError, match="task.args"):
        Config.parse({"task": {"name": "codeio", "args": [1]}})
    flat.task.name = "hover"  # fields may be set one by one
    assert flat.task.args == args


def test_an_argument_that_a_task_does_not_take_is_named():
    config = Config.parse({"task": {"name": "star_graph", "degre": 3}})
    with pytest.raises(ConfigError, match="no such argument; did you mean 'degree'"):
        make_task(config.task)
