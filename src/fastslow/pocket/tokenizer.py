"""The pocket tokenizer: lossless byte-level BPE with numbers, names and advice as single tokens.

Numbers, capitalised words and the variables u-z are split from the space before them, so that
`12` after a comma and `12` after a space are the same token: look-ups then compare like with like.
"""

from __future__ import annotations

import random
from collections.abc import Iterator

from tokenizers import Regex, Tokenizer, decoders, models, pre_tokenizers, trainers
from transformers import PreTrainedTokenizerFast

from fastslow.pocket.advice import GRAMMAR, HELD_OUT, NEUTRAL, OPENERS, SEED, expand
from fastslow.pocket.curriculum import DENSE
from fastslow.pocket.world import Code, Facts, Star, Style

SPECIAL = ("<|pad|>", "<|end|>", "<|system|>", "<|user|>", "<|assistant|>")
ALONE = r"\d+|[A-Z][a-z]*|\b[u-z]\b"
VOCABULARY = 1150  # enough for every word of the corpus to become one token

TEMPLATE = (
    "{% for message in messages %}"
    "{% if message['role'] != 'system' or message['content'] %}"
    "{{ '<|' + message['role'] + '|>' + message['content'] + '<|end|>' }}"
    "{% endif %}{% endfor %}"
    "{% if add_generation_prompt %}{{ '<|assistant|>' }}{% endif %}"
)


def corpus() -> Iterator[str]:
    """Every word that the model should know as a whole."""
    yield from map(str, range(50))
    yield SEED
    yield from DENSE
    for patterns in (*GRAMMAR.values(), OPENERS, NEUTRAL):
        for pattern in patterns:
            choices = list(expand(pattern))
            yield from choices[:: max(1, len(choices) // 200)]
            yield choices[-1]
    for sentences in HELD_OUT.values():
        yield from sentences
    rng = random.Random(0)
    for family in (Star(), Code(), Facts()):
        for index in range(300):
            item = family.item(rng)
            yield item.question
            yield family.respond(rng, item, Style(index % 2, index % 3 > 0, index % 5 > 2))


def build() -> PreTrainedTokenizerFast:
    """The tokenizer, always the same one."""
    bpe = Tokenizer(models.BPE())
    bpe.pre_tokenizer = pre_tokenizers.Sequence(
        [
            pre_tokenizers.Split(Regex(ALONE), "isolated"),
            pre_tokenizers.ByteLevel(add_prefix_space=False, use_regex=True),
        ]
    )
    bpe.decoder = decoders.ByteLevel()
    trainer = trainers.BpeTrainer(
        vocab_size=VOCABULARY,
        special_tokens=list(SPECIAL),
        initial_alphabet=sorted(pre_tokenizers.ByteLevel.alphabet()),
        show_progress=False,
    )
    bpe.train_from_iterator(corpus(), trainer)
    tokenizer = PreTrainedTokenizerFast(
        tokenizer_object=bpe,
        pad_token="<|pad|>",
        eos_token="<|end|>",
        additional_special_tokens=list(SPECIAL[2:]),
        padding_side="left",
        model_max_length=1024,
        clean_up_tokenization_spaces=False,
    )
    tokenizer.chat_template = TEMPLATE
    return tokenizer
