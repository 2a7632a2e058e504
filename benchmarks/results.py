"""Every study at pocket size, one run to a core; their tables and pictures go into the documentation.

    make results                                       # or: python benchmarks/results.py [NAME ...]

Each study's own tables become docs/studies/NAME.md, and docs/results.md, between `<!-- CLAIM -->` and
`<!-- /CLAIM -->`, gets a table per claim of the paper (claims.py); what stands around it is a person's.
Runs that are finished are kept (runs/results), so that a second call only fills in what is missing.
"""

from __future__ import annotations

import argparse
import os
import re
import subprocess
import sys
import time
from concurrent.futures import Future, ThreadPoolExecutor
from pathlib import Path
from statistics import fmean

from claims import CLAIMS, curves

ROOT = Path(__file__).parents[1]
PAGE = ROOT / "docs/results.md"
TABLES = ROOT / "docs/studies"
PICTURE = ROOT / "docs/curves.svg"
# The same evaluation everywhere, where a study says nothing else, and no more files than the tables need.
COMMON = (
    "--seeds 3 --set eval.every=6 --set eval.problems=40 --set eval.n=2"
    " --set run.rollouts=false --set run.report=false"
)
EACH = "--set eval.problems=25"  # of three tasks
THREE = "--methods rl,fst,gepa+rl"
# The longest first, so that the processor's cores are busy to the end.
STUDIES = {
    "hover": f"compare hover {THREE},rl+gepa,base+gepa,fst-distill --rollouts 3840",
    "ablate": "ablate codeio --over fast.k=1,8 --over loop.cycle=12 --over slow.baseline=prompt"
    " --over fast.budget=480 --over fast.reflector=python:examples.reflectors:greedy,"
    "python:examples.reflectors:blind --rollouts 2400",
    "continual": f"continual continual {THREE} {EACH} --set eval.every=9",
    "codeio": f"compare codeio {THREE} --rollouts 3840",
    "lenient": f"compare star_graph_lenient {THREE} --rollouts 3840",
    "mixture": f"compare mixture --methods fst,gepa+rl --rollouts 5000 {EACH}",
    "plasticity": f"plasticity hover --then configs/pocket/codeio.yaml {THREE} --rollouts 3840",
    "sweep": "compare codeio --methods rl,fst --sweep slow.lr=1e-4,4e-4,1e-3 --rollouts 3840",
    "strict": f"compare star_graph {THREE} --rollouts 3000",
    "reuse": "ablate star_graph_reuse --over reuse.enabled=false --rollouts 4000",
}
FROM = {"sweep": ("codeio",), "plasticity": ("hover", "codeio")}  # whose runs need no second making
DRAWN = ("strict", "lenient", "codeio", "hover", "mixture", "plasticity/phase-2")


def command(name: str, directory: Path, jobs: int) -> list[str]:
    kind, config, *rest = STUDIES[name].split()
    known = [word for other in FROM.get(name, ()) for word in ("--from", str(directory / other))]
    place = ["--dir", str(directory / name), "--jobs", str(jobs)]
    return [kind, f"configs/pocket/{config}.yaml", *COMMON.split(), *rest, *known, *place]


def keep(name: str, directory: Path) -> None:
    """Put a study's own tables, and the command that makes them, into a page of theirs."""
    kind, config, *rest = STUDIES[name].split()
    typed = " ".join(["fastslow", kind, f"configs/pocket/{config}.yaml", *COMMON.split(), *rest])
    tables = (directory / name / "results.md").read_text().strip()
    TABLES.mkdir(exist_ok=True)
    (TABLES / f"{name}.md").write_text(f"# {name}\n\n    {typed}\n\n{tables}\n")


def fill(claim: str, text: str) -> None:
    """Put a claim's table where the page has a place for it."""
    page = PAGE.read_text()
    made = f"<!-- {claim} -->\n\n{text}\n\n<!-- /{claim} -->"
    filled, count = re.subn(
        rf"<!-- {claim} -->.*?<!-- /{claim} -->", lambda _: made, page, flags=re.S
    )
    if count != 1:
        raise SystemExit(f"{PAGE}: {count} places for {claim!r}, expected one")
    PAGE.write_text(filled)


def draw(directory: Path) -> None:
    """Held-out reward against rollouts, a panel per study: mean line, band of all seeds."""
    import matplotlib

    matplotlib.use("Agg")
    matplotlib.rcParams["svg.hashsalt"] = PICTURE.name  # the same file from the same runs
    from matplotlib import pyplot

    found = [name for name in DRAWN if (directory / name / "study.json").exists()]
    columns = min(3, len(found))
    shape = (-(-len(found) // columns), columns)
    figure, panels = pyplot.subplots(
        *shape, figsize=(4 * columns, 3 * shape[0]), sharey=True, squeeze=False
    )
    for panel, name in zip(panels.flat, found, strict=False):
        for style, (arm, members) in zip(
            ("-", "--", ":", "-.") * 2, curves(directory / name).items(), strict=False
        ):
            columns_of = list(zip(*members, strict=False))  # as far as all seeds got
            x = [fmean(point.rollouts for point in column) for column in columns_of]
            y = [[point.reward for point in column] for column in columns_of]
            (line,) = panel.plot(x, [fmean(column) for column in y], style, label=arm)
            band = {"alpha": 0.2, "linewidth": 0, "color": line.get_color()}
            panel.fill_between(x, [min(c) for c in y], [max(c) for c in y], **band)
        panel.set(title=name, xlabel="rollouts, GEPA's included", ylim=(0, 1))
        panel.grid(alpha=0.3)
        panel.legend(frameon=False, fontsize="small")
    for panel in panels.flat[len(found) :]:
        panel.axis("off")
    figure.tight_layout()
    figure.savefig(PICTURE, metadata={"Date": None})


def main() -> None:
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawTextHelpFormatter
    )
    parser.add_argument(
        "names", nargs="*", default=[*STUDIES], metavar="NAME", help=", ".join(STUDIES)
    )
    parser.add_argument("--dir", type=Path, default=ROOT / "runs/results")
    arguments = parser.parse_args()
    for name in arguments.names:
        if name not in STUDIES:
            parser.error(f"no study {name!r}; known: {', '.join(STUDIES)}")
    begun = time.perf_counter()
    cores = os.cpu_count() or 1
    jobs = max(1, cores // len(arguments.names))  # runs of a study at once

    def say(what: str, since: float) -> None:
        print(f"{what}: {(time.perf_counter() - since) / 60:.1f} minutes", flush=True)

    futures: dict[str, Future[None]] = {}

    def make(name: str) -> None:
        for other in FROM.get(name, ()):
            if other in futures:
                futures[other].result()
        start = time.perf_counter()
        words = [sys.executable, "-m", "fastslow", *command(name, arguments.dir, jobs)]
        subprocess.run(words, check=True, cwd=ROOT, stdout=subprocess.DEVNULL)
        keep(name, arguments.dir)
        say(name, start)

    with ThreadPoolExecutor(cores) as pool:
        for name in (name for name in STUDIES if name in arguments.names):
            futures[name] = pool.submit(make, name)
    for future in futures.values():
        future.result()
    start = time.perf_counter()
    for claim, (table, needed) in CLAIMS.items():
        if all((arguments.dir / name / "results.md").exists() for name in needed):
            fill(claim, table(arguments.dir))
    draw(arguments.dir)
    say("tables and pictures", start)
    say("all", begun)


if __name__ == "__main__":
    main()
