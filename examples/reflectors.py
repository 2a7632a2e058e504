"""Reflectors of one's own: `fastslow train CONFIG --set fast.reflector=python:examples.reflectors:greedy`.

A reflector is a function: it is given GEPA's question (the present prompt, then examples with feedback) and
answers with a better prompt in a fenced block, as a language model would. These two are no models: they
are what `make results` sets beside `offline`, to see how much depends on who reflects.
"""

import random
import re
from collections import Counter

# What a reflector that reads no feedback might say of any task.
PLATITUDES = (
    "Think carefully before you answer.",
    "Read the question twice.",
    "Be precise.",
    "Answer in the form that was asked for.",
    "Check your work.",
    "Keep it short.",
)
PROMPT = re.compile(r"```\n(.*?)\n```", re.S)
FEEDBACK = re.compile(r"## Feedback\n(.*?) \(reward ([\d.e-]+)\)", re.S)


def greedy(question: str) -> str:
    """Adds everything that the feedback says of more than one failed example."""
    present = PROMPT.search(question)[1]
    heard = Counter(
        sentence
        for feedback, reward in FEEDBACK.findall(question)
        if float(reward) < 1
        for sentence in {part.strip() for part in re.split(r"(?<=[.!?])\s+", feedback)}
    )
    new = [sentence for sentence, count in heard.most_common() if count > 1]
    return fenced(present, [sentence for sentence in new if sentence not in present])


def blind(question: str) -> str:
    """Adds a sentence that fits everywhere: what selection alone can do, without any feedback."""
    present = PROMPT.search(question)[1]
    unsaid = [sentence for sentence in PLATITUDES if sentence not in present]
    return fenced(present, random.Random(question).sample(unsaid, min(1, len(unsaid))))


def fenced(present: str, added: list[str]) -> str:
    return "```\n" + " ".join([present, *added]) + "\n```"
