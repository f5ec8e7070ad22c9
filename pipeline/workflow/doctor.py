"""Preflight checks: is everything there that a run needs?"""

from __future__ import annotations

import http.client
import os
import shutil
import sqlite3
import urllib.request
from collections.abc import Callable, Iterator, Sequence
from contextlib import closing, nullcontext
from dataclasses import asdict, dataclass
from itertools import combinations
from pathlib import Path
from typing import Any, Literal

from lasaft.errors import LasaftError
from pipeline.cluster.connection import connected, living_nodes
from pipeline.cluster.nodes import patience_seconds
from pipeline.cluster.shared_storage import require_writable_address, storage_faults
from pipeline.cluster.store import RemoteFolder
from pipeline.config import RunConfig
from pipeline.config.addresses import shown
from pipeline.config.folders import RunFolder, cache_home
from pipeline.config.run import split_problems
from pipeline.data.shards.manifest import MANIFEST_NAME, ShardSettings, read_manifest
from pipeline.data.shards.preprocess import needed_bytes
from pipeline.data.shards.store import shard_place
from pipeline.data.songs.checks import examine_tracks, fault_lines, grouped
from pipeline.data.songs.folders import find_places
from pipeline.data.songs.make import wants_songs
from pipeline.data.songs.splits import SPLITS, SPLITS_FILE, normal
from pipeline.data.songs.tracks import OTHER_IS_THE_REST, list_tracks, listing_notes
from pipeline.data.songs.wanted import Wanted
from pipeline.tracking.address import store_problems, tracking_address

MUSDB18_TRACKS = {"train": 86, "valid": 14, "test": 50}
_SERVER_TIMEOUT_SECONDS = 5

Verdict = Literal["ok", "note", "FAULT"]


@dataclass(frozen=True)
class Check:
    """The outcome of one check: ``FAULT`` stops a run, ``note`` is worth knowing."""

    name: str
    verdict: Verdict
    text: str

    @property
    def shown(self) -> str:
        """The lines of a table for people."""
        first, *more = self.text.splitlines()
        lines = [f"{self.verdict:<6}{self.name:<9}{first}"]
        return "\n".join([*lines, *(f"{'':15}{line.strip()}" for line in more)])


def examine(config: RunConfig) -> Iterator[Check]:
    """Yield what each check of ``config`` finds, as soon as it does; nothing is left behind."""
    for name, check in _CHECKS.items():
        try:
            for verdict, text in check(config):
                yield Check(name, verdict, text)
        except (LasaftError, OSError) as error:
            yield Check(name, "FAULT", str(error))


def as_data(checks: list[Check]) -> dict[str, Any]:
    """Return the checks for programs."""
    return {
        "faults": sum(check.verdict == "FAULT" for check in checks),
        "checks": [asdict(check) for check in checks],
    }


def _ffmpeg(_: RunConfig) -> Iterator[tuple[Verdict, str]]:
    found = shutil.which("ffmpeg")
    if found and shutil.which("ffprobe"):
        yield "ok", f"{found}: .stem.mp4 can be read"
    else:
        yield "note", "ffmpeg and ffprobe are not on PATH: wav works; .stem.mp4 needs them"


def _songs(config: RunConfig) -> Iterator[tuple[Verdict, str]]:
    if wants_songs(config):
        data = config.data
        text = (
            f"synthetic: {data.synthetic_train} train, {data.synthetic_valid} valid, "
            f"{data.synthetic_test} test, {data.synthetic_seconds:g} s each"
        )
        yield "ok", text
        return
    if config.data.musdb_root is None:
        yield "FAULT", "musdb_root: got None, allowed: the folder of MUSDB18, or synthetic songs"
        return
    # Songs in an object store are read on nodes.
    remote = isinstance(config.data.musdb_root, str)
    with connected(config.cluster, "to look at the songs") if remote else nullcontext():
        yield from _own_songs(config, RunFolder.of(config).songs)


def _own_songs(config: RunConfig, root: Path) -> Iterator[tuple[Verdict, str]]:
    wanted = Wanted.of(config.model, config.data)
    tracks = list_tracks(root, wanted)
    counts = {split: sum(track.split == split for track in tracks) for split in SPLITS}
    whole = counts == MUSDB18_TRACKS
    listed = ", ".join(f"{count} {split}" for split, count in counts.items())
    usual = "/".join(map(str, MUSDB18_TRACKS.values()))
    yield "ok" if whole else "note", f"{listed} tracks (MUSDB18 has {usual})"
    places = find_places(root, wanted)
    notes = list(listing_notes(root, wanted))
    for note in notes:
        yield "note", note
    left_out = [place.name for place in places if place.split is None]
    if left_out:
        yield "note", f"{SPLITS_FILE} leaves out {len(left_out)} tracks: {_some(left_out)}"
    if not tracks[0].has_mixture:
        yield "note", "no track has a mixture file: the mixture is the sum of the sources"
    taken = {*map(normal, tracks[0].columns)}
    spare = sorted({stem for place in places for stem in place.stems} - taken)
    if spare and OTHER_IS_THE_REST not in notes:
        yield "note", f"stems that sources does not name are not read: {_some(spare)}"
    found = examine_tracks(tracks, root=root, config=config)
    for fault in fault_lines(tracks, found):
        yield "FAULT", fault
    for note in grouped(tracks, [findings.notes for findings in found]):
        yield "note", note
    samples = [findings.samples for findings in found]
    seconds: dict[str, float] = dict.fromkeys(SPLITS, 0.0)
    for track, count in zip(tracks, samples, strict=True):
        seconds[track.split] += count / wanted.sample_rate
    unit, length = ("hours", 3600) if sum(seconds.values()) >= 3600 else ("minutes", 60)
    each = ", ".join(f"{count / length:.2f} {split}" for split, count in seconds.items())
    yield "ok", f"{sum(seconds.values()) / length:.2f} {unit} of audio ({each})"
    if counts["train"] and not counts["valid"]:
        yield (
            "note",
            "no valid tracks: the training loss selects the model, and patience counts on it",
        )
    for problem in split_problems(config, counts):
        yield "note", f"jobs.run is refused: {problem}"
    splits = {split: {normal(t.name) for t in tracks if t.split == split} for split in SPLITS}
    for one, other in combinations(SPLITS, 2):
        if both := sorted(splits[one] & splits[other]):
            yield "note", f"{one} and {other} both have {_some(both)}: is it one song?"
    shards = RunFolder.of(config).shards
    yield from _space(shards, needed_bytes(shards, ShardSettings.of(config), tracks, samples))


def _some(names: Sequence[str]) -> str:
    shown = ", ".join(map(repr, names[:5]))
    return shown + (f" and {len(names) - 5} more" if len(names) > 5 else "")


def _space(shards: Path, needed: int) -> Iterator[tuple[Verdict, str]]:
    free = shutil.disk_usage(_existing(shards)).free
    verdict: Verdict = "ok" if needed < free else "FAULT"
    yield verdict, f"shards in {shards} need {needed / 1e9:.2f} GB, {free / 1e9:.1f} GB are free"


def _store(config: RunConfig) -> Iterator[tuple[Verdict, str]]:
    """Look at the shards in an object store, and at the room for their copies."""
    place = shard_place(RunFolder.of(config))
    if not isinstance(place, RemoteFolder):
        return
    if (place / MANIFEST_NAME).size() is None:
        if config.data.shards_dir is not None:  # else they go where the run does
            require_writable_address("shards_dir", place.address)
        yield "note", f"{place} answers, and holds no shards (no {MANIFEST_NAME})"
        return
    manifest = read_manifest(place)
    read = [*manifest.split("train"), *manifest.split("valid")]
    size = sum(shard.size_bytes for track in read for shard in track.shards) / 1e9
    yield "ok", f"{place} holds {len(manifest.tracks)} tracks, data hash {manifest.hash[:8]}"
    cache = config.data.cache_dir or cache_home() / "shards"
    free = shutil.disk_usage(_existing(cache)).free / 1e9
    room = min(config.data.cache_gb, free)
    text = f"training reads {size:.2f} GB; cache_dir {cache} has room for {room:.2f} GB of it"
    slow = "; the rest is read from the store again and again" if room < size else ""
    yield "note" if slow else "ok", text + slow


def _existing(path: Path) -> Path:
    """Return ``path`` or its nearest parent that exists."""
    return next(folder for folder in (path, *path.parents) if folder.exists())


def _ray(config: RunConfig) -> Iterator[tuple[Verdict, str]]:
    import ray

    with connected(config.cluster, "to see what it has"):
        total = ray.cluster_resources()
        nodes = living_nodes()
        cpus, gpus = total.get("CPU", 0), total.get("GPU", 0)
        count = f"{len(nodes)} node{'s' if len(nodes) > 1 else ''}"
        yield "ok", f"{count}, {cpus:g} CPUs, {gpus:g} GPUs, Ray {ray.__version__}"
        wanted, minutes = config.train.gpus or 0, patience_seconds(config.cluster) / 60
        if wanted > gpus:
            later = f" now; a run waits {minutes:g} minutes for more (wait_for_nodes_minutes)"
            text = f"gpus: got {wanted}, the cluster has {gpus:g}{later if minutes else ''}"
            yield "note" if minutes else "FAULT", text
        elif gpus and not wanted:
            yield "note", f"{gpus:g} GPUs are there and unused: give --gpus {gpus:g}"
        faults = storage_faults(config, nodes)
        for fault in faults:
            yield "FAULT", fault
        if not faults:
            root = RunFolder.of(config).shown
            yield "ok", f"output_dir {root} can be written, and is seen from every node"


def _mlflow(config: RunConfig) -> Iterator[tuple[Verdict, str]]:
    if not config.tracking.log:
        yield "note", "log is False: nothing is recorded"
        return
    address = tracking_address(config)
    if problems := list(store_problems(config)):
        for problem in problems:
            yield "FAULT", str(problem)
    elif address.startswith(("http://", "https://")):
        yield _server(shown(address))
    elif address.startswith("sqlite:///"):
        yield _database(shown(address), Path(address.removeprefix("sqlite:///").partition("?")[0]))
    else:
        yield "note", f"{shown(address)} is not looked at: no MLflow server, and no SQLite file"


def _server(address: str) -> tuple[Verdict, str]:
    try:
        with urllib.request.urlopen(  # noqa: S310 (its caller looks at the scheme)
            f"{address.rstrip('/')}/health", timeout=_SERVER_TIMEOUT_SECONDS
        ) as answer:
            if answer.read(100).strip() == b"OK":
                return "ok", f"{address} answers"
    except (OSError, http.client.HTTPException, ValueError) as error:
        return "FAULT", f"tracking_uri: {address} does not answer ({error})"
    return "FAULT", f"tracking_uri: {address} answers, but not as an MLflow server does"


def _database(address: str, file: Path) -> tuple[Verdict, str]:
    folder = _existing(file.absolute().parent)
    if not folder.is_dir() or not os.access(folder, os.W_OK):
        return "FAULT", f"tracking_uri: {address}: {folder} is no folder that can be written"
    if file.exists():
        try:
            with closing(sqlite3.connect(f"{file.absolute().as_uri()}?mode=ro", uri=True)) as base:
                base.execute("PRAGMA schema_version").fetchone()
        except sqlite3.Error as error:
            return "FAULT", f"tracking_uri: {address} is no SQLite database ({error})"
    return "ok", address


_CHECKS: dict[str, Callable[[RunConfig], Iterator[tuple[Verdict, str]]]] = {
    "ffmpeg": _ffmpeg,
    "songs": _songs,
    "shards": _store,
    "ray": _ray,
    "mlflow": _mlflow,
}
