"""SkyRL's Tinker server on a CPU, for tests and benchmarks: the real API and engine, started without `uv`.

    python tests/tinker/server.py --base-model DIR --port 8000 --state DIR [--rank 8]

What is changed here of SkyRL 0.3.0, and why:

- its API process starts the engine by `uv run`; here the engine is started by this interpreter;
- it binds all interfaces; here the loopback alone;
- Python 3.11 has a `typing.TypedDict` that pydantic refuses; `typing_extensions` has the one it wants;
- its Qwen3 leaves out `attention_bias`, without a word; the embedded model has such biases.
"""

from __future__ import annotations

import argparse
import os
import sys
import typing
from pathlib import Path
from typing import Any

import typing_extensions

if sys.version_info < (3, 12):
    typing.TypedDict = typing_extensions.TypedDict

ADAPTERS = 24  # one is the base's; each run takes one until its session is a minute silent


def honour_attention_bias() -> None:
    """Give SkyRL's Qwen3 the projection biases that Hugging Face's has."""
    from skyrl.tx.models import qwen3

    fused, linear, attention = qwen3.FusedLoRALinear, qwen3.LoRALinear, qwen3.Qwen3Attention

    class Attention(attention):
        def __init__(self, config: Any, **rest: Any) -> None:
            biased = {"use_bias": bool(getattr(config, "attention_bias", False))}
            qwen3.FusedLoRALinear = lambda *a, **k: fused(*a, **(k | biased))
            qwen3.LoRALinear = lambda *a, **k: linear(*a, **(k | biased))
            try:
                super().__init__(config, **rest)
            finally:
                qwen3.FusedLoRALinear, qwen3.LoRALinear = fused, linear

    qwen3.Qwen3Attention = Attention


def main() -> None:
    if sys.argv[1:2] == ["engine"]:
        from skyrl.tinker import engine

        honour_attention_bias()
        del sys.argv[1]
        engine.main()
        return
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--base-model", required=True)
    parser.add_argument("--port", type=int, required=True)
    parser.add_argument("--state", type=Path, required=True, help="database and checkpoints")
    parser.add_argument("--rank", type=int, default=8)
    parser.add_argument("--rows", type=int, default=32, help="sequences side by side, padded to it")
    args = parser.parse_args()
    args.state = args.state.resolve()  # the checkpoint library takes absolute paths alone
    args.state.mkdir(parents=True, exist_ok=True)
    if Path(args.base_model).is_dir():  # clients know a model here by its whole path
        args.base_model = str(Path(args.base_model).resolve())
    os.environ.setdefault("JAX_PLATFORMS", "cpu")
    # What was compiled is kept, so that a restarted server need not do it again.
    os.environ.setdefault("JAX_COMPILATION_CACHE_DIR", str(args.state / "compiled"))
    os.environ.setdefault("JAX_PERSISTENT_CACHE_MIN_COMPILE_TIME_SECS", "0.5")

    import uvicorn
    from skyrl.tinker import api
    from skyrl.tinker.config import EngineConfig, config_to_argv

    here = str(Path(__file__).resolve())
    api.app.state.engine_config = EngineConfig(
        base_model=args.base_model,
        backend="jax",
        backend_config={
            "max_lora_adapters": ADAPTERS,
            "max_lora_rank": args.rank,
            "sample_max_num_sequences": args.rows,  # fewer shapes to compile
            "train_micro_batch_size": args.rows,
        },
        checkpoints_base=args.state / "checkpoints",
        database_url=f"sqlite:///{args.state / 'tinker.db'}",
        session_timeout_sec=60,
        session_cleanup_interval_sec=10,
    )
    api._build_uv_run_cmd_engine = lambda _parent, config: [
        sys.executable,
        here,
        "engine",
        *config_to_argv(config),
    ]
    uvicorn.run(api.app, host="127.0.0.1", port=args.port, log_level="warning")


if __name__ == "__main__":
    main()
