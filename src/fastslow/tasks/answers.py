r"""What a kind reader sees in a response: its boxes, and how an answer falls short of another."""

from __future__ import annotations

import re
import unicodedata
from typing import Any

from fastslow.rollout import Score

LONGEST = 20_000  # characters of a response that are read; the rest cannot hold a sane answer
CORRECT = Score(1.0, "The answer is correct.")
NO_BOX = "The final answer is not boxed. Write only the final answer inside \\boxed{}."

BRACE = re.compile(r"(\\boxed\s*\{)|\\.|[{}]", re.DOTALL)


def boxes(text: str) -> list[str]:
    r"""What stands in every closed `\boxed{}` of the text that is in no other, in order."""
    found: list[tuple[int, str]] = []
    opened: list[int | None] = []  # where a box's content begins; None for any other brace
    for match in BRACE.finditer(text):
        if match[1]:
            opened.append(match.end())
        elif match[0] == "{":
            opened.append(None)
        elif match[0] == "}" and opened and (start := opened.pop()) is not None:
            while found and found[-1][0] > start:
                found.pop()
            found.append((start, text[start : match.start()]))
    return [content for _, content in found]


def show(value: Any) -> str:
    """A value for a sentence, cut to a readable length."""
    text = value if isinstance(value, str) else str(value)
    return repr(text if len(text) <= 200 else f"{text[:200]}...")


def differences(found: str, expected: str) -> list[str]:
    """Every way in which `found` can be seen to fall short of `expected`, with its remedy."""
    if not found:
        return [f"The answer is empty. Expected {show(expected)}."]
    said = [f"Expected {show(expected)}, found {show(found)}."]
    odd = next((letter for letter in found if not letter.isascii()), None)
    if expected.isascii() and odd is not None:
        name = unicodedata.name(odd, f"U+{ord(odd):04X}")
        said.append(f"The answer holds the character {odd!r} ({name}). Write it in plain ASCII.")
    if found.casefold() == expected.casefold():
        said.append("Only upper and lower case differ. Write the answer in the expected case.")
    elif "".join(found.split()) == "".join(expected.split()):
        said.append("Only spaces or line breaks differ. Write them exactly as asked.")
    elif expected and expected in found:
        said.append("The expected answer stands among other text. Give the answer alone.")
    return said


def wrong(*sentences: str) -> Score:
    return Score(0.0, " ".join(sentences))
