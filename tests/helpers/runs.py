"""Runs of version 0.1, stored as it left them: finished, with a search, and in mid training."""

from __future__ import annotations

import tarfile
from pathlib import Path

from jobs.cli import parse
from pipeline.config import RunConfig
from tests.helpers import ROOT

_STORED = ROOT / "tests" / "workflow" / "stored" / "runs_of_0.1.tar.xz"
_NETWORK = {
    "sample_rate": 8000, "n_fft": 256, "hop_length": 128, "num_frame": 16, "n_blocks": 3,
    "internal_channels": 4, "n_internal_layers": 1, "num_tdfs": 2, "dk": 4, "embedding_dim": 4,
}  # fmt: skip
_OTHERS = {"batch_size": 4, "sample_every_epochs": 1, "run_id": "before", "log": False}
_OF_THE_RUN = {
    "finished": {"steps_per_epoch": 4, "max_epochs": 2},
    "searched": {"steps_per_epoch": 4, "max_epochs": 2, "trial_epochs": 1},
    "halfway": {"steps_per_epoch": 60, "max_epochs": 4},
}


def unpack(folder: Path) -> None:
    """Lay out ``songs/``, ``finished/``, ``searched/`` and ``halfway/`` in ``folder``.

    Only ``finished`` has shards: they are copied to the others, which had the same.
    """
    with tarfile.open(_STORED) as stored:
        stored.extractall(folder, filter="data")
    for name in ("searched", "halfway"):
        _copy(folder / "finished" / "shards", folder / name / "shards")
    (folder / "space.yaml").write_text("options:\n  lr: [0.001, 0.003]\n")


def _copy(source: Path, target: Path) -> None:
    for file in source.rglob("*"):
        if file.is_file():
            place = target / file.relative_to(source)
            place.parent.mkdir(parents=True, exist_ok=True)
            place.write_bytes(file.read_bytes())


def words(folder: Path, name: str, **more: object) -> list[str]:
    """Return the command line of a stored run, with other options behind it."""
    places = {"musdb_root": folder / "songs", "output_dir": folder / name}
    if name == "searched":
        places["space"] = folder / "space.yaml"
    options = places | _NETWORK | _OTHERS | _OF_THE_RUN[name] | more
    return [word for option, value in options.items() for word in (f"--{option}", str(value))]


def config_of(folder: Path, name: str, **more: object) -> RunConfig:
    """Return the configuration of a stored run, with other options behind it."""
    return parse(words(folder, name, **more), "run").config
