"""One tree of settings; each default is the FST paper's (arXiv 2605.12484) unless its line differs."""

from __future__ import annotations

import difflib
from pathlib import Path
from typing import Annotated, Any, Literal

import yaml
from pydantic import (
    AfterValidator,
    BaseModel,
    ConfigDict,
    Field,
    ValidationError,
    ValidationInfo,
    field_validator,
    model_validator,
)

from fastslow.errors import ConfigError
from fastslow.methods import METHODS

MethodName = Literal["fst", "rl", "gepa", "gepa+rl", "rl+gepa", "base+gepa", "fst-distill"]
TrackerName = Literal["none", "trackio", "wandb", "tensorboard"]
Beta = Annotated[float, Field(ge=0, lt=1)]


def _an_address(value: str) -> str:
    if not value.startswith(("http://", "https://")):
        raise ValueError("expected an address that begins with http:// or https://")
    return value


Address = Annotated[str, AfterValidator(_an_address)]


class Section(BaseModel):
    """A part of the tree: unknown keys and values of the wrong type are errors, never ignored."""

    model_config = ConfigDict(extra="forbid", validate_assignment=True, allow_inf_nan=False)

    @field_validator("*", mode="before")
    @classmethod
    def _no_bool_for_a_number(cls, value: Any, info: ValidationInfo) -> Any:
        kind = cls.model_fields[str(info.field_name)].annotation
        if isinstance(value, bool) and kind is not bool:
            raise ValueError(f"expected {getattr(kind, '__name__', kind)}, found a truth value")
        return value


class RunConfig(Section):
    dir: str | None = None  # None: runs/<task>-<method>-s<seed>
    seed: int = Field(0, ge=0)
    checkpoint_every: int | None = Field(None, ge=1)  # steps, beside the end of every cycle
    rollouts: bool = True  # write every rollout as readable JSON lines
    report: bool = True  # write report.html at the end
    tracker: TrackerName = "none"  # where each step's metrics go beside metrics.jsonl
    tracker_args: dict[str, Any] = Field(default_factory=dict)  # to it: project, entity, mode, ...
    threads: int | None = Field(None, ge=1)  # None: what PyTorch finds


class LoraConfig(Section):
    """Low-rank adapters (arXiv 2106.09685) by `peft`; the base is the same weights without them."""

    rank: int = Field(32, ge=1)
    alpha: float = Field(32.0, gt=0)  # the adapter's output is scaled by alpha / rank
    targets: str | list[str] = "all-linear"  # peft's target_modules


class ModelConfig(Section):
    name: str = "pocket"  # "pocket", a directory, or a hub name
    base: str | None = None  # the reference of KL; None: `name` as it is before training
    # Sampling and training share it; fp32 and bf16 for short.
    dtype: Literal["float32", "bfloat16"] = "float32"
    device: str = "auto"  # "auto" takes the GPU when there is one
    lora: LoraConfig | None = None  # None: full fine-tuning, the paper's setting
    thinking: Literal["on", "off"] | None = None  # None: as the chat template has it
    attention: str | None = None  # transformers' attn_implementation; None: the model's usual one
    compile: bool = False  # torch.compile the passes that learn
    gradient_checkpointing: bool = False  # less memory, more time; contexts are then not shared
    shard: bool = False  # under torchrun: FSDP2 splits FP32 weights, moments and summed gradients

    @field_validator("dtype", mode="before")
    @classmethod
    def _in_full(cls, value: Any) -> Any:
        return {"fp32": "float32", "bf16": "bfloat16"}.get(str(value), value)

    @field_validator("thinking", mode="before")
    @classmethod
    def _as_written(cls, value: Any) -> Any:
        """YAML reads a bare `on` or `off` as a truth value."""
        return ("on" if value else "off") if isinstance(value, bool) else value

    @model_validator(mode="after")
    def _whole_adapters(self) -> ModelConfig:
        if self.shard and self.lora is not None:
            raise ValueError(
                "shard: true is for full fine-tuning; with lora little is left to split"
            )
        return self


class TaskConfig(Section):
    name: str = "star_graph"  # a name from `fastslow tasks`, or module:Class
    args: dict[str, Any] = Field(default_factory=dict)  # its arguments may also stand beside `name`
    seed_prompt: str | None = None  # None: the task's own

    @model_validator(mode="before")
    @classmethod
    def _arguments_beside_the_name(cls, data: Any) -> Any:
        """`{name: jsonl, path: rows.jsonl}` as `{name: jsonl, args: {path: rows.jsonl}}`."""
        if not isinstance(data, dict) or not isinstance(data.get("args", {}), dict):
            return data
        beside = {key: value for key, value in data.items() if key not in cls.model_fields}
        own = {key: value for key, value in data.items() if key in cls.model_fields}
        twice = beside.keys() & own.get("args", {}).keys()
        if twice:
            raise ValueError(f"{min(twice)!r} stands both in args and beside it; give it once")
        return own | {"args": own.get("args", {}) | beside}

    @classmethod
    def parse(cls, data: dict[str, Any], where: str) -> TaskConfig:
        """Validate a plain dict; `where` names its origin in the error."""
        try:
            return cls.model_validate(data)
        except ValidationError as error:
            raise ConfigError("; ".join(_explain(item, where) for item in error.errors())) from None


class EngineConfig(Section):
    """Who holds the weights: this process, or any server that speaks the Tinker API (docs/cluster.md)."""

    kind: Literal["local", "tinker"] = "local"
    # local
    token_budget: int = Field(32_768, ge=1)  # padded tokens in one training micro-batch
    rows: int = Field(512, ge=1)  # sequences sampled side by side (one context's all together)
    logits: int = Field(2**28, ge=1)  # that may exist at once while learning; 2**28 are 1 GiB
    # tinker (all ours)
    base_url: Address = "http://127.0.0.1:8000"
    model: str = "pocket"  # as the server calls it; "pocket": the embedded one's directory
    tokenizer: str | None = None  # a directory or hub name; None: `model`
    context_length: int | None = Field(None, ge=2)  # tokens; None: the server's or the model's own
    lora_rank: int = Field(32, ge=0)  # 0: full fine-tuning
    api_key_env: str = "TINKER_API_KEY"  # the environment variable with the key
    reference_url: Address | None = None  # a second server with the frozen base; None: the same
    in_flight: int = Field(256, ge=1)  # requests that wait for an answer at once
    deadline: float = Field(900.0, gt=0)  # seconds; a later request is given up and sent again
    attempts: int = Field(4, ge=1)  # for each request, before the run stops at its last checkpoint
    patience: float = Field(180.0, gt=0)  # seconds without a connection, before it stops there


class SamplingConfig(Section):
    backend: Literal["native", "vllm"] = "native"  # the local engine's; vllm is an extra
    url: Address | None = None  # backend: vllm: of a server; None: vLLM runs in this process
    # backend: vllm in this process: its share of the GPU's memory; on a CPU that of its key-value cache.
    memory: float = Field(0.3, gt=0, lt=1)
    temperature: float = Field(1.0, gt=0)
    top_p: float = Field(1.0, gt=0, le=1)
    max_tokens: int = Field(1024, ge=1)  # of a whole response, thinking included
    # After so many tokens of thinking the phrase is put in, masked from the loss; None: never.
    thinking_tokens: int | None = Field(None, ge=1)
    thinking_end: str = "\n\nTime is up: I stop thinking and give my answer.\n</think>\n\n"
    stop: list[str] = Field(
        default_factory=list
    )  # each must be one token; end-of-turn always stops

    @model_validator(mode="after")
    def _a_server_of_vllms(self) -> SamplingConfig:
        if self.url is not None and self.backend != "vllm":
            raise ValueError(f"url = {self.url!r} is a vLLM server's; it takes backend: vllm")
        return self


class SlowConfig(Section):
    """The weights: ScaleRL's recipe (arXiv 2510.13786) with CISPO (arXiv 2506.13585)."""

    loss: Literal["cispo", "ppo", "importance_sampling"] = "cispo"
    lr: float = Field(1e-6, ge=0, le=1)
    betas: tuple[Beta, Beta] = (0.9, 0.999)
    weight_decay: float = Field(0.0, ge=0)
    warmup: int = Field(10, ge=0)  # steps of linear warm-up, then constant
    clip: float = Field(1.0, gt=0)  # global gradient norm
    tau: float = Field(3.0, gt=0)  # upper truncation of the importance ratio (ScaleRL: 5)
    epsilon: float = Field(0.2, gt=0)  # only for loss: ppo
    baseline: Literal["problem", "prompt"] = "problem"
    batch_normalize: bool = True  # after the groups' own std, nearly the identity
    kl: float = Field(1e-3, ge=0)  # to the frozen base; 0 turns the reference pass off
    fp32_logits: bool = True
    filter_zero_variance: bool = True
    no_positive_resampling: float | None = Field(0.9, gt=0, le=1)  # None: problems may come again
    mask_truncated: bool = False


class FastConfig(Section):
    """The prompts: GEPA (arXiv 2507.19457) with a population."""

    k: int = Field(8, ge=1)
    budget: int = Field(960, ge=1)  # rollouts that one fast phase may spend, re-scoring included
    initial_budget: int | None = Field(
        None, ge=1
    )  # ours: the first phase's, which has most to find
    # How many problems of the lookahead batch score a prompt; a number is lowered (ours) until scoring
    # K prompts takes at most half of the budget: with the defaults to 60.
    anchors: int | Literal["lookahead"] = 200
    minibatch: int = Field(3, ge=1)
    proposals: int = Field(
        4, ge=1
    )  # children proposed side by side (ours; GEPA's own default is 1)
    reflector: str = (
        "offline"  # offline | self | base | python:module:function | a LiteLLM model string
    )
    reflector_args: dict[str, Any] = Field(
        default_factory=dict
    )  # to LiteLLM: api_base, timeout, ...
    accept_zero_ties: bool = True  # ours: strict acceptance stalls where every reward is 0
    saturation: float = Field(0.97, gt=0, le=1)  # ours: a population at or above it is left alone
    max_chars: int = Field(4000, ge=1)  # ours: longer proposals are refused
    floor: float = Field(
        0.0, ge=0, le=1
    )  # ours: members below this share of the best one's score go


class LoopConfig(Section):
    method: MethodName = "fst"
    steps: int = Field(300, ge=1)
    cycle: int = Field(6, ge=1)  # T, RL steps per cycle
    problems: int = Field(32, ge=1)
    group: int = Field(8, ge=1)  # G, rollouts per problem
    rollouts: int | None = Field(None, ge=1)  # stop once RL and GEPA together have spent so many
    # What a new task does not inherit where a stream of tasks switches.
    reset_optimizer: bool = False
    reset_population: bool = False


class ReuseConfig(Section):
    enabled: bool = True


class EvalConfig(Section):
    every: int = Field(20, ge=1)  # steps
    problems: int | None = Field(None, ge=1)  # the first so many test problems; None: all
    n: int = Field(4, ge=1)
    temperature: float = Field(0.6, gt=0)
    top_p: float = Field(0.95, gt=0, le=1)
    # Tasks that are not trained on, measured at the start and the end under their own seed prompts.
    ood: list[TaskConfig] = Field(default_factory=list)

    @model_validator(mode="after")
    def _told_apart(self) -> EvalConfig:
        names = [task.name for task in self.ood]
        if len({*names}) < len(names):
            twice = next(name for name in names if names.count(name) > 1)
            raise ValueError(f"ood holds {twice!r} twice; each task may stand there once")
        return self


class Config(Section):
    """Everything a run depends on. Build it from keywords, or with `Config.load("file.yaml")`."""

    run: RunConfig = RunConfig()
    model: ModelConfig = ModelConfig()
    task: TaskConfig = TaskConfig()
    engine: EngineConfig = EngineConfig()
    sampling: SamplingConfig = SamplingConfig()
    slow: SlowConfig = SlowConfig()
    fast: FastConfig = FastConfig()
    loop: LoopConfig = LoopConfig()
    reuse: ReuseConfig = ReuseConfig()
    eval: EvalConfig = EvalConfig()

    @model_validator(mode="after")
    def _fits_together(self) -> Config:
        method = METHODS[self.loop.method]
        shared = method.trains_under_its_prompts
        if (shared or method.learns == "teacher") and self.loop.group % self.fast.k:
            divisors = [k for k in range(1, self.loop.group + 1) if self.loop.group % k == 0]
            raise ValueError(
                f"fast.k = {self.fast.k} does not divide loop.group = {self.loop.group}; each prompt gets "
                f"exactly group / k rollouts of a problem, so k must be one of {divisors}"
            )
        if method.learns == "rewards" and self.loop.group == 1:
            raise ValueError(
                "loop.group = 1: one rollout has nothing to be compared with; take 2 or more"
            )
        if self.slow.baseline == "prompt" and shared and self.fast.k == self.loop.group:
            raise ValueError(
                f"slow.baseline = 'prompt' compares a prompt's rollouts with each other, but with fast.k = "
                f"loop.group = {self.fast.k} each has one; lower fast.k or raise loop.group"
            )
        if method.evolves != "never":
            self._budget_pays()
        return self

    def _budget_pays(self) -> None:
        """The budget must cover re-scoring the population and at least one new prompt."""
        fast, lookahead = self.fast, self.loop.cycle * self.loop.problems
        if isinstance(fast.anchors, int) and fast.anchors < fast.minibatch:
            raise ValueError(
                f"fast.anchors = {fast.anchors} is smaller than fast.minibatch = {fast.minibatch}"
            )
        anchors = lookahead if fast.anchors == "lookahead" else min(fast.minibatch + 1, lookahead)
        least = (fast.k + 1) * anchors + fast.minibatch
        if fast.budget < least:
            raise ValueError(
                f"fast.budget = {fast.budget} cannot score {fast.k} prompts on {anchors} anchors and try a "
                f"new one; it takes at least {least}"
            )

    @property
    def run_dir(self) -> Path:
        task = self.task.name.rpartition(":")[2]
        return Path(self.run.dir or f"runs/{task}-{self.loop.method}-s{self.run.seed}")

    @classmethod
    def parse(cls, data: dict[str, Any], where: str = "config") -> Config:
        """Validate a plain dict; `where` names its origin in the error."""
        try:
            return cls.model_validate(data)
        except ValidationError as error:
            raise ConfigError("; ".join(_explain(item, where) for item in error.errors())) from None

    @classmethod
    def load(cls, path: str | Path, overrides: dict[str, Any] | None = None) -> Config:
        """Read a YAML file and lay `overrides` ({"slow.lr": 1e-4}) over it."""
        try:
            data = yaml.safe_load(Path(path).read_text(encoding="utf-8")) or {}
        except (OSError, UnicodeDecodeError) as error:
            raise ConfigError(f"{path}: cannot be read ({error})") from None
        except (yaml.YAMLError, ValueError, RecursionError) as error:
            raise ConfigError(f"{path}: not valid YAML ({' '.join(str(error).split())})") from None
        if not isinstance(data, dict):
            raise ConfigError(
                f"{path}: expected sections such as 'task:', found {type(data).__name__}"
            )
        for key, value in (overrides or {}).items():
            put(data, key, value)
        return cls.parse(data, str(path))

    def dump(self) -> str:
        return yaml.safe_dump(self.model_dump(mode="json"), sort_keys=False)


def parse_override(text: str) -> tuple[str, Any]:
    """`slow.lr=1e-4` as ("slow.lr", 0.0001); the value is read as YAML."""
    key, equals, value = text.partition("=")
    if not equals or not key.strip():
        raise ConfigError(f"--set {text!r}: expected key.path=value, for example slow.lr=0.0001")
    try:
        return key.strip(), yaml.safe_load(value)
    except (yaml.YAMLError, ValueError, RecursionError):
        return key.strip(), value


def put(data: dict[str, Any], path: str, value: Any) -> None:
    """Set a key such as `slow.lr` of a tree of plain dicts."""
    *parents, last = path.split(".")
    for name in parents:
        if data.get(name) is None:
            data[name] = {}
        data = data[name]
        if not isinstance(data, dict):
            raise ConfigError(f"--set {path}: {name!r} is a value, not a section")
    data[last] = value


def _explain(item: Any, where: str) -> str:
    """One readable line for one pydantic error: place, value, what would be accepted."""
    path = ".".join(str(part) for part in item["loc"])
    if item["type"] == "extra_forbidden":
        section: type[BaseModel] = Config
        for part in item["loc"][:-1]:
            section = section.model_fields[str(part)].annotation  # type: ignore[assignment]
        names = list(section.model_fields)
        near = difflib.get_close_matches(str(item["loc"][-1]), names, n=1, cutoff=0.5)
        hint = f"did you mean {near[0]!r}?" if near else f"valid keys: {', '.join(names)}"
        return f"{where}: unknown key {path!r}; {hint}"
    message = item["msg"].removeprefix("Value error, ")
    message = message[0].lower() + message[1:]
    if not path:
        return f"{where}: {message}"
    return f"{where}: {path} = {item['input']!r}: {message}"
