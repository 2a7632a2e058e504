"""A study: a folder of ordinary runs, as many at once as there are cores, each on one thread.

study.json   what it is and who its members are
NAME.yaml    the configuration of a member, NAME/ its run

What is finished is kept, what was cut is resumed, so that a study that was killed goes on where it was.
Runs of the same configuration that another study finished can be copied instead of made again.
"""

from __future__ import annotations

import json
import multiprocessing
import os
import shutil
import sys
import time
from collections.abc import Sequence
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass
from multiprocessing.process import BaseProcess
from pathlib import Path

from rich.console import Console
from rich.live import Live
from rich.table import Table

from fastslow.config import Config
from fastslow.errors import RunError
from fastslow.measure.curves import points
from fastslow.run import Run


@dataclass(frozen=True, slots=True)
class Member:
    """One run of a study. `config.run.dir` is set by the study that it belongs to."""

    arm: str
    seed: int
    config: Config

    @property
    def name(self) -> str:
        return f"{self.arm}-s{self.seed}"


def describe(
    directory: Path, kind: str, title: str, members: Sequence[tuple[str, int, str]]
) -> None:
    """Write study.json: what a report needs to read a folder of runs. Members are (arm, seed, folder)."""
    named = [{"arm": arm, "seed": seed, "dir": place} for arm, seed, place in members]
    about = {"study": kind, "title": title, "members": named}
    (directory / "study.json").write_text(json.dumps(about, indent=2) + "\n")


class Study:
    """Members in a folder. `run` trains what is not finished; then `runs` has them by arm."""

    def __init__(self, directory: Path, kind: str, title: str, members: Sequence[Member]) -> None:
        self.dir, self.kind, self.title, self.members = directory, kind, title, list(members)
        self._ends: dict[str, tuple[str, ...]] = {}  # rows of finished runs, which are read once
        for member in self.members:
            member.config.run.dir = str(self.dir / member.name)
            member.config.run.seed = member.seed
            member.config.run.threads = 1

    def run(self, jobs: int, console: Console, known: Sequence[Path] = ()) -> None:
        """Train every member; raises RunError naming those that failed, once the others are done.

        `known` are other studies' folders: what they finished with a member's configuration is copied.
        """
        self.dir.mkdir(parents=True, exist_ok=True)
        made = [found for directory in known for found in _finished_runs(directory)]
        for member in self.members:
            self._prepare(member)
            self._copy(member, made)
        named = [(member.arm, member.seed, member.name) for member in self.members]
        describe(self.dir, self.kind, self.title, named)
        failed: dict[str, str] = {}
        children: dict[str, BaseProcess] = {}
        # PyTorch is imported once for all; each run is still a process of its own.
        os.environ["OMP_NUM_THREADS"] = "1"
        context = multiprocessing.get_context("forkserver")
        context.set_forkserver_preload(["fastslow.api", "fastslow.display"])

        def work(member: Member) -> None:
            if stopping:
                return
            begun = (self.dir / member.name / "config.yaml").exists()
            place = self.dir / (member.name if begun else f"{member.name}.yaml")
            said = self.dir / f"{member.name}.err"
            command = ["resume" if begun else "train", str(place)]
            children[member.name] = child = context.Process(target=_main, args=(command, said))
            child.start()
            child.join()
            # 255 may mean that another thread, starting a process, has read this one's status.
            lost = child.exitcode == 255 and self._finished(member)
            if child.exitcode and not lost:
                lines = said.read_text().strip().splitlines() if said.exists() else []
                failed[member.name] = (lines or [f"ended with {child.exitcode}"])[-1]
            said.unlink(missing_ok=True)

        stopping = False
        with ThreadPoolExecutor(jobs) as pool:
            tasks = [pool.submit(work, m) for m in self.members if not self._finished(m)]
            try:
                with Live(console=console, refresh_per_second=1, transient=True) as live:
                    while not all(task.done() for task in tasks):
                        live.update(self._table(failed))
                        time.sleep(1)
            except BaseException:
                stopping = True
                for child in children.values():
                    child.terminate()  # a run loses no more than what follows its last checkpoint
                raise
        for task in tasks:
            task.result()
        console.print(self._table(failed))
        if failed:
            reasons = "; ".join(f"{name}: {reason}" for name, reason in failed.items())
            raise RunError(f"{self.dir}: {len(failed)} of its runs failed; {reasons}")

    def runs(self) -> dict[str, list[Run]]:
        """The runs by arm, both in the members' order."""
        found: dict[str, list[Run]] = {}
        for member in self.members:
            found.setdefault(member.arm, []).append(Run.open(self.dir / member.name))
        return found

    def _prepare(self, member: Member) -> None:
        """Write the member's configuration; one that was begun with another is not taken for it."""
        path = self.dir / f"{member.name}.yaml"
        wanted = member.config.dump()
        begun = self.dir / member.name / "config.yaml"
        if begun.exists() and path.exists() and path.read_text() != wanted:
            old, new = path.read_text().splitlines(), wanted.splitlines()
            differing = next(
                (pair for pair in zip(old, new, strict=False) if pair[0] != pair[1]), None
            )
            was, now = differing or ("more", "less")
            raise RunError(
                f"{self.dir / member.name}: was begun with {was.strip()!r}, now it is {now.strip()!r}; "
                "give another --dir, or remove it"
            )
        path.write_text(wanted)

    def _copy(self, member: Member, made: Sequence[Run]) -> None:
        """Take a member's run from another study where that has it, unless it is begun here."""
        place = self.dir / member.name
        twin = next((run for run in made if _alike(run.config, member.config)), None)
        if twin is not None and not place.exists():
            partial = self.dir / f"{member.name}.partial"
            shutil.rmtree(partial, ignore_errors=True)
            shutil.copytree(twin.dir, partial)
            (partial / "config.yaml").write_text(member.config.dump())
            partial.rename(place)

    def _finished(self, member: Member) -> bool:
        return (self.dir / member.name / "summary.json").exists()

    def _table(self, failed: dict[str, str]) -> Table:
        table = Table(box=None, padding=(0, 2), header_style="bold", title=self.title)
        for column in ("run", "state", "step", "rollouts", "reward", "seconds"):
            table.add_column(column, justify="left" if column in ("run", "state") else "right")
        for member in self.members:
            done = self._finished(member)
            row = self._ends.get(member.name) or self._progress(member, failed)
            if done:
                self._ends[member.name] = row
            table.add_row(member.name, *row)
        return table

    def _progress(self, member: Member, failed: dict[str, str]) -> tuple[str, ...]:
        if not (self.dir / member.name / "config.yaml").exists():
            return ("[red]failed" if member.name in failed else "[dim]waiting", "", "", "", "")
        state = "[green]done" if self._finished(member) else "running"
        state = "[red]failed" if member.name in failed else state
        try:
            curve = points(Run.open(self.dir / member.name).metrics)
        except RunError:  # its last line is being written
            curve = []
        if not curve:
            return (state, "", "", "", "")
        last = curve[-1]
        return (
            state,
            f"{last.step}",
            f"{last.rollouts:,}",
            f"{last.reward:.3f}",
            f"{last.seconds:.0f}",
        )


def _main(command: Sequence[str], said: Path) -> None:
    """A command in a process of its own that says nothing; its complaints go into a file."""
    from fastslow.cli import main

    with said.open("w") as complaints, open(os.devnull, "w") as nowhere:
        os.dup2(complaints.fileno(), 2)
        os.dup2(nowhere.fileno(), 1)
        sys.exit(main(command))


def _finished_runs(directory: Path) -> list[Run]:
    """The finished runs of another study; raises RunError where the folder holds none."""
    found = [Run.open(path.parent) for path in sorted(directory.glob("*/summary.json"))]
    if not found:
        raise RunError(f"{directory}: holds no finished runs, expected a study's folder")
    return found


def _alike(one: Config, other: Config) -> bool:
    """Whether two runs are the same, wherever they lie."""
    first, second = one.model_dump(), other.model_dump()
    for data in (first, second):
        del data["run"]["dir"]
    return first == second
