"""Preflight checks: is everything there that a run needs?"""

from __future__ import annotations

import shutil
import urllib.error
import urllib.request
import uuid
from collections.abc import Callable, Iterator
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any, Literal

from lasaft.errors import LasaftError
from pipeline.cluster import connected
from pipeline.config import RunConfig
from pipeline.folders import RunFolder
from pipeline.manifest import ShardSettings
from pipeline.preprocess import needed_bytes
from pipeline.songs import wants_songs
from pipeline.tracking.address import tracking_address, without_password
from pipeline.tracks import SPLITS, find_faults, list_tracks

MUSDB18_TRACKS = {"train": 86, "valid": 14, "test": 50}
_SERVER_TIMEOUT_SECONDS = 5

Verdict = Literal["ok", "note", "FAULT"]


@dataclass(frozen=True)
class Check:
    """The outcome of one check: ``FAULT`` stops a run, ``note`` is worth knowing."""

    name: str
    verdict: Verdict
    text: str


def examine(config: RunConfig) -> list[Check]:
    """Run every check for ``config``; nothing is left behind."""
    checks: list[Check] = []
    for name, check in _CHECKS.items():
        try:
            for verdict, text in check(config):
                checks.append(Check(name, verdict, text))
        except (LasaftError, OSError) as error:
            checks.append(Check(name, "FAULT", str(error)))
    return checks


def as_table(checks: list[Check]) -> str:
    """Return the checks as text for a terminal."""
    lines = []
    for check in checks:
        first, *more = check.text.splitlines()
        lines.append(f"{check.verdict:<6}{check.name:<9}{first}")
        lines += [f"{'':15}{line.strip()}" for line in more]
    faults = sum(check.verdict == "FAULT" for check in checks)
    lines.append(f"{faults} fault{'' if faults == 1 else 's'}" if faults else "all well")
    return "\n".join(lines)


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
        yield (
            "ok",
            (
                f"synthetic: {data.synthetic_train} train, {data.synthetic_valid} valid, "
                f"{data.synthetic_test} test, {data.synthetic_seconds:g} s each"
            ),
        )
        return
    if config.data.musdb_root is None:
        yield "FAULT", "musdb_root: got None, allowed: the folder of MUSDB18, or synthetic songs"
        return
    model = config.model
    tracks = list_tracks(
        config.data.musdb_root,
        sources=model.sources,
        is_wav=config.data.musdb_is_wav,
        dev_mode=config.data.dev_mode,
    )
    counts = {split: sum(track.split == split for track in tracks) for split in SPLITS}
    whole = counts == MUSDB18_TRACKS
    found = ", ".join(f"{count} {split}" for split, count in counts.items())
    wanted = "/".join(map(str, MUSDB18_TRACKS.values()))
    yield "ok" if whole else "note", f"{found} tracks (MUSDB18 has {wanted})"
    faults, samples = find_faults(
        tracks, sample_rate=model.sample_rate, channels=model.audio_channels
    )
    for fault in faults:
        yield "FAULT", fault
    hours = sum(samples) / model.sample_rate / 3600
    yield "ok", f"{hours:.2f} hours of audio"
    yield from _space(config, needed_bytes(
        RunFolder.of(config).shards, ShardSettings.of(config), tracks, samples
    ))  # fmt: skip


def _space(config: RunConfig, needed: int) -> Iterator[tuple[Verdict, str]]:
    shards = RunFolder.of(config).shards
    free = shutil.disk_usage(_existing(shards)).free
    verdict: Verdict = "ok" if needed < free else "FAULT"
    yield verdict, f"shards in {shards} need {needed / 1e9:.2f} GB, {free / 1e9:.1f} GB are free"


def _existing(path: Path) -> Path:
    """Return ``path`` or its nearest parent that exists."""
    return next(folder for folder in (path, *path.parents) if folder.exists())


def _ray(config: RunConfig) -> Iterator[tuple[Verdict, str]]:
    import ray

    with connected(config.cluster):
        total = ray.cluster_resources()
        nodes = [node for node in ray.nodes() if node["Alive"]]
        cpus, gpus = total.get("CPU", 0), total.get("GPU", 0)
        count = f"{len(nodes)} node{'s' if len(nodes) > 1 else ''}"
        yield "ok", f"{count}, {cpus:g} CPUs, {gpus:g} GPUs, Ray {ray.__version__}"
        wanted = config.train.gpus or 0
        if wanted > gpus:
            yield "FAULT", f"gpus: got {wanted}, the cluster has {gpus:g}"
        elif gpus and not wanted:
            yield "note", f"{gpus:g} GPUs are there and unused: give --gpus {gpus:g}"
        yield from _shared_storage(RunFolder.of(config).root, nodes)


def _shared_storage(root: Path, nodes: list[dict[str, Any]]) -> Iterator[tuple[Verdict, str]]:
    """Write a file here and read it on every node."""
    import ray
    from ray.util.scheduling_strategies import NodeAffinitySchedulingStrategy

    made = [folder for folder in (root, *root.parents) if not folder.exists()]
    root.mkdir(parents=True, exist_ok=True)
    probe, secret = root / f".probe-{uuid.uuid4().hex}", uuid.uuid4().hex
    try:
        probe.write_text(secret)
        look = ray.remote(_read_text)
        seen = {
            node["NodeManagerAddress"]: look.options(
                num_cpus=0,
                scheduling_strategy=NodeAffinitySchedulingStrategy(node["NodeID"], soft=False),
            ).remote(probe)
            for node in nodes
        }
        blind = [address for address, text in seen.items() if ray.get(text) != secret]
    finally:
        probe.unlink(missing_ok=True)
        for folder in made:
            folder.rmdir()
    if blind:
        yield "FAULT", f"output_dir: {root} is not shared storage: not seen from {', '.join(blind)}"
    else:
        yield "ok", f"output_dir {root} can be written, and is seen from every node"


def _read_text(path: Path) -> str | None:
    return path.read_text() if path.exists() else None


def _mlflow(config: RunConfig) -> Iterator[tuple[Verdict, str]]:
    if not config.tracking.log:
        yield "note", "log is False: nothing is recorded"
        return
    address = tracking_address(config)
    shown = without_password(address)
    if not address.startswith(("http://", "https://")):
        yield "ok", shown
        return
    try:
        with urllib.request.urlopen(f"{address}/health", timeout=_SERVER_TIMEOUT_SECONDS):  # noqa: S310 (checked above)
            yield "ok", f"{shown} answers"
    except (urllib.error.URLError, TimeoutError) as error:
        yield "FAULT", f"tracking_uri: {shown} does not answer ({error})"


_CHECKS: dict[str, Callable[[RunConfig], Iterator[tuple[Verdict, str]]]] = {
    "ffmpeg": _ffmpeg,
    "songs": _songs,
    "ray": _ray,
    "mlflow": _mlflow,
}
