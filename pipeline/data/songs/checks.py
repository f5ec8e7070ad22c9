"""Checks every track of a data set before any work starts, and reports all faults at once."""

from __future__ import annotations

from collections.abc import Callable, Iterator, Sequence
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass, field
from itertools import chain
from pathlib import Path

import torch

from lasaft.errors import AudioError, DataError
from lasaft.output import is_harmless, shown
from pipeline.cluster.fanout import Needs, run_tasks
from pipeline.cluster.parcels import parcel
from pipeline.cluster.progress import Progress
from pipeline.config import RunConfig
from pipeline.config.folders import RunFolder
from pipeline.data.songs.audio_files import (
    STEM_MP4_STREAMS,
    Header,
    is_pcm,
    read_sound_header,
    read_stem_mp4_headers,
    require_ffmpeg,
)
from pipeline.data.songs.fitting import Headers, fit
from pipeline.data.songs.layouts import MIXTURE
from pipeline.data.songs.tracks import Track, audio_blocks

_THREADS = 8
_BLOCK_SAMPLES = 1 << 18


@dataclass
class Findings:
    """What is known about a track."""

    # One line each: what was found, what is allowed.
    faults: list[str] = field(default_factory=list)
    notes: list[str] = field(default_factory=list)  # what is worth knowing and stops nothing
    samples: int = 0  # length by the headers (0: unknown)


def _examine(track: Track, root: Path, listen: bool) -> Findings:
    if not track.is_wav:
        require_ffmpeg()
    found, inside = _headers(track), root.resolve()
    if found.faults:
        return found
    files = chain(*track.files) if track.layout != "csv" else ()
    if any(not file.resolve().is_relative_to(inside) for file in files):
        found.notes.append("its files are links that lead out of the data set")
    if listen:
        _listen(track, found)
    return found


def examine_tracks(
    tracks: Sequence[Track],
    *,
    root: Path,
    listen: Callable[[Track], bool] = lambda track: True,
    config: RunConfig | None = None,
) -> list[Findings]:
    """Check all tracks: streams, lengths, rate, channels, finite samples, not silent throughout.

    Samples are read as far as it takes to know: until each stem has sounded, or to the end where
    the files hold floating point numbers, which may be no numbers.

    Args:
        root: the data set's folder; links that lead out of it are notes.
        listen: whether the samples of a track are looked at too, not only the headers.
        config: of a run whose songs may lie in an object store, and which is connected to Ray:
            then a task reads each track, on a node.

    Raises:
        DataError: ffmpeg is needed and missing.
        StageError: tracks cannot be fetched.
    """
    calls = [(track, root, listen(track)) for track in tracks]
    parcels = [config and parcel(RunFolder.of(config), reads=[track.path]) for track in tracks]
    if config is not None and any(sent is not None and sent.inputs for sent in parcels):
        with Progress("check", len(tracks), "songs") as progress:
            return run_tasks(
                _examine,
                calls,
                names=[str(track) for track in tracks],
                needs=Needs.of(config),
                parcels=parcels,
                on_done=lambda name, _: progress.advance(1, name),
            )
    with ThreadPoolExecutor(_THREADS) as pool:
        return list(pool.map(_examine, *zip(*calls, strict=True)))


def fault_lines(tracks: Sequence[Track], found: Sequence[Findings]) -> list[str]:
    """Return one line a fault, with the names of the tracks that have it in front."""
    return grouped(tracks, [findings.faults for findings in found])


def grouped(tracks: Sequence[Track], said: Sequence[Sequence[str]]) -> list[str]:
    """Return each line once, with the tracks of which it is said: five of them, and how many."""
    concerned: dict[str, list[str]] = {}
    for track, lines in zip(tracks, said, strict=True):
        for line in lines:
            concerned.setdefault(line, []).append(shown(str(track)))
    return [
        f"{', '.join(names[:5])}{f' and {len(names) - 5} more' if len(names) > 5 else ''}: {line}"
        for line, names in concerned.items()
    ]


def refuse_faults(tracks: Sequence[Track], found: Sequence[Findings]) -> None:
    """Raise one DataError that lists every fault, if there is any."""
    faults = fault_lines(tracks, found)
    if faults:
        count = f"{len(faults)} fault{'s' if len(faults) > 1 else ''} in the tracks"
        raise DataError(f"{count}:\n  " + "\n  ".join(faults))


def check_tracks(
    tracks: Sequence[Track], *, root: Path, config: RunConfig | None = None
) -> list[int]:
    """Return the samples of each track by its headers; no sample is looked at.

    Raises:
        DataError: lists every fault found.
    """
    found = examine_tracks(tracks, root=root, listen=lambda track: False, config=config)
    refuse_faults(tracks, found)
    return [findings.samples for findings in found]


def _headers(track: Track) -> Findings:
    faults = list(_name_faults(track))
    if faults:
        return Findings(faults)
    headers, faults = (_sound_headers if track.is_wav else _stem_mp4_headers)(track)
    found = fit(headers, track.lacks, track.wanted, in_one=not track.is_wav)
    faults += found.faults
    return Findings(faults, [] if faults else list(found.changes), found.samples)


def _name_faults(track: Track) -> Iterator[str]:
    try:
        track.name.encode()
    except UnicodeEncodeError:
        yield "its name is not valid UTF-8; rename it"
        return
    if not is_harmless(track.name) or "\\" in track.name:
        yield "its name holds a backslash or a control character; rename it"


def _sound_headers(track: Track) -> tuple[Headers, list[str]]:
    if not any(track.files):
        wanted = ", ".join(f"{column}.wav" for column in track.lacks)
        return {}, [f"no stem in this folder; allowed: {wanted}"]
    headers: dict[str, list[tuple[Path, Header]]] = {}
    faults = list(_lacking(track))
    for column, files in zip(track.columns, track.files, strict=True):
        if len(files) > 1 and track.layout == "songs":
            faults.append(f"{' and '.join(path.name for path in files)} are one stem; keep one")
            continue
        for file in files:
            if not file.is_file():
                lost = file.is_symlink() and not file.exists()
                what = "is a link to a file that is not there" if lost else "is missing"
                faults.append(f"{file.name} {what}")
                continue
            try:
                headers.setdefault(column, []).append((file, read_sound_header(file)))
            except AudioError as error:
                faults.append(f"{file.name} {error}")
    return headers, faults


def _lacking(track: Track) -> Iterator[str]:
    """Yield the stems that a song lacks, where that is a fault."""
    if track.wanted.missing_stems is None:
        for column in track.lacks:
            name = f"{column}.wav" if track.layout == "songs" else column
            does = "reads silence, skip leaves the song out"
            does = "(or skip) takes the sum of the sources" if column == MIXTURE else does
            yield f"{name} is missing; --missing_stems silence {does}"
    elif set(track.sources) <= set(track.lacks):
        yield f"none of its sources is there; allowed: one of {', '.join(track.sources)}"


def _stem_mp4_headers(track: Track) -> tuple[Headers, list[str]]:
    unknown = [source for source in track.sources if source not in STEM_MP4_STREAMS]
    if unknown:
        return {}, [
            f"has no stem {', '.join(unknown)}; .stem.mp4 has {', '.join(STEM_MP4_STREAMS)}"
        ]
    try:
        headers = read_stem_mp4_headers(track.path)
    except AudioError as error:
        return {}, [f"{track.path.name} {error}"]
    if len(headers) != len(STEM_MP4_STREAMS):
        wanted = f"{len(STEM_MP4_STREAMS)} ({', '.join(STEM_MP4_STREAMS)})"
        return {}, [f"{track.path.name} has {len(headers)} audio streams; allowed: {wanted}"]
    pairs = zip(STEM_MP4_STREAMS, headers, strict=True)
    return {name: [(track.path, header)] for name, header in pairs}, []


def _listen(track: Track, found: Findings) -> None:
    """Add what the samples tell: not finite, silent throughout, or so to who adds the channels."""
    to_the_end = track.is_wav and not all(is_pcm(file) for file in chain(*track.files))
    sounds = torch.zeros(len(track.columns), dtype=torch.bool)
    adds_up = torch.tensor([column in track.absent for column in track.columns])
    try:
        for block in audio_blocks(track, _BLOCK_SAMPLES):
            sounds |= block.flatten(1).any(dim=1)
            adds_up |= block.sum(dim=1).any(dim=1)
            if not to_the_end and bool(adds_up.all()):
                return
    except DataError as error:
        found.faults.append(str(error).removeprefix(f"{track}: "))
        return
    if not sounds.any():
        found.faults.append("every stem is silent throughout; allowed: a track that sounds")
        return
    for column, sound, mono in zip(track.columns, sounds, adds_up, strict=True):
        what = "has channels that add up to zero" if sound else "is silent"
        then = ": it gets no SDR there, only a leak" if column in track.sources else ""
        if not mono:
            found.notes.append(f"{column} {what} throughout{then}")
