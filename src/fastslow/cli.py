"""The command line: parses, calls, prints. No logic of its own."""

from __future__ import annotations

import argparse
import math
import os
import sys
from collections.abc import Sequence
from contextlib import suppress
from pathlib import Path
from typing import Any

from rich.console import Console
from rich.table import Table
from rich.text import Text

from fastslow.config import Config, TaskConfig, parse_override
from fastslow.errors import ConfigError, FastSlowError
from fastslow.methods import METHODS


def main(argv: Sequence[str] | None = None) -> int:
    """Run a command; returns 0, or 2 after one line on stderr when the input was at fault."""
    arguments = _parser().parse_args(argv)
    console = Console(quiet=os.environ.get("RANK", "0") != "0")  # one of torchrun's processes talks
    _quiet()
    try:
        arguments.command(arguments, console)
    except FastSlowError as error:
        print(f"fastslow: error: {error}", file=sys.stderr)
        return 2
    except KeyboardInterrupt:
        print("fastslow: interrupted; 'fastslow resume RUN_DIR' goes on", file=sys.stderr)
        return 130
    return 0


def _parser() -> argparse.ArgumentParser:
    parser = argparse.ArgumentParser(
        prog="fastslow", description="Fast-Slow Training of language models."
    )
    commands = parser.add_subparsers(required=True, metavar="COMMAND")

    def add(name: str, command: Any, about: str) -> argparse.ArgumentParser:
        sub = commands.add_parser(name, help=about, description=about)
        sub.set_defaults(command=command)
        return sub

    def study(name: str, command: Any, about: str) -> argparse.ArgumentParser:
        sub = add(name, command, about)
        sub.add_argument("config", type=Path)
        sub.add_argument("--seeds", type=int, default=3, help="runs per arm (default 3)")
        sub.add_argument("--rollouts", type=int, help="RL's and GEPA's together, per run")
        sub.add_argument("--dir", type=Path, help=f"default runs/{name}-CONFIG")
        sub.add_argument("--jobs", type=int, default=os.cpu_count() or 1, help="runs at once")
        sub.add_argument(
            "--from",
            action="append",
            type=Path,
            default=[],
            metavar="STUDY_DIR",
            dest="known",
            help="a study whose finished runs are taken where their configuration is the same",
        )
        sub.add_argument(
            "--set", action="append", default=[], metavar="KEY.PATH=VALUE", dest="sets"
        )
        return sub

    train = add("train", _train, "train from a configuration file")
    train.add_argument("config", type=Path)
    train.add_argument("--method", choices=METHODS)
    train.add_argument("--seed", type=int)
    train.add_argument("--set", action="append", default=[], metavar="KEY.PATH=VALUE", dest="sets")
    resume = add("resume", _resume, "go on with a run that was stopped or killed")
    resume.add_argument("run", type=Path)
    evaluate = add("eval", _eval, "evaluate a run's last checkpoint on its test problems")
    evaluate.add_argument("run", type=Path)
    evaluate.add_argument(
        "--prompt", default="all", help="seed, best, all (default) or a text file"
    )
    evaluate.add_argument("--n", type=int, default=4, help="responses per problem (default 4)")
    prompts = add("prompts", _prompts, "show the family tree of a run's prompts")
    prompts.add_argument("run", type=Path)
    report = add("report", _write_report, "a run or a study as one HTML file that opens offline")
    report.add_argument("directory", type=Path)
    report.add_argument("--out", type=Path, help="default DIRECTORY/report.html")
    tasks = add("tasks", _tasks, "list the tasks, or show problems of one with answers and scores")
    kinds = tasks.add_subparsers(metavar="show")
    show = kinds.add_parser("show", help="problems of a task, a right and a wrong answer to each")
    show.set_defaults(command=_show_task)
    show.add_argument("task", help="a task's name, module:Class, or a configuration file")
    show.add_argument("--n", type=int, default=3, help="problems (default 3)")
    show.add_argument("--split", choices=("train", "test"), default="train")
    show.add_argument("--set", action="append", default=[], metavar="ARGUMENT=VALUE", dest="sets")
    compare = study("compare", _compare, "several methods, several seeds, one table")
    compare.add_argument("--methods", default="rl,fst", help=f"of {','.join(METHODS)}")
    compare.add_argument("--sweep", metavar="KEY=VALUE,VALUE", help="an arm per method and value")
    compare.add_argument("--levels", default="0.5,0.8,0.9", help="rewards to be reached")
    continual = study(
        "continual", _continual, "methods on a stream of tasks, each evaluated throughout"
    )
    continual.add_argument("--methods", default="rl,fst", help=f"of {','.join(METHODS)}")
    plasticity = study(
        "plasticity", _plasticity, "plain RL on a second task after each method on a first"
    )
    plasticity.add_argument(
        "--then", type=Path, required=True, help="the second task's configuration"
    )
    plasticity.add_argument("--methods", default="rl,fst", help=f"of {','.join(METHODS)}")
    ablate = study("ablate", _ablate, "one setting at a time changed")
    ablate.add_argument(
        "--over", action="append", metavar="KEY=VALUE,VALUE", help="default: the paper's"
    )
    decompose = add("decompose", _decompose, "base and trained weights, seed and evolved prompts")
    decompose.add_argument(
        "runs", type=Path, nargs="+", help="runs; those of one method side by side"
    )
    decompose.add_argument("--n", type=int, default=4, help="responses per problem (default 4)")
    plan = add("plan", _plan, "what a run will take: rollouts, tokens, memory, reflection, hours")
    plan.add_argument("config", type=Path)
    plan.add_argument("--method", choices=METHODS)
    plan.add_argument(
        "--like", type=Path, metavar="RUN_DIR", help="an earlier run, however short, to learn from"
    )
    plan.add_argument(
        "--speed", metavar="SAMPLED,LEARNED", help="response tokens per second, for the hours"
    )
    plan.add_argument("--set", action="append", default=[], metavar="KEY.PATH=VALUE", dest="sets")
    demo = add("demo", _demo, "FST, then RL with the same rollouts, on the embedded model")
    demo.add_argument(
        "config", type=Path, nargs="?", default=Path("configs/pocket/star_graph.yaml")
    )
    demo.add_argument("--seed", type=int, default=0)
    demo.add_argument("--dir", type=Path, default=Path("runs"))
    return parser


def _train(arguments: argparse.Namespace, console: Console) -> None:
    from fastslow import api
    from fastslow.display import Display

    overrides = dict(parse_override(text) for text in arguments.sets)
    if arguments.method:
        overrides["loop.method"] = arguments.method
    if arguments.seed is not None:
        overrides["run.seed"] = arguments.seed
    config = Config.load(arguments.config, overrides)
    with Display(config, console) as display:
        run = api.train(config, observer=display)
    _report([run], console)


def _plan(arguments: argparse.Namespace, console: Console) -> None:
    from fastslow.display import plan_table
    from fastslow.plan import Speed, make_plan
    from fastslow.run import Run

    speed = Speed(*_rates(arguments.speed)) if arguments.speed is not None else None
    overrides = dict(parse_override(text) for text in arguments.sets)
    if arguments.method:
        overrides["loop.method"] = arguments.method
    like = Run.open(arguments.like) if arguments.like else None
    console.print(
        plan_table(make_plan(Config.load(arguments.config, overrides), like, speed=speed))
    )


def _rates(text: str) -> list[float]:
    """Two positive numbers."""
    with suppress(ValueError):
        rates = [float(part) for part in text.split(",")]
        if len(rates) == 2 and all(0 < rate < math.inf for rate in rates):
            return rates
    raise ConfigError(
        f"--speed {text!r}: expected two positive numbers, the response tokens that are sampled and "
        "those that are learned from in a second, such as 9000,4000"
    )


def _resume(arguments: argparse.Namespace, console: Console) -> None:
    from fastslow import api
    from fastslow.display import Display
    from fastslow.run import Run

    config = Run.open(arguments.run).config
    with Display(config, console) as display:
        run = api.resume(arguments.run, observer=display)
    _report([run], console)


def _eval(arguments: argparse.Namespace, console: Console) -> None:
    from fastslow import api

    if arguments.n < 1:
        raise ConfigError(f"--n {arguments.n}: expected at least 1")
    table = Table(box=None, padding=(0, 2), header_style="bold")
    for name in ("prompt", f"mean@{arguments.n}", f"best@{arguments.n}", "± s.e.", "text"):
        table.add_column(name, overflow="fold")
    for name, found, text in api.evaluate_run(arguments.run, arguments.prompt, arguments.n):
        figures = (f"{value:.3f}" for value in (found.mean, found.best, found.stderr))
        table.add_row(name, *figures, Text(text))
    console.print(table)


def _prompts(arguments: argparse.Namespace, console: Console) -> None:
    from fastslow.display import prompt_tree
    from fastslow.run import Run

    rows = Run.open(arguments.run).prompts
    console.print(prompt_tree(rows) if rows else "No prompt has been evolved in this run.")


def _write_report(arguments: argparse.Namespace, console: Console) -> None:
    from fastslow.report import write_report

    console.print(f"{write_report(arguments.directory, arguments.out)}", soft_wrap=True)


def _tasks(arguments: argparse.Namespace, console: Console) -> None:
    from fastslow.display import task_table
    from fastslow.tasks import TASKS

    console.print(task_table(TASKS))
    console.print(
        "\nProblems, answers and scores: [bold]fastslow tasks show NAME[/bold]"
        "\nYour own: [bold]task: {name: mypackage.mytask:MyTask, ...}[/bold]"
    )


def _show_task(arguments: argparse.Namespace, console: Console) -> None:
    from fastslow.display import shown_problems
    from fastslow.tasks import make_task

    settings = dict(parse_override(text) for text in arguments.sets)
    if arguments.task.endswith((".yaml", ".yml")):
        config = Config.load(
            arguments.task, {f"task.{key}": value for key, value in settings.items()}
        ).task
    else:
        config = TaskConfig.parse({"name": arguments.task, **settings}, "task")
    if arguments.n < 1:
        raise ConfigError(f"--n {arguments.n}: expected at least 1")
    for block in shown_problems(make_task(config), arguments.split, arguments.n):
        console.print(block)


def _compare(arguments: argparse.Namespace, console: Console) -> None:
    from fastslow.studies import compare

    config, directory = _study(arguments, "compare")
    methods, levels = _methods(arguments), _levels(arguments)
    study = compare.compare(
        config, methods, arguments.seeds, directory, arguments.rollouts, arguments.sweep
    )
    study.run(arguments.jobs, console, arguments.known)
    _told(directory, compare.report(study, levels))


def _continual(arguments: argparse.Namespace, console: Console) -> None:
    from fastslow.studies import compare, continual

    config, directory = _study(arguments, "continual")
    if config.task.name != "stream":
        raise ConfigError(
            f"{arguments.config}: task.name = {config.task.name!r}, expected 'stream'"
        )
    study = compare.compare(
        config, _methods(arguments), arguments.seeds, directory, arguments.rollouts
    )
    study.run(arguments.jobs, console, arguments.known)
    _told(directory, f"{continual.table(study.runs())}\n\n{compare.table(study.runs(), ())}\n")


def _plasticity(arguments: argparse.Namespace, console: Console) -> None:
    from fastslow.studies.plasticity import plasticity

    config, directory = _study(arguments, "plasticity")
    second = Config.load(arguments.then, dict(parse_override(text) for text in arguments.sets))
    text = plasticity(
        config,
        second,
        _methods(arguments),
        arguments.seeds,
        directory,
        arguments.jobs,
        console,
        arguments.rollouts,
        arguments.known,
    )
    _told(directory, text, "phase-1", "phase-2")


def _ablate(arguments: argparse.Namespace, console: Console) -> None:
    from fastslow.studies import compare
    from fastslow.studies.ablate import USUAL, ablate

    config, directory = _study(arguments, "ablate")
    changes = arguments.over or USUAL
    study = ablate(config, changes, arguments.seeds, directory, arguments.rollouts)
    study.run(arguments.jobs, console, arguments.known)
    _told(directory, compare.report(study))


def _decompose(arguments: argparse.Namespace, console: Console) -> None:
    from fastslow.run import Run
    from fastslow.studies import decompose

    found: dict[str, list[Any]] = {}
    for directory in arguments.runs:
        method = Run.open(directory).config.loop.method
        found.setdefault(method, []).append(decompose.decompose(directory, arguments.n))
    print(decompose.table(found))


def _study(arguments: argparse.Namespace, kind: str) -> tuple[Config, Path]:
    for name in ("seeds", "jobs"):
        if getattr(arguments, name) < 1:
            raise ConfigError(f"--{name} {getattr(arguments, name)}: expected at least 1")
    config = Config.load(arguments.config, dict(parse_override(text) for text in arguments.sets))
    return config, arguments.dir or Path("runs") / f"{kind}-{arguments.config.stem}"


def _methods(arguments: argparse.Namespace) -> list[str]:
    methods: list[str] = arguments.methods.split(",")
    unknown = [method for method in methods if method not in METHODS]
    if unknown:
        raise ConfigError(f"--methods: no method {unknown[0]!r}; known: {', '.join(METHODS)}")
    return methods


def _levels(arguments: argparse.Namespace) -> list[float]:
    try:
        return [float(level) for level in arguments.levels.split(",")]
    except ValueError:
        raise ConfigError(f"--levels {arguments.levels!r}: expected rewards, as 0.5,0.8") from None


def _told(directory: Path, text: str, *parts: str) -> None:
    """Print a study's tables, keep them beside its runs, and draw its curves."""
    from fastslow.report import write_report

    (directory / "results.md").write_text(text)
    print(text)  # markdown, to be pasted
    for part in parts or ("",):
        print(f"The curves: {write_report(directory / part)}")


def _demo(arguments: argparse.Namespace, console: Console) -> None:
    from fastslow.demo import demo

    demo(arguments.config, arguments.dir, arguments.seed, console)


def _report(runs: Sequence[Any], console: Console) -> None:
    from fastslow.display import summary_table

    console.print(summary_table([run.summary for run in runs]))
    run = runs[0]
    console.print(Text.assemble(("\nbest prompt  ", "bold"), run.summary["best_prompt"]))
    console.print(
        f"\nThe run lies in {run.dir}. Next:\n"
        f"  fastslow prompts {run.dir}\n"
        f"  fastslow eval {run.dir} --prompt all --n 4\n"
        f"  fastslow report {run.dir}    (report.html in it, to be looked at in a browser)",
        highlight=False,
        markup=False,
    )


def _quiet() -> None:
    """Keep other libraries' progress bars out of the display."""
    os.environ.setdefault("HF_HUB_DISABLE_PROGRESS_BARS", "1")
    os.environ.setdefault("TOKENIZERS_PARALLELISM", "false")


if __name__ == "__main__":
    sys.exit(main())
