"""What a system prompt can say to the pocket model: advice, noise, and the grammar of both.

A pattern such as `<Box|Always box> the <answer|path>.` stands for all sentences that come of
choosing one alternative per bracket. The exact sentences of `fastslow.tasks.star_graph`'s feedback
are kept out of the grammar on purpose (a test asserts it): obeying them is generalisation.
"""

from __future__ import annotations

import itertools
import random
import re
from collections.abc import Iterator
from enum import StrEnum

SEED = "You are a helpful assistant. Solve the task."


class Advice(StrEnum):
    """One thing that a system prompt can ask for."""

    STAR_WORK = "star_work"
    CODE_WORK = "code_work"
    FACTS_WORK = "facts_work"
    BOX = "box"
    PLAIN = "plain"
    NO_SOURCE = "no_source"
    WITH_SOURCE = "with_source"
    VERDICT_FIRST = "verdict_first"
    VERDICT_LAST = "verdict_last"


GRAMMAR: dict[Advice, tuple[str, ...]] = {
    Advice.STAR_WORK: (
        "<Work|Go|Walk|Move|Search|Reason|Think> <backwards|back|in reverse> from the "
        "<destination|goal|target|end> <to|towards|up to> the <source|start|beginning>.",
        "<Start|Begin|Set out> <at|from> the <destination|goal|target|last node> and "
        "<trace|follow|retrace|walk> the <edges|path|steps> <backwards|back|in reverse> "
        "<until|till> you <reach|meet|arrive at> the <source|start|first node>.",
        "First <trace|follow|find|write> the <route|way|chain> <backwards|in reverse>, from the "
        "<destination|goal|end> <to|until> the <source|start>.",
        "<Reverse the edges|Read the edges in reverse|Look up each predecessor> and <go|walk> from "
        "the <destination|goal|target> <back to|until you reach> the <source|start>.",
        "Before <answering|the answer|you answer>, <trace|retrace|follow> the path from the "
        "<destination|goal> back to the <source|start>.",
        "The <path|route> is best found <backwards|in reverse>: <step|go|walk> from the "
        "<destination|goal> to its predecessor until you <reach|meet> the <source|start>.",
        "<Trace|Retrace> the <route|steps|nodes> <backwards|back|in reverse> from the "
        "<goal|target|last node|end>.",
    ),
    Advice.CODE_WORK: (
        "<Track|Follow|Note|Record|Write down> the <values|variables|value of every variable|"
        "value of each variable> <line by line|step by step|one line at a time|after every line>.",
        "<Run|Execute|Simulate|Step through> the <program|code> <line by line|one line at a time|"
        "by hand> and <write|note|track|record> <every value|all values|the values>.",
        "Before <answering|you answer>, <trace|track|run> the <code|program> "
        "<line by line|one line at a time>.",
        "For <every|each> line, <write|note|record> the <new value|value> of its variable.",
        "<Trace|Go through> the <program|code|lines> and <write|note|record> the value of "
        "<every|each> variable.",
    ),
    Advice.FACTS_WORK: (
        "<Write|Give|Quote|Collect|State> the <evidence|chain of evidence|chain of facts|"
        "supporting facts> <first|before you judge|before you decide|before answering>.",
        "First <list|write|collect|gather> the <evidence|chain of evidence|supporting facts>.",
        "<Start|Begin> with the <evidence|chain of evidence|supporting facts> and then "
        "<judge|decide|check> the claim.",
        "<Connect|Link> the <articles|facts> <one by one|hop by hop|step by step> before "
        "<judging|deciding|checking> the claim.",
        "<Lay out|List> the <chain of articles|chain of facts|facts> that <leads|goes> from the "
        "claim to its <verdict|proof>.",
    ),
    Advice.BOX: (
        "<Put|Place|Enclose|Wrap|Give> <your|the> <answer|final answer|result|solution|path> "
        "<in|inside|within> <\\boxed{}|a box|a \\boxed{} command>.",
        "<The|Your> <answer|final answer|final path|result> <must|should|has to> be "
        "<boxed|in \\boxed{}|inside \\boxed{}|in a box>.",
        "<Box|Always box|Remember to box> <the|your> <answer|final answer|path|result>.",
        "Use \\boxed{} <for|around> <the|your> <answer|final answer|path|result>.",
        "<End|Finish> with <the|your> <answer|path|result> <in|inside> \\boxed{}.",
        "Write <your answer|the result|the answer|your path> <in|inside> <\\boxed{}|a box>.",
    ),
    Advice.PLAIN: (
        "<Do not|Never> <use|write|add> <a box|\\boxed{}|boxes|any box>.",
        "<Give|Write|State> <the|your> <answer|final answer|result|path> <plainly|as plain text|"
        "in plain text|without a box|without \\boxed{}>.",
        "<The|Your> <answer|final answer|result> <must|should> <be plain|be unboxed|not be boxed|"
        "be plain text|not be in a box>.",
        "No <box|boxes|\\boxed{}>, <please|just plain text|only plain text>.",
        "Leave <the|your> <answer|result|path> <unboxed|plain|without a box>.",
    ),
    Advice.NO_SOURCE: (
        "<Leave out|Drop|Skip|Exclude|Omit> the <source|start|start node|source node|first node> "
        "<in|when you write|when writing> <the|your> <path|answer|list>.",
        "<Leave out|Drop|Exclude> the <source|start node|start|first node> from <the|your> "
        "<path|answer|list|final answer>.",
        "<Do not|Never> <include|list|write|repeat|name> the <source|start|source node> "
        "<in the path|in the answer|in the final path|again>.",
        "The <path|answer|final path|list> <must|should> not <contain|include|name|begin with|"
        "start with> the <source|start|source node>.",
        "<Begin|Start> the <path|answer|list> <with the node after the source|after the source|"
        "with the second node|at the node after the start>.",
        "<Write|List|Give> <the path|the nodes|the final path> without the "
        "<source|start|source node>.",
        "Omit the <source|start> <node|one>, <please|as always>.",
    ),
    Advice.WITH_SOURCE: (
        "<Include|Keep|List|Name|Write> the <source|source node|start> <in the path|in the answer|"
        "as the first node|too|as well>.",
        "<Begin|Start> the <path|answer|list|final path> <with|at> the <source|source node|start>.",
        "The <path|answer|final path> <must|should> <include|contain|begin with|start with> the "
        "<source|source node|start>.",
        "<Do not|Never> <omit|drop|skip|leave out> the <source|source node|start>.",
    ),
    Advice.VERDICT_FIRST: (
        "<Give|Write|State|Name> the verdict <before|ahead of|in front of> the <titles|list of "
        "titles|article titles>.",
        "<Start|Begin> <the|your> <answer|final answer|result> with the verdict.",
        "<The|Your> <answer|final answer|result> <must|should> <begin|start> with the verdict.",
        "The verdict <comes|goes|belongs> first, <then the titles|the titles after it>.",
        "<Name|List|Give> the titles <after|behind> the verdict.",
    ),
    Advice.VERDICT_LAST: (
        "<Give|Write|State|Name> the verdict <after|behind> the <titles|list of titles|"
        "article titles>.",
        "<Start|Begin> <the|your> <answer|final answer|result> with the titles.",
        "<The|Your> <answer|final answer|result> <must|should> <end|finish> with the verdict.",
        "The verdict <comes|goes|belongs> last, <after the titles|the titles before it>.",
        "<Name|List|Give> the titles <before|ahead of> the verdict.",
    ),
}

# Never trained on; the first entries are feedback sentences of the star-graph task.
HELD_OUT: dict[Advice, tuple[str, ...]] = {
    Advice.STAR_WORK: (
        "Trace the path backwards from the destination until you reach the source.",
        "Solve it in reverse: begin at the destination and follow the edges back to the source.",
        "Look at the edges backwards, from the goal to the start.",
    ),
    Advice.CODE_WORK: (
        "Trace the values line by line.",
        "Execute each line and write the value of the variable.",
        "Note every value while you step through the code.",
    ),
    Advice.FACTS_WORK: (
        "List the evidence first.",
        "Before the verdict, write the chain of articles.",
        "Gather the supporting facts and then decide.",
    ),
    Advice.BOX: (
        "Write the final path inside \\boxed{}.",
        "Put the final answer into \\boxed{}.",
        "The result belongs in a box.",
    ),
    Advice.PLAIN: (
        "Write the answer without any box.",
        "Plain text only, no \\boxed{}.",
        "Do not box the answer.",
    ),
    Advice.NO_SOURCE: (
        "Omit the source node from the final path.",
        "The source should be left out of the path.",
        "Write only the nodes after the source.",
    ),
    Advice.WITH_SOURCE: (
        "The first node of the path is the source.",
        "Write the path with the source.",
        "List all nodes, the source too.",
    ),
    Advice.VERDICT_FIRST: (
        "Write the verdict first.",
        "Verdict first, titles last.",
        "Put the verdict in front, followed by the titles.",
    ),
    Advice.VERDICT_LAST: (
        "Write the verdict last.",
        "Titles first, verdict last.",
        "The answer is a list of titles followed by the verdict.",
    ),
}

# Opposites: of two in one prompt the later one is followed.
CONTRADICTS: dict[Advice, Advice] = {
    Advice.BOX: Advice.PLAIN,
    Advice.PLAIN: Advice.BOX,
    Advice.NO_SOURCE: Advice.WITH_SOURCE,
    Advice.WITH_SOURCE: Advice.NO_SOURCE,
    Advice.VERDICT_FIRST: Advice.VERDICT_LAST,
    Advice.VERDICT_LAST: Advice.VERDICT_FIRST,
}

OPENERS = (
    "You are <a helpful|a careful|an expert|a friendly> <assistant|solver|model>.",
    "<Solve|Do|Answer> the <task|problem|question>.",
    "<Please|Now> <solve|answer> the <problem|question|task> <below|carefully|well>.",
)

# Sentences that must change nothing: manners, and complaints of the kind that feedback contains.
NEUTRAL = (
    "<Think|Read|Look|Work> <carefully|slowly|hard|well>.",
    "<Be|Stay> <concise|brief|precise|calm|careful|polite>.",
    "<Read|Check> the <question|problem|task|graph|program|claim|text> <twice|again|carefully>.",
    "<Take your time|Do your best|Check your work|Make no mistakes|Be sure of the answer>.",
    "<The|Your> <answer|reply|solution|response> <was|is> <wrong|incorrect|right|correct>.",
    "<The|Your> <answer|reply|result|path|solution> <was|is> not <boxed|in a box|inside "
    "\\boxed{}>.",
    "<There is no|A> box <around the answer|around the path> <was found|is missing|can be seen>.",
    "The box <is|was> <missing|empty|wrong|not closed>.",
    "The <route|answer|reply|list> <begins|starts|began> with the <source|start|source node> #.",
    "The <source|start> # <is|was> <listed|named|repeated> in the <path|answer>.",
    "The <route|answer|reply> <stops|finishes|ends> at # <rather than|instead of> at the "
    "<destination|goal|target> #.",
    "The path <should|must> <end|finish|arrive> at the <destination|goal> #.",
    "<Make sure|Be sure> that the path <ends|finishes> at the <destination|goal|last node>.",
    "<Check|Verify> <that each edge is in the graph|every edge of the path|the last node again>.",
    "<Step|Move> # <goes|jumps|leads> from # to #, <although|where|while> the graph has no "
    "<such edge|edge #,#>.",
    "<Node # is a dead end|There is no way on from node #|Step # ends in a dead end at node #>.",
    "<No answer|No route|No list of nodes> <was|could be> <found|seen|read> in the "
    "<reply|response|text>.",
    "<Separate|Divide> the nodes <by|with> commas.",
    "Only nodes and commas <belong|go> <in the box|in the list>.",
    "<Follow|Walk> the edges <forwards|ahead> from the <source|start>.",
    "The <printed value|output|last value> <is|was> #, not #.",
    "The program prints #<| and not #>.",
    "The verdict <is|was> <wrong|right|missing|not the expected one>.",
    "<A title|One article|The evidence> <is|was> <missing|wrong|not needed>.",
    "Every <graph|program|claim|question> has <one answer|exactly one answer>.",
    "Numbers <lie|are> between # and #.",
)

SLOT = re.compile(r"<([^<>]*)>")


def expand(pattern: str) -> Iterator[str]:
    """All sentences of a pattern (`#`, a random number, is left as it is)."""
    parts = SLOT.split(pattern)
    choices = [part.split("|") if i % 2 else [part] for i, part in enumerate(parts)]
    return map("".join, itertools.product(*choices))


def draw(rng: random.Random, pattern: str) -> str:
    """One random sentence of a pattern."""
    text = SLOT.sub(lambda match: rng.choice(match[1].split("|")), pattern)
    while "#" in text:
        text = text.replace("#", str(rng.randrange(50)), 1)
    return text


def phrase(rng: random.Random, advice: Advice) -> str:
    """One random wording of an advice, from the training grammar."""
    return draw(rng, rng.choice(GRAMMAR[advice]))
