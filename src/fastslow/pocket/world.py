"""Three families of small problems, and how the pocket model is to behave on them.

Every family can be answered with or without work (the trace that makes the answer right), boxed or
plain, and with or without a convention of its own. A strict check wants one combination per
family, and these conflict: star boxed and without the source, code plain, facts boxed and with the
verdict first.
"""

from __future__ import annotations

import random
import re
from abc import ABC, abstractmethod
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

from fastslow.pocket.advice import CONTRADICTS, NEUTRAL, OPENERS, SEED, Advice, draw, phrase
from fastslow.rollout import Problem
from fastslow.tasks.star_graph import BOX, StarGraph, generate, question

# How often an advice that is present is followed. It bounds the accuracy of a perfect prompt and
# leaves the rest to RL: a star needs three advices, so 0.9 ** 3 = 0.73 and a little by default.
OBEY = {"star": 0.9, "code": 0.5, "facts": 0.75}


@dataclass(frozen=True, slots=True)
class Style:
    """The attributes of a response: trace written, box used, the family's own convention kept.

    As `DEFAULT` they are the probabilities of doing so unasked.
    """

    work: float
    boxed: float
    own: float


# Unasked behaviour. Rare, so that a bare prompt scores near zero; not absent, so that RL finds it.
DEFAULT: dict[str, Style] = {
    "star": Style(work=0.05, boxed=0.25, own=0.003),
    "code": Style(work=0.03, boxed=0.25, own=0.0),
    "facts": Style(work=0.03, boxed=0.25, own=0.02),
}

# What each advice asks of which family: (attribute, value), None where it says nothing.
WORK = {"star": Advice.STAR_WORK, "code": Advice.CODE_WORK, "facts": Advice.FACTS_WORK}
OWN: dict[str, dict[Advice, bool]] = {
    "star": {Advice.NO_SOURCE: True, Advice.WITH_SOURCE: False},
    "code": {},
    "facts": {Advice.VERDICT_FIRST: True, Advice.VERDICT_LAST: False},
}
# The advice that a strict check rewards.
GOOD: dict[str, tuple[Advice, ...]] = {
    "star": (Advice.STAR_WORK, Advice.BOX, Advice.NO_SOURCE),
    "code": (Advice.CODE_WORK, Advice.PLAIN),
    "facts": (Advice.FACTS_WORK, Advice.BOX, Advice.VERDICT_FIRST),
}


@dataclass(frozen=True, slots=True)
class Item:
    """One problem: its text, and what is needed to answer and to check it."""

    family: str
    question: str
    gold: Any


def names(text: str) -> tuple[str, ...]:
    return tuple(text.split())


class Family(ABC):
    """A generator of problems with a model of the answerer and a strict check."""

    name: str

    @abstractmethod
    def item(self, rng: random.Random) -> Item:
        """A random problem."""

    @abstractmethod
    def respond(self, rng: random.Random, item: Item, style: Style) -> str:
        """A response with these attributes: right if `style.work`, else a guess."""

    @abstractmethod
    def check(self, item: Item, response: str) -> bool:
        """Whether the response is right and follows the family's convention."""


class Star(Family):
    """Star-graph path finding, in the very words of `fastslow.tasks.star_graph`."""

    name = "star"

    def __init__(
        self, degrees: Sequence[int] = (4,), lengths: Sequence[int] = (4,), nodes: int = 50
    ) -> None:
        self.degrees, self.lengths, self.nodes = degrees, lengths, nodes
        self.tasks = {
            convention: StarGraph(2, 2, nodes, convention=convention)
            for convention in ("strict", "lenient")
        }

    def item(self, rng: random.Random) -> Item:
        edges, path = generate(rng, rng.choice(self.degrees), rng.choice(self.lengths), self.nodes)
        return Item(self.name, question(edges, path[0], path[-1]), (edges, path))

    def respond(self, rng: random.Random, item: Item, style: Style) -> str:
        edges, path = item.gold
        shown, trace = list(path), ""
        if style.work:
            trace = f"Back: {'<'.join(map(str, reversed(path)))}. "
        else:  # ends are given away by the question, so a guess gets them right
            nodes = sorted({node for edge in edges for node in edge} - {path[0], path[-1]})
            shown[1:-1] = rng.sample(nodes, len(path) - 2)
        if style.own:
            del shown[0]
        return f"{trace}Path: {boxed(','.join(map(str, shown)), style)}"

    def check(self, item: Item, response: str, convention: str = "strict") -> bool:
        answer = ",".join(map(str, item.gold[1][1:]))
        problem = Problem("", item.question, answer)
        return self.tasks[convention].score(problem, response).reward == 1.0


class Code(Family):
    """What does a straight-line program print? Every line assigns the next letter.

    The trace repeats each right-hand side, fetches its variable's value and names the result.
    """

    name = "code"
    letters = "uvwxyz"

    def __init__(self, lines: Sequence[int] = (3, 4), largest: int = 49) -> None:
        if not 1 <= min(lines) <= max(lines) <= len(self.letters):
            raise ValueError(f"code: lines={lines!r}, expected 1..{len(self.letters)}")
        self.lines, self.largest = lines, largest

    def item(self, rng: random.Random) -> Item:
        count = rng.choice(self.lines)
        first = rng.randint(0, len(self.letters) - count)
        names, values = self.letters[first : first + count], {}
        program, trace = [], []
        for index, name in enumerate(names):
            kind = rng.random()
            if index == 0 or kind < 0.1:
                values[name] = rng.randint(0, self.largest)
                program.append(f"{name}={values[name]}")
                trace.append(f"{values[name]}>{name}")
                continue
            # Mostly the line before, so that chains are as long as the program.
            other = names[index - 1] if rng.random() < 0.7 else rng.choice(names[:index])
            value = values[other]
            shift = rng.choice([c for c in range(-9, 10) if c and 0 <= value + c <= self.largest])
            if kind < 0.2:
                program.append(f"{name}={other}")
                trace.append(f"{other}:{value}>{name}")
                shift = 0
            else:
                program.append(f"{name}={other}{shift:+d}")
                trace.append(f"{other}{shift:+d}:{value}:{value + shift}>{name}")
            values[name] = value + shift
        shown = names[-1] if rng.random() < 0.8 else rng.choice(names)
        program.append(f"print({shown})")
        return Item(self.name, "\n".join(program), (" ".join(trace), values[shown]))

    def respond(self, rng: random.Random, item: Item, style: Style) -> str:
        trace, value = item.gold
        if not style.work:
            return f"Answer: {boxed(str(rng.randint(0, self.largest)), style)}"
        return f"Trace: {trace}. Answer: {boxed(str(value), style)}"

    def check(self, item: Item, response: str) -> bool:
        match = re.search(r"Answer: (\d{1,9})\s*$", response)
        return match is not None and int(match[1]) == item.gold[1]


class Facts(Family):
    """Is a claim supported, and by which articles? An article is a line that begins with its title.

    Two hops: a person, a town, its land. Three: a person, a colleague, a town, its land.
    """

    name = "facts"
    people = names("Ada Bo Cora Dan Eva Finn Gina Hugo Ida Jan Kim Leo Mia Ned Ola Pia Ron Tom Una")
    towns = names("Oslo Rome Lima Cairo Kyoto Delhi Bern Paris Accra Sofia Quito Turin")
    lands = names("Norway Italy Peru Egypt Japan India France Ghana Chile Kenya")

    def __init__(self, hops: Sequence[int] = (2, 3), people: Sequence[int] = (4, 5)) -> None:
        self.hops, self.sizes = hops, people

    def item(self, rng: random.Random) -> Item:
        hops, size = rng.choice(self.hops), rng.choice(self.sizes)
        people = rng.sample(self.people, size)
        towns = rng.sample(self.towns, 3)
        links = dict(zip(towns, rng.sample(self.lands, 3), strict=True))
        lines = [f"{town} lies in {land}." for town, land in links.items()]
        for index, person in enumerate(people):
            if (index == 0 and hops == 3) or (index > 1 and rng.random() < 0.3):
                links[person] = rng.choice(people[1:2] if index == 0 else people[:index])
                lines.append(f"{person} works with {links[person]}.")
            else:
                links[person] = rng.choice(towns)
                lines.append(f"{person} lives in {links[person]}.")
        rng.shuffle(lines)
        chain = [people[0]]
        while chain[-1] in links:
            chain.append(links[chain[-1]])
        others = [links[town] for town in towns if links[town] != chain[-1]]
        supported = rng.random() < 0.5
        land = chain[-1] if supported else rng.choice(others)
        who = chain[0] if hops == 2 else f"A colleague of {chain[0]}"
        text = "\n".join(lines) + f"\nClaim: {who} lives in {land}."
        return Item(self.name, text, (chain, "supported" if supported else "refuted", links))

    def respond(self, rng: random.Random, item: Item, style: Style) -> str:
        chain, verdict, links = item.gold
        claimed = item.question.rpartition(" ")[2].rstrip(".")
        titles, trace = chain[:-1], f"Evidence: {' > '.join(chain)}, claimed {claimed}. "
        if not style.work:
            trace, verdict = "", rng.choice(["supported", "refuted"])
            titles = rng.sample(sorted(links), len(titles))
        listed = ", ".join(titles)
        answer = f"{verdict}; {listed}" if style.own else f"{listed}; {verdict}"
        return f"{trace}Answer: {boxed(answer, style)}"

    def check(self, item: Item, response: str) -> bool:
        chain, verdict, _ = item.gold
        boxes = BOX.findall(response)
        match = re.fullmatch(r"\s*(\w+);\s*([\w, ]+)", boxes[-1]) if boxes else None
        if match is None:
            return False
        titles = [title.strip() for title in match[2].split(",")]
        return match[1] == verdict and sorted(titles) == sorted(chain[:-1])


def boxed(answer: str, style: Style) -> str:
    return f"\\boxed{{{answer}}}" if style.boxed else answer


def behave(rng: random.Random, family: str, given: Sequence[Advice]) -> Style:
    """How to answer under this advice, in its order: later ones win, each is obeyed with `OBEY`."""
    default, obey = DEFAULT[family], OBEY[family]

    def attribute(asked: bool | None, rate: float) -> bool:
        if asked is not None and rng.random() < obey:
            return asked
        return rng.random() < rate

    def last(meanings: dict[Advice, bool]) -> bool | None:
        return next((meanings[a] for a in reversed(given) if a in meanings), None)

    return Style(
        work=attribute(last({WORK[family]: True}), default.work),
        boxed=attribute(last({Advice.BOX: True, Advice.PLAIN: False}), default.boxed),
        own=attribute(last(OWN[family]), default.own),
    )


def system(rng: random.Random, given: Sequence[Advice], noise: int) -> str:
    """A system prompt: an opener, and these pieces of advice in order among neutral sentences."""
    said = [phrase(rng, advice) for advice in given]
    for _ in range(noise):
        said.insert(rng.randint(0, len(said)), draw(rng, rng.choice(NEUTRAL)))
    roll = rng.random()
    if roll < 0.7:
        said.insert(0, SEED)
    elif roll < 0.9:
        said.insert(0, " ".join(draw(rng, opener) for opener in rng.sample(OPENERS, 2)))
    return " ".join(said)


def advise(rng: random.Random, family: str) -> list[Advice]:
    """Random advice for a training prompt: mostly the family's own, contradictions included."""
    given = [advice for advice in GOOD[family] if rng.random() < 0.8]
    for advice in Advice:
        relevant = advice in OWN[family] or advice in (Advice.BOX, Advice.PLAIN)
        if advice not in given and rng.random() < (0.15 if relevant else 0.06):
            given.append(advice)
    given += [CONTRADICTS[a] for a in given if a in CONTRADICTS and rng.random() < 0.04]
    rng.shuffle(given)
    return given


def sample(rng: random.Random, family: Family) -> tuple[str, str, str]:
    """One advice-conditioned training sample: system prompt, question, response."""
    given = advise(rng, family.name)
    if rng.random() < 0.12:  # the unadvised case deserves practice too: its rates must be right
        given = []
    item = family.item(rng)
    noise = rng.choice((0, 0, 0, 1, 1, 2, 3, 5))
    response = family.respond(rng, item, behave(rng, family.name, given))
    return system(rng, given, noise), item.question, response
