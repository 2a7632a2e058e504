"""The live display of a run, and the tables that commands print. Reads states and files only."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from types import TracebackType
from typing import TYPE_CHECKING, Any

from rich.console import Console, Group
from rich.live import Live
from rich.panel import Panel
from rich.progress import BarColumn, Progress, TaskProgressColumn, TextColumn, TimeRemainingColumn
from rich.table import Table
from rich.text import Text
from rich.tree import Tree

from fastslow.config import Config
from fastslow.report.prompts import family
from fastslow.run import State
from fastslow.tasks.base import Split, Task, judge, problems_of

if TYPE_CHECKING:
    from fastslow.plan import Plan

BLOCKS = " ▁▂▃▄▅▆▇█"
WIDTH = 48  # columns of a curve


def curve(values: Sequence[float], top: float | None = None) -> str:
    """A line of block characters, the newest value on the right."""
    shown = list(values)[-WIDTH:]
    high = top or max(shown, default=0.0) or 1.0
    return "".join(BLOCKS[round(min(max(value / high, 0.0), 1.0) * 8)] for value in shown)


class Display:
    """A progress bar, two curves and the best prompt; plain lines where there is no terminal.

    Use it as a context manager and pass it to `fastslow.train(..., observer=display)`.
    """

    def __init__(self, config: Config, console: Console | None = None, title: str = "") -> None:
        self.config = config
        self.console = console or Console()
        self.title = title or f"{config.loop.method} on {config.task.name}"
        self.progress = Progress(
            TextColumn("{task.description:<17}"),
            BarColumn(),
            TaskProgressColumn(),
            TextColumn("{task.fields[steps]}"),
            TimeRemainingColumn(elapsed_when_finished=True),
            console=self.console,
        )
        self.bar = self.progress.add_task("starting", total=1.0, steps="")
        self.rewards: list[float] = []
        self.kls: list[float] = []
        self.evaluation: dict[str, Any] = {}
        self.prompt = ""
        self.spent: dict[str, int] = {}
        self.live: Live | None = None

    def __enter__(self) -> Display:
        if self.console.is_terminal:
            self.live = Live(
                self._view(), console=self.console, refresh_per_second=4, get_renderable=self._view
            )
            self.live.__enter__()
        else:
            self.console.print(f"-- {self.title}")
        return self

    def __exit__(
        self,
        kind: type[BaseException] | None,
        error: BaseException | None,
        trace: TracebackType | None,
    ) -> None:
        if self.live is not None:
            self.live.__exit__(kind, error, trace)

    def phase(self, name: str, state: State) -> None:
        self._state(state)
        self.progress.update(self.bar, description=name)

    def step(self, row: dict[str, Any], state: State) -> None:
        self._state(state)
        if "reward" in row:
            self.rewards.append(row["reward"])
        if "kl" in row:
            self.kls.append(row["kl"])
        self.evaluation = row.get("eval", self.evaluation)
        if self.live is None and "eval" in row:
            self.console.print(self._line(row), soft_wrap=True)

    def _state(self, state: State) -> None:
        loop = self.config.loop
        self.prompt, self.spent = state.population[0].text, dict(state.spent)
        done = state.step / loop.steps
        if loop.rollouts:
            done = max(done, (state.spent["rl"] + state.spent["gepa"]) / loop.rollouts)
        self.progress.update(
            self.bar, completed=min(done, 1.0), steps=f"step {state.step}/{loop.steps}"
        )

    def _line(self, row: dict[str, Any]) -> str:
        found, spent = row["eval"], row["rollouts"]
        return (
            f"step {row['step']:4d}  reward {found['population']['mean']:.3f} "
            f"(seed prompt {found['seed']['mean']:.3f})  KL {found['drift_population']['kl']:.4f}  "
            f"rollouts {spent['rl'] + spent['gepa']} (reused {spent['reused']})"
        )

    def _view(self) -> Panel:
        table = Table.grid(padding=(0, 2))
        table.add_column(style="dim", no_wrap=True, min_width=15)
        table.add_column(overflow="fold")
        reward = f"{self.rewards[-1]:.2f}" if self.rewards else "-"
        kl = f"{self.kls[-1]:.4f}" if self.kls else "-"
        table.add_row(
            "reward", Text(f"{curve(self.rewards, 1.0):<{WIDTH}} {reward}", style="green")
        )
        table.add_row("KL to base", Text(f"{curve(self.kls):<{WIDTH}} {kl}", style="yellow"))
        if self.evaluation:
            found = self.evaluation
            table.add_row(
                "held-out reward",
                f"{found['population']['mean']:.3f} with its prompts, "
                f"{found['seed']['mean']:.3f} with the seed prompt",
            )
        if self.spent:
            table.add_row(
                "rollouts",
                f"{self.spent['rl']} RL + {self.spent['gepa']} GEPA, {self.spent['reused']} reused",
            )
        table.add_row("best prompt", Text(self.prompt, overflow="fold", no_wrap=False))
        return Panel(Group(self.progress, table), title=self.title, title_align="left")


def summary_table(summaries: Sequence[dict[str, Any]]) -> Table:
    """Finished runs side by side, in words for a newcomer."""
    table = Table(box=None, padding=(0, 2), header_style="bold")
    table.add_column("", style="dim")
    for summary in summaries:
        table.add_column(summary["method"], justify="right")

    def row(label: str, *cells: str) -> None:
        table.add_row(label, *cells)

    def reward(key: str) -> list[str]:
        return [f"{summary['reward'][key]:.3f}" for summary in summaries]

    row("reward before training, seed prompt", *reward("base"))
    row("reward after training, its own prompts", *reward("final"))
    row("reward after training, seed prompt alone", *reward("final_seed_prompt"))
    row("drift from the base (KL per token)", *(f"{s['kl_to_base']:.4f}" for s in summaries))
    row("rollouts generated for RL", *(f"{s['rollouts']['rl']:,}" for s in summaries))
    row("rollouts generated for GEPA", *(f"{s['rollouts']['gepa']:,}" for s in summaries))
    row("GEPA's rollouts reused by RL", *(f"{s['rollouts']['reused']:,}" for s in summaries))
    row("seconds", *(f"{s['seconds']['total']:.0f}" for s in summaries))
    return table


def prompt_tree(rows: Sequence[dict[str, Any]]) -> Tree:
    """The family tree of a run's prompts: text, parent, scores, when born, when dropped."""
    tree = Tree("[bold]prompts[/bold]  (score by cycle; [green]green[/green]: in the population)")
    branches = [tree]
    for node in family(rows):
        scores = " ".join(f"{score:.2f}" for score in node.scores)
        label = Text(f"{node.id}  {scores}", style="bold green" if node.member else "bold")
        label.append(f"  {node.parent}; {node.stay}\n", style="not bold dim")
        label.append(node.text, style="not bold default")
        del branches[node.depth + 1 :]
        branches.append(branches[node.depth].add(label))
    return tree


def task_table(tasks: dict[str, type[Task]]) -> Table:
    """The tasks: what they ask, where their problems come from, what their feedback says."""
    table = Table.grid(padding=(0, 2))
    table.add_column(style="bold", no_wrap=True)
    table.add_column(style="dim", no_wrap=True)
    table.add_column(overflow="fold")
    for name, task in tasks.items():
        about = (task.__doc__ or "").strip().partition("\n\n")[0]
        table.add_row(name, "asks", Text(" ".join(about.split())))
        for label in ("source", "sizes", "feedback"):
            table.add_row("", label, Text(getattr(task.card, label)))
        table.add_row()
    return table


def shown_problems(task: Task, split: Split, count: int) -> Iterator[Panel]:
    """The first problems of a task, each with a right and a wrong answer, reward and feedback.

    The wrong answer is the right one to another problem.
    """
    problems = problems_of(task, split)
    solutions = [task.solution(problem) for problem in problems[: count + 50]]
    for problem, right in list(zip(problems, solutions, strict=False))[:count]:
        wrong = next((other for other in solutions if other != right), "")
        lines = [Text(problem.prompt, overflow="fold"), Text("")]
        for answer in (right, wrong):
            outcome = judge(task, problem, task.environment(problem), answer)
            reply = outcome if isinstance(outcome, str) else outcome.feedback
            reward = "a reply" if isinstance(outcome, str) else f"reward {outcome.reward:g}"
            colour = "green" if reward == "reward 1" else "red"
            lines += [
                Text.assemble(("answer    ", "dim"), answer or "(empty)"),
                Text.assemble((f"{reward:<10}", colour), reply),
            ]
        yield Panel(Group(*lines), title=f"{problem.id}", title_align="left")


def plan_table(plan: Plan) -> Table:
    """What a run will take, a line for each thing that is paid for."""
    from fastslow.engine.memory import peak  # imports transformers

    counts, gib = plan.counts, 2**30
    table = Table(box=None, padding=(0, 2), show_header=False)
    table.add_column(style="bold")
    table.add_column(justify="right")
    table.add_column(style="dim")
    rows = [
        ("steps", f"{counts.steps:,}", f"{counts.cycles:,} cycles"),
        ("rollouts for RL", f"{counts.rl:,}", f"and {counts.reused:,} of GEPA's again"),
        ("rollouts for GEPA", f"{counts.gepa:,}", ""),
        ("rollouts for evaluation", f"{counts.eval:,}", ""),
        ("tokens of a prompt", f"{plan.context:,.0f}", "mean, with the seed prompt"),
        (
            "tokens of a response",
            f"{plan.response:,.0f}",
            "as in the earlier run" if plan.measured else "at most; --like RUN_DIR knows better",
        ),
        ("tokens sampled", f"{plan.generated:,.0f}", ""),
        ("tokens learned from", f"{plan.learned:,.0f}", ""),
    ]
    rows += [(f"GiB for {name}", f"{size / gib:.2f}", "") for name, size in plan.memory.items()]
    rows += [("GiB at the peak", f"{peak(plan.memory) / gib:.2f}", "on each device")]
    price = "its price is not known" if plan.dollars is None else f"${plan.dollars:.2f}"
    rows += [
        ("reflection calls", f"{counts.reflections:,}", f"{plan.reflection_tokens:,} tokens in"),
        ("reflection costs", price, ""),
    ]
    if plan.seconds is not None:
        given = "at the speed given, reflection apart"
        pace = "at the earlier run's pace" if plan.speed is None else given
        rows += [("hours", f"{plan.seconds / 3600:.2f}", pace)]
    for row in rows:
        table.add_row(*row)
    return table
