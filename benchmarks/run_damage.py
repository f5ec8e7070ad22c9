"""Damages every file of a finished run, gives each command that may read it, and counts outcomes.

    python -m benchmarks.run_damage                                    all: hours
    python -m benchmarks.run_damage --commands report run --count 200  a draw of them
    python -m benchmarks.run_damage --minutes 25                       as many as that takes

A command passes if it mends the file to the same bytes, if it gives the right result without it, or
if it ends with one clear line. Ends with 1 if any gave a traceback or, unnoticed, another result.
"""

from __future__ import annotations

import argparse
import random
import sys
import tempfile
import time
from collections import Counter
from pathlib import Path

from benchmarks.measure import Table
from tests.helpers.run_damage import COMMANDS, MENDED, RIGHT, TOLD, WAYS, WRONG, every, finished_run


def main() -> int:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0] if __doc__ else None)
    parser.add_argument("--commands", nargs="+", choices=COMMANDS, default=list(COMMANDS))
    parser.add_argument("--ways", nargs="+", choices=WAYS, default=list(WAYS))
    parser.add_argument("--count", type=int, help="how many, drawn at random (default: all)")
    parser.add_argument("--minutes", type=float, default=float("inf"))
    parser.add_argument("--seed", type=int, default=0)
    options = parser.parse_args()
    draw, found, wrong = random.Random(options.seed), Counter[tuple[str, str]](), []
    more = {"tune"} & set(options.commands)  # a search in the same folder
    with tempfile.TemporaryDirectory() as root, finished_run(Path(root), *more) as run:
        cases = list(every(run, options.ways, options.commands))
        end = time.monotonic() + 60 * options.minutes
        for file, way, command in draw.sample(cases, options.count or len(cases)):
            if time.monotonic() > end:
                break
            outcome, told = run.outcome(file, way, command, draw)
            found[command, outcome] += 1
            if outcome == WRONG:
                wrong.append(f"{command}, {file}, {way}: {told.strip()[-300:]}")
    print(f"{found.total()} of {len(cases)} damages")
    outcomes = (MENDED, RIGHT, TOLD, WRONG)
    rows = Table("command", *outcomes)
    for command in options.commands:
        rows.row(command, *(found[command, outcome] for outcome in outcomes))
    print(*wrong, sep="\n")
    return 1 if wrong else 0


if __name__ == "__main__":
    sys.exit(main())
