"""Damages shards and manifests at random, and counts what is found before a window leaves.

    python -m benchmarks.damage --count 1000 --seed 0

Each damage is made to a sound folder. Then every window of every column is read as training and
validation do: either the reader refuses with a message that names the shard and what to run, or
all that it gave out before is right. Ends with 1 if a damage got through.
"""

from __future__ import annotations

import argparse
import sys
import tempfile
import time
from pathlib import Path

import torch

from benchmarks.measure import Table
from tests.helpers.damage import Place, run


def main() -> int:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0] if __doc__ else None)
    parser.add_argument("--count", type=int, default=1000)
    parser.add_argument("--seed", type=int, default=0)
    options = parser.parse_args()
    torch.set_num_threads(1)
    start = time.monotonic()
    with tempfile.TemporaryDirectory() as folder:
        kinds, missed = run(Place.make(Path(folder)), options.count, options.seed)
    rows = Table("damage", "times")
    for kind, number in sorted(kinds.items()):
        rows.row(kind, number)
    found, seconds = options.count - len(missed), time.monotonic() - start
    print(f"\n{found} of {options.count} found, {seconds:.0f} s", *missed, sep="\n")
    return 1 if missed else 0


if __name__ == "__main__":
    sys.exit(main())
