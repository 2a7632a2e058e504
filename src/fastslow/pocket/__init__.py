"""The embedded base model: a causal LM of about 1M parameters in plain Hugging Face format.

It solves three families of small problems (star graphs, code output, multi-hop facts), but only
when its system prompt says how to reason and how to answer; the conventions of the three conflict.
That makes the whole loop of Fast-Slow Training observable on a laptop in minutes. `world` and
`advice` define what it knows, `python -m fastslow.pocket.train` makes it again from nothing.
"""

from pathlib import Path


def path() -> Path:
    """The folder of the shipped model: give it to AutoModelForCausalLM and AutoTokenizer."""
    return Path(__file__).parent / "model"
