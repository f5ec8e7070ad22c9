"""Where everything of a run lies: the one place that knows the names of its files."""

from __future__ import annotations

import hashlib
import os
from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from pathlib import Path

from lasaft.errors import Problem
from lasaft.files import SPECIAL, first_special
from pipeline.config.addresses import check_place, shown
from pipeline.config.run import RunConfig

# By the path of a copy on this machine, the address of what it is a copy of.
_copies: dict[str, str] = {}
# Below a run: the folders of a search's trials, each a run of its own.
TRIALS = "search/trials"
# Folders that a run only reads; the small ones are copied whole.
_INPUTS = {"musdb_root": False, "checkpoint": True, "estimates_dir": False, "scores_dir": True}


def cache_home() -> Path:
    """Return the user's own folder for copies of what lies elsewhere, on this machine."""
    base = os.environ.get("XDG_CACHE_HOME")
    return (Path(base) if base else Path.home() / ".cache") / "lasaft"


def below(address: str, name: str) -> str:
    """Return the address of ``name`` in the folder at ``address``."""
    folder, mark, options = address.partition("?")
    return f"{folder.rstrip('/')}/{name}{mark}{options}"


def as_given(text: str) -> str:
    """Return a message with addresses in place of the paths of this machine's copies."""
    for path, address in _copies.items():
        text = text.replace(path, address)
    return text


def _run_copy(address: str) -> Path:
    """Return where the copy of a run lies; that of a search's trial lies in that of the search."""
    plain, mark, options = address.partition("?")
    run, _, trial = plain.partition(f"/{TRIALS}/")
    copy = _copy_of(f"{run}{mark}{options}", cache_home() / "runs")
    return copy / TRIALS / trial if trial else copy


def _copy_of(address: str, folder: Path, name: str = "") -> Path:
    """Return where below ``folder`` the copy of what lies at an address is, ending in ``name``."""
    path = folder / hashlib.sha256(address.rstrip("/").encode()).hexdigest()[:16] / name
    _copies[str(path)] = shown(address).partition("?")[0].rstrip("/")
    return path


@dataclass(frozen=True)
class Input:
    """A folder at an address that a run only reads.

    Args:
        option: which gives the address.
        root: this machine's copy; its last part is the address's.
        whole: whether the command copies all of it; else a task copies what it reads.
        limit_bytes: what all that tasks have copied may take on a node.
    """

    option: str
    address: str
    root: Path
    whole: bool
    limit_bytes: int

    @property
    def cache(self) -> Path:
        """The folder of all copies of inputs."""
        return self.root.parent.parent


@dataclass(frozen=True)
class RunFolder:
    """The paths below one ``output_dir``; making this object touches no file.

    Where ``shards_dir`` is an address, ``shards`` is where they are made before they go there.
    Where ``output_dir`` is one, ``root`` is this machine's copy of what lies at ``address``.

    Args:
        given: what options name, by the option: this machine's copies of what ``inputs`` are.
    """

    root: Path
    shards: Path
    songs: Path
    given: Mapping[str, Path]
    inputs: tuple[Input, ...] = ()
    shards_address: str | None = None
    address: str | None = None

    @classmethod
    def of(cls, config: RunConfig) -> RunFolder:
        """Return the absolute paths for ``config``."""
        run, place = config.output_dir, config.data.shards_dir
        address = run if isinstance(run, str) else None
        root = (run if isinstance(run, Path) else _run_copy(run)).absolute()
        if place is None and address is not None:
            place = below(address, "shards")
        shards = (place if isinstance(place, Path) else root / "shards").absolute()
        inputs, given = _inputs(config)
        songs = given.get("musdb_root", root / "songs")
        shards_address = place if isinstance(place, str) else None
        return cls(root, shards, songs, given, inputs, shards_address, address)

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
    def evaluated(self) -> Path:
        """The model that is evaluated: the one that ``checkpoint`` names, or the best."""
        return self.given.get("checkpoint", self.checkpoint)

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


def added_runs(config: RunConfig) -> list[RunFolder]:
    """Return the other runs whose scores go on the board."""
    places = [check_place("add", place) for place in config.add or ()]
    places = [p.expanduser().absolute() if isinstance(p, Path) else p for p in places]
    return [RunFolder.of(config.model_copy(update={"output_dir": place})) for place in places]


def _inputs(config: RunConfig) -> tuple[tuple[Input, ...], dict[str, Path]]:
    """Return what a run reads at addresses, and where on this machine all that it reads lies."""
    data, evaluate = config.data, config.evaluate
    cache = (data.cache_dir or cache_home()).absolute() / "inputs"
    inputs, given = [], {}
    for option, whole in _INPUTS.items():
        place = getattr(data if option == "musdb_root" else evaluate, option)
        if isinstance(place, str):
            name = Path(place.partition("?")[0]).name
            given[option] = _copy_of(place, cache, name)
            inputs.append(
                Input(option, place, given[option], whole, int(config.data.cache_gb * 1e9))
            )
        elif place is not None:
            given[option] = place.absolute()
    return tuple(inputs), given


def misplaced(config: RunConfig) -> Iterator[Problem]:
    """Yield what of a run, or of what it reads, is no file or no folder where it should be one."""
    run = RunFolder.of(config)
    record, weights = run.checkpoint / "config.json", run.checkpoint / "weights.safetensors"
    files = {run.config, run.metrics, run.database, record, weights}
    for place in (*sorted(files), run.training, run.checkpoint):
        if place.is_dir() if place in files else place.is_file():
            found, allowed = ("folder", "file") if place in files else ("file", "folder")
            yield Problem("output_dir", reason=f"{place} is a {found}", allowed=f"a {allowed}")
    here = [path for path in run.root.iterdir() if not path.is_dir()] if run.root.is_dir() else []
    places = {
        "output_dir": [*here, *run.made, run.root / "songs"],
        "shards_dir": [run.shards],
        "resume_from_checkpoint": [config.train.resume_from_checkpoint],
        **{option: [place] for option, place in run.given.items() if option != "musdb_root"},
    }
    for option, read in places.items():
        if (found := first_special(filter(None, read))) is not None:
            yield Problem(option, reason=f"{found} is {SPECIAL}", allowed="files and folders")
