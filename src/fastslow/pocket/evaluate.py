"""`python -m fastslow.pocket.evaluate [MODEL_DIR]`: accuracies by family and system prompt."""

from __future__ import annotations

import argparse
import random
from collections.abc import Callable, Sequence
from itertools import combinations

import torch
from transformers import AutoModelForCausalLM, AutoTokenizer

from fastslow import pocket
from fastslow.pocket.advice import HELD_OUT, SEED, phrase
from fastslow.pocket.world import GOOD, Code, Facts, Family, Item, Star

Speaker = Callable[[random.Random], str]  # makes a system prompt


def plain_seed(rng: random.Random) -> str:
    return SEED


def trained(family: str, leave_out: int | None = None) -> Speaker:
    """Good advice in training wordings, in any order; one of its pieces left out if asked."""
    chosen = [advice for i, advice in enumerate(GOOD[family]) if i != leave_out]

    def speak(rng: random.Random) -> str:
        return " ".join([SEED, *(phrase(rng, a) for a in rng.sample(chosen, len(chosen)))])

    return speak


def unseen(family: str, feedback: bool = False, leave_out: int | None = None) -> Speaker:
    """The same in held-out wordings; `feedback` takes only each advice's first (the task's own)."""
    chosen = [advice for i, advice in enumerate(GOOD[family]) if i != leave_out]

    def speak(rng: random.Random) -> str:
        said = [HELD_OUT[a][0] if feedback else rng.choice(HELD_OUT[a]) for a in chosen]
        return " ".join([SEED, *rng.sample(said, len(said))])

    return speak


@torch.inference_mode()
def respond(model, tokenizer, prompts: Sequence[tuple[str, str]], tokens: int = 72) -> list[str]:
    """Responses to (system, question) pairs, sampled at temperature 1 from torch's global seed."""
    answers: list[str] = []
    for start in range(0, len(prompts), 250):
        chats = [
            [{"role": "system", "content": system}, {"role": "user", "content": question}]
            for system, question in prompts[start : start + 250]
        ]
        texts = tokenizer.apply_chat_template(chats, tokenize=False, add_generation_prompt=True)
        batch = tokenizer(texts, return_tensors="pt", padding=True)
        out = model.generate(
            input_ids=batch["input_ids"],
            attention_mask=batch["attention_mask"],
            do_sample=True,
            temperature=1.0,
            top_p=1.0,
            top_k=0,
            max_new_tokens=tokens,
        )
        fresh = out[:, batch["input_ids"].shape[1] :]
        answers += tokenizer.batch_decode(fresh, skip_special_tokens=True)
    return answers


def trial(
    model, tokenizer, family: Family, speak: Speaker, count: int, seed: int = 1
) -> list[tuple[Item, str]]:
    """Fresh problems with the model's sampled responses under the speaker's prompts."""
    rng = random.Random(f"evaluate/{seed}/{family.name}")
    items = [family.item(rng) for _ in range(count)]
    torch.manual_seed(seed)
    answers = respond(model, tokenizer, [(speak(rng), item.question) for item in items])
    return list(zip(items, answers, strict=True))


def accuracy(model, tokenizer, family: Family, speak: Speaker, count: int, seed: int = 1) -> float:
    """The share of strictly right responses."""
    pairs = trial(model, tokenizer, family, speak, count, seed)
    return sum(family.check(item, answer) for item, answer in pairs) / count


def table(model, tokenizer, count: int) -> list[tuple[str, str, float, float]]:
    """Rows of family, prompt, strict and (star only) lenient accuracy."""
    rows = []
    for family in (Star(), Code(), Facts()):
        name = family.name
        prompts = {"seed prompt": plain_seed, "good advice, training wording": trained(name)}
        prompts["good advice, held-out wording"] = unseen(name)
        prompts["good advice, first held-out (feedback)"] = unseen(name, feedback=True)
        for kept in combinations(range(len(GOOD[name])), len(GOOD[name]) - 1):
            lost = next(i for i in range(len(GOOD[name])) if i not in kept)
            prompts[f"the same without {GOOD[name][lost]}"] = unseen(name, True, lost)
        for label, speak in prompts.items():
            pairs = trial(model, tokenizer, family, speak, count)
            strict = sum(family.check(item, answer) for item, answer in pairs) / count
            lenient = strict
            if isinstance(family, Star):
                lenient = sum(family.check(i, answer, "lenient") for i, answer in pairs) / count
            rows.append((name, label, strict, lenient))
    return rows


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("model", nargs="?", default=str(pocket.path()))
    parser.add_argument("--count", type=int, default=1000, help="problems per row")
    args = parser.parse_args()
    torch.set_num_threads(1)
    tokenizer = AutoTokenizer.from_pretrained(args.model)
    model = AutoModelForCausalLM.from_pretrained(args.model).eval()
    print(f"{'family':8}{'prompt':42}{'strict':>8}{'lenient':>9}")
    for family, label, strict, lenient in table(model, tokenizer, args.count):
        print(f"{family:8}{label:42}{strict:8.4f}{lenient:9.4f}", flush=True)


if __name__ == "__main__":
    main()
