"""Where everything of a run lies: the one place that knows the names of its files."""

from __future__ import annotations

import hashlib
import os
from dataclasses import dataclass
from pathlib import Path

from pipeline.config.run import RunConfig


def cache_home() -> Path:
    """Return the user's own folder for copies of what lies elsewhere, on this machine."""
    base = os.environ.get("XDG_CACHE_HOME")
    return (Path(base) if base else Path.home() / ".cache") / "lasaft"


def below(address: str, name: str) -> str:
    """Return the address of ``name`` in the folder at ``address``."""
    folder, mark, options = address.partition("?")
    return f"{folder.rstrip('/')}/{name}{mark}{options}"


def _copy_of(address: str) -> Path:
    name = hashlib.sha256(address.rstrip("/").encode()).hexdigest()[:16]
    return cache_home() / "runs" / name


@dataclass(frozen=True)
class RunFolder:
    """The paths below one ``output_dir``; making this object touches no file.

    Where ``shards_dir`` is an address, ``shards`` is where they are made before they go there.
    Where ``output_dir`` is one, ``root`` is this machine's copy of what lies at ``address``.
    """

    root: Path
    shards: Path
    songs: Path
    shards_address: str | None = None
    address: str | None = None

    @classmethod
    def of(cls, config: RunConfig) -> RunFolder:
        """Return the absolute paths for ``config``."""
        run, place = config.output_dir, config.data.shards_dir
        address = run if isinstance(run, str) else None
        root = (run if isinstance(run, Path) else _copy_of(run)).absolute()
        if place is None and address is not None:
            place = below(address, "shards")
        shards = (place if isinstance(place, Path) else root / "shards").absolute()
        songs = (config.data.musdb_root or root / "songs").absolute()
        return cls(root, shards, songs, place if isinstance(place, str) else None, address)

    @property
    def shown(self) -> str:
        """Where the run is kept, for people: its folder, or its address without options."""
        return str(self.root) if self.address is None else self.address.partition("?")[0]

    def mixes(self) -> bool:
        """Return whether the shards would lie around a run or its songs, or among what it makes."""
        made = (*self.made, self.root / "songs")
        place, root, songs, *made = (
            Path(os.path.normpath(path)) for path in (self.shards, self.root, self.songs, *made)
        )
        around = songs == place or (songs.is_relative_to(place) and place.is_relative_to(root))
        return around or root.is_relative_to(place) or any(map(place.is_relative_to, made))

    @property
    def made(self) -> tuple[Path, ...]:
        """What a run writes besides its songs and shards, which may lie elsewhere."""
        return (
            self.training, self.checkpoint, self.checkpoints, self.scores, self.estimates,
            self.report, self.search, self.steps, self.previous, self.tracking, self.database,
            self.artifacts,
        )  # fmt: skip

    @property
    def config(self) -> Path:
        """The resolved configuration, as JSON."""
        return self.root / "config.json"

    @property
    def checkpoint(self) -> Path:
        """The best model: weights.safetensors and config.json."""
        return self.root / "checkpoint"

    @property
    def checkpoints(self) -> Path:
        """The best ``save_top_k`` models, a folder each: epoch=0007."""
        return self.root / "checkpoints"

    @property
    def training(self) -> Path:
        """The training state, Ray Train's own files and the journal of metrics."""
        return self.root / "training"

    @property
    def state(self) -> Path:
        """What a training goes on from that Ray Train does not know: the state of before."""
        return self.training / "state.safetensors"

    @property
    def ray_train(self) -> Path:
        """Ray Train's own: a run for each command, with the reported states as checkpoints."""
        return self.training / "ray"

    @property
    def metrics(self) -> Path:
        """The journal of training: one JSON line a record, the truth about the run."""
        return self.training / "metrics.jsonl"

    @property
    def scores(self) -> Path:
        """<model>/<split>/<track>.json in museval's schema, and <model>/summary.json."""
        return self.root / "scores"

    @property
    def estimates(self) -> Path:
        """<model>/<split>/<track>/<source>.wav, where estimates are kept."""
        return self.root / "estimates"

    @property
    def report(self) -> Path:
        """index.html, leaderboard.csv, leaderboard.json and audio/."""
        return self.root / "report"

    @property
    def steps(self) -> Path:
        """The stamps of finished workflow steps."""
        return self.root / "steps"

    @property
    def previous(self) -> Path:
        """What steps made before, put aside."""
        return self.root / "previous"

    @property
    def database(self) -> Path:
        """MLflow's, where the run keeps its records itself."""
        return self.root / "mlflow.db"

    @property
    def artifacts(self) -> Path:
        """The files that MLflow keeps beside that."""
        return self.root / "mlartifacts"

    @property
    def search(self) -> Path:
        """The trials of a search, their table, its report, and the winner's settings."""
        return self.root / "search"

    @property
    def tracking(self) -> Path:
        """The journal that feeds MLflow."""
        return self.root / "tracking"
