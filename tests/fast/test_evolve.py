"""The fast phase with a policy made of a rule: reward is how much of the good advice a prompt holds."""

import random

import pytest

from conftest import rollout
from fastslow import Problem, ReflectorError
from fastslow.config import FastConfig
from fastslow.fast.evolve import FastResult, Gepa, Phase
from fastslow.fast.population import make_prompt
from fastslow.fast.reflect import Offline, Usage
from fastslow.rollout import sentences

ADVICE = ("Work backwards.", "Use a box.", "Omit the source.")
SEED = make_prompt("You are helpful. Solve the task.")
ANCHORS = [Problem(f"p{i}", f"question {i}", None) for i in range(10)]
CONFIG = FastConfig(k=2, budget=200, anchors=10, minibatch=3, proposals=3)


class World:
    """Evaluates by rule and remembers every batch it was asked for."""

    def __init__(self, strict: bool = False) -> None:
        self.batches: list[list] = []
        self.strict = strict

    def __call__(self, pairs):
        self.batches.append(list(pairs))
        results = []
        for prompt, problem in pairs:
            missing = [advice for advice in ADVICE if advice not in prompt.text]
            reward = float(not missing) if self.strict else 1 - len(missing) / 3
            feedback = " ".join(missing) or "Right."
            results.append(rollout(problem.id, prompt.id, reward, feedback=feedback))
        return results


def evolve(
    config=CONFIG, population=(SEED,), world=None, reflector=None, cycle=0, seed=0, anchors=10
) -> FastResult:
    phase = Phase(
        population=list(population),
        anchors=ANCHORS[:anchors],
        evaluate=world or World(),
        fits=lambda text: len(text) < 2000,
        reflector=reflector or Offline(),
        budget=config.budget,
        rng=random.Random(seed),
        cycle=cycle,
        earlier={},
    )
    return Gepa(config).evolve(phase)


def test_the_search_finds_all_advice():
    for strict in (False, True):
        best = evolve(world=World(strict)).population[0]
        assert all(advice in best.prompt.text for advice in ADVICE)
        assert best.prompt.parent is not None


class OneByOne:
    """A reflector that adds the first piece of advice that is missing."""

    def __init__(self) -> None:
        self.usage = Usage()

    def propose(self, jobs, rng):
        yield [
            (
                i,
                next(
                    (f"{job.prompt} {advice}" for advice in ADVICE if advice not in job.prompt),
                    None,
                ),
            )
            for i, job in enumerate(jobs)
        ]


@pytest.mark.parametrize(("ties", "reward"), [(True, 1), (False, 0)])
def test_ties_at_zero_are_the_way_off_the_plateau(ties: bool, reward: float):
    config = CONFIG.model_copy(update={"accept_zero_ties": ties, "proposals": 1})
    result = evolve(config, world=World(True), reflector=OneByOne())
    assert max(item.score for item in result.scored) == pytest.approx(reward, abs=0.3)
    assert (result.population[0].score > 0) == ties


def test_the_budget_holds_and_is_what_was_spent():
    for budget in (60, 97, 200):
        world = World()
        result = evolve(CONFIG.model_copy(update={"budget": budget}), world=world)
        assert result.rollouts == sum(map(len, world.batches)) <= budget


def test_the_old_population_is_scored_in_one_batch_at_no_extra_cost():
    members = [SEED, make_prompt("Use a box."), make_prompt("Omit the source. Use a box.")]
    world = World()
    result = evolve(CONFIG.model_copy(update={"k": 3, "budget": 31}), members, world)
    assert [len(batch) for batch in world.batches] == [30]
    assert {item.prompt.id for item in result.scored} == {member.id for member in members}
    assert result.population[0].prompt == members[2]


def test_stages_are_one_batch_each_and_parents_are_free():
    world = World(True)
    evolve(CONFIG.model_copy(update={"budget": 49}), world=world)
    seed_sweep, minibatches, *rest = map(len, world.batches)
    assert seed_sweep == 10
    assert minibatches == 3 * 3  # three children, three anchors each; their parent is known already
    assert sum(rest) <= 30
    asked = [problem.id for _, problem in world.batches[1]]
    assert len(set(asked)) == 9  # parallel proposals have disjoint minibatches


def test_a_saturated_population_is_left_alone():
    perfect = make_prompt(" ".join(ADVICE))
    world = World()
    result = evolve(population=[perfect], world=world)
    assert result.saturated
    assert result.proposed == 0
    assert [len(batch) for batch in world.batches] == [10]


class Scripted:
    """A reflector that answers from a list, then with None."""

    def __init__(self, *answers) -> None:
        self.usage, self.answers = Usage(), list(answers)

    def propose(self, jobs, rng):
        yield [(i, self.answers.pop(0) if self.answers else None) for i in range(len(jobs))]


def test_invalid_proposals_are_counted_and_never_evaluated():
    world = World()
    bad = Scripted(None, "", SEED.text, "Use a box.", "Use a box.", "I'm sorry, no.", "x" * 5000)
    result = evolve(world=world, reflector=bad)
    assert result.rejected.pop("unreadable") > 1
    assert dict(result.rejected) == dict.fromkeys(
        ("empty", "unchanged", "refused", "overlong", "duplicate"), 1
    )
    seen = {prompt.text for batch in world.batches for prompt, _ in batch}
    assert seen == {SEED.text, "Use a box."}


class Down:
    def __init__(self) -> None:
        self.usage, self.asked = Usage(), 0

    def propose(self, jobs, rng):
        self.asked += 1
        raise ReflectorError("endpoint is down")


def test_a_reflector_that_is_down_stops_the_phase_at_once():
    world, down = World(), Down()
    with pytest.raises(ReflectorError, match="endpoint is down"):
        evolve(world=world, reflector=down)
    assert down.asked == 1
    assert [len(batch) for batch in world.batches] == [10]  # the budget does not burn on


class OneByOneInTurn(OneByOne):
    """The same answers, each when the one before it has been taken."""

    def propose(self, jobs, rng):
        for arrived in zip(*super().propose(jobs, rng), strict=True):
            yield list(arrived)


def test_prompts_are_tried_while_others_are_being_written():
    """Same search, same rollouts, but the engine does not wait for the last answer."""

    class Three(OneByOne):
        """Three different children of the seed."""

        def propose(self, jobs, rng):
            for place, advice in enumerate(ADVICE[: len(jobs)]):
                marks.append(len(world.batches))
                yield [(place, f"{jobs[place].prompt} {advice}")]

    config = CONFIG.model_copy(update={"budget": 49})
    marks: list[int] = []
    world = World()
    waited = evolve(config, world=world, reflector=Three())
    # the seed's sweep | first child: minibatch, sweep | second: the same | asked for the last
    assert marks == [1, 3, 5]
    assert [len(batch) for batch in world.batches] == [10, 3, 10, 3, 10, 3, 10]

    class Together(Three):
        def propose(self, jobs, rng):
            yield [answer for arrived in super().propose(jobs, rng) for answer in arrived]

    world = World()
    at_once = evolve(config, world=world, reflector=Together())
    assert [len(batch) for batch in world.batches] == [10, 9, 30]
    assert waited.scored == at_once.scored
    assert waited.rollouts == at_once.rollouts == 49


@pytest.mark.parametrize("strict", [True, False])
def test_how_answers_arrive_changes_nothing_but_the_batches(strict):
    worlds = World(strict), World(strict)
    found = [
        evolve(world=world, reflector=kind())
        for world, kind in zip(worlds, (OneByOne, OneByOneInTurn), strict=True)
    ]
    assert found[0].scored == found[1].scored
    assert found[0].rollouts == found[1].rollouts
    rolled = [
        sorted((p.text, q.id) for batch in world.batches for p, q in batch) for world in worlds
    ]
    assert rolled[0] == rolled[1]


def test_a_reflector_that_fails_on_a_later_answer_stops_the_phase():
    class Failing(OneByOneInTurn):
        def propose(self, jobs, rng):
            yield next(super().propose(jobs, rng))
            raise ReflectorError("the line is cut")

    with pytest.raises(ReflectorError, match="the line is cut"):
        evolve(reflector=Failing())


def test_errors_of_the_task_are_not_swallowed():
    def broken(pairs):
        raise ZeroDivisionError

    with pytest.raises(ZeroDivisionError):
        evolve(world=broken)


def test_a_phase_is_a_function_of_its_generator():
    first, second, other = evolve(seed=1), evolve(seed=1), evolve(seed=2)
    assert first.scored == second.scored
    assert [item.prompt for item in first.scored] != [item.prompt for item in other.scored]


def test_children_know_their_parent_and_their_cycle():
    result = evolve(cycle=4, reflector=OneByOne())
    ids = {item.prompt.text: item.prompt.id for item in result.scored}
    children = [item.prompt for item in result.scored if item.prompt != SEED]
    assert len(children) == 3
    for child in children:  # each adds one sentence to its parent
        assert child.parent == ids[" ".join(sentences(child.text)[:-1])]
        assert child.born == 4


@pytest.mark.parametrize("answer", [RuntimeError("a bug"), ["one answer too many"] * 99])
def test_whatever_a_reflector_does_is_not_swallowed(answer):
    class Odd(Scripted):
        def propose(self, jobs, rng):
            if isinstance(answer, Exception):
                raise answer
            return iter([list(enumerate(answer))])

    with pytest.raises((RuntimeError, ReflectorError), match="a bug|question 3 of 0 to 2"):
        evolve(reflector=Odd())


def test_prompts_that_do_not_fit_the_context_are_not_evaluated():
    result = evolve(reflector=Scripted("word " * 500))  # short enough in characters, not in tokens
    assert result.rejected["overlong"] == 1


def test_one_anchor_is_enough_to_search():
    assert evolve(anchors=1).population[0].score > 0.5


def test_negative_rewards_leave_a_population():
    class Harsh(World):
        def __call__(self, pairs):
            made = super().__call__(pairs)
            for one in made:
                one.reward -= 2.0
            return made

    result = evolve(CONFIG.model_copy(update={"floor": 0.5}), world=Harsh())
    assert result.population
    assert result.population[0].score > -2
