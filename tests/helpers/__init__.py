"""What several tests need: written once, here."""

import os
from pathlib import Path

ROOT = Path(__file__).resolve().parents[2]

# What a command sees that is started from a new shell. A job that runs inside the process of the
# tests leaves settings of Ray there, those of a run on this machine alone.
NEW_SHELL = {
    name: value
    for name, value in os.environ.items()
    if not name.startswith("RAY_") or name == "RAY_worker_niceness"
}
