"""Scores of audio files: folders of references and estimates, and museval's JSON."""

from __future__ import annotations

import math
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path

import numpy as np

from lasaft.audio import AudioReader, Samples
from lasaft.errors import AudioError, DataError
from lasaft.files import atomic_write_bytes, link_on_the_way
from lasaft.metrics import METRICS, Scores, bss_eval, museval_json

ENDINGS = (".wav", ".flac", ".mp3", ".ogg")
# In a folder of references this is no source: MUSDB18 keeps it beside them.
_MIXTURE = "mixture"


@dataclass(frozen=True)
class TrackScores:
    """The scores of one track, sources in the order of ``names``; ``notes``: what was changed."""

    track: str
    names: tuple[str, ...]
    scores: Scores
    notes: tuple[str, ...]


def score_folders(
    references: Path, estimates: Path, output: Path
) -> Iterator[TrackScores | DataError | AudioError]:
    """Score every track of a folder and write ``output/<track>.json``; yield one after the other.

    A track is a folder of ``<source>.wav`` (or flac, mp3, ogg); ``references`` is one, or a folder
    of them, or of splits (train, test) with them, as museval's tools have it. A track that cannot
    be scored is yielded as its error, and the others go on.

    Raises:
        DataError: there are no references, or no such folders.
    """
    for name, truth, estimate in _tracks(references, estimates):
        try:
            result = score_track(name, truth, estimate)
        except (DataError, AudioError) as error:
            yield error
            continue
        text = museval_json(result.scores, result.names)
        file = output / f"{name}.json"
        if (link := link_on_the_way(file.parent, output)) is not None:
            raise DataError(f"{link}: is a link, and nothing is written where a link leads")
        atomic_write_bytes(file, text.encode())
        yield result


def score_track(track: str, references: Path, estimates: Path) -> TrackScores:
    """Score the estimates of one track; longer ones are cut, shorter ones end in silence.

    Args:
        track: its name.
        references: folder with one file a source; ``mixture`` is no source.
        estimates: folder with a file of each of those names; others are left out.

    Raises:
        DataError: an estimate is missing, or files differ in sample rate or channels.
        AudioError: a file cannot be read, or is silent throughout.
    """
    files = _sources(references)
    found = _sources(estimates) if estimates.is_dir() else {}
    missing = [name for name in files if name not in found]
    if missing:
        raise DataError(f"{estimates}: has no estimate of {', '.join(missing)}")
    notes: list[str] = []
    truth = {path: _read(path, notes) for path in files.values()}
    (first, (audio, rate)), *others = truth.items()
    for path, (other, other_rate) in others:
        _check_alike(path, (other, other_rate), first, (audio, rate))
        if other.shape != audio.shape:
            raise DataError(
                f"{path}: has {other.shape[1]} samples, {first} has {audio.shape[1]}: references "
                "of one track must be of one length"
            )
    guess = []
    for name in files:
        estimate, estimate_rate = _read(found[name], notes)
        _check_alike(found[name], (estimate, estimate_rate), first, (audio, rate))
        guess.append(_fitted(found[name], estimate, audio.shape[1], notes))
    try:
        scores = bss_eval([audio for audio, _ in truth.values()], guess, sample_rate=rate)
    except AudioError as error:
        raise AudioError(f"{track}: {error} (sources in order: {', '.join(files)})") from error
    return TrackScores(track, tuple(files), scores, tuple(notes))


def medians(tracks: Sequence[TrackScores]) -> dict[str, dict[str, dict[str, float | None]]]:
    """Return track -> source -> metric -> median over frames in dB (None: no finite frame).

    With each source's metrics stand ``frames``, their number, and ``nan``, how many of them have
    no SDR. Of several tracks a last entry, ``median``, has the medians over the tracks and the
    sums of frames.
    """
    table = {
        track.track: {name: _figures(track.scores, row) for row, name in enumerate(track.names)}
        for track in tracks
    }
    if len(tracks) > 1:
        names = dict.fromkeys(name for sources in table.values() for name in sources)
        rows = {name: [row[name] for row in table.values() if name in row] for name in names}
        table["median"] = {name: _over_tracks(rows[name]) for name in names}
    return table


def _figures(scores: Scores, row: int) -> dict[str, float | None]:
    medians: dict[str, float | None] = {m: _finite(scores.median(m)[row]) for m in METRICS}
    return {**medians, "frames": scores.sdr.shape[1], "nan": int(np.isnan(scores.sdr[row]).sum())}


def _over_tracks(rows: list[dict[str, float | None]]) -> dict[str, float | None]:
    sums = {name: sum(row[name] or 0 for row in rows) for name in ("frames", "nan")}
    return {**{metric: _median([row[metric] for row in rows]) for metric in METRICS}, **sums}


def _median(values: list[float | None]) -> float | None:
    known = [value for value in values if value is not None]
    return _finite(np.median(known)) if known else None


def _finite(value: float) -> float | None:
    return float(value) if math.isfinite(value) else None


def _read(path: Path, notes: list[str]) -> tuple[Samples, int]:
    """Return a file as (float32 [channel, sample], sample rate in Hz); note what it lacks."""
    with AudioReader(path) as reader:
        audio = reader.whole()
    if reader.note:
        notes.append(f"{path}: {reader.note}")
    return audio, reader.sample_rate


def _check_alike(
    path: Path, own: tuple[Samples, int], first: Path, like: tuple[Samples, int]
) -> None:
    if own[1] != like[1]:
        raise DataError(f"{path}: has a sample rate of {own[1]} Hz, {first} has {like[1]} Hz")
    if len(own[0]) != len(like[0]):
        raise DataError(f"{path}: has {len(own[0])} channels, {first} has {len(like[0])}")


def _fitted(path: Path, audio: Samples, wanted: int, notes: list[str]) -> Samples:
    """Cut ``audio`` or continue it with silence, as museval does, and note it."""
    length = audio.shape[1]
    if length != wanted:
        change = "cut" if length > wanted else "continued with silence"
        notes.append(f"{path}: has {length} samples instead of {wanted}, was {change}")
    return np.pad(audio[:, :wanted], ((0, 0), (0, max(0, wanted - length))))


def _sources(folder: Path) -> dict[str, Path]:
    files = {
        path.stem: path
        for path in sorted(folder.iterdir())
        if path.suffix.lower() in ENDINGS and path.is_file() and not path.name.startswith(".")
    }
    files.pop(_MIXTURE, None)
    return files


def _folders(folder: Path) -> list[Path]:
    return [path for path in sorted(folder.iterdir()) if path.is_dir()]


def _tracks(references: Path, estimates: Path) -> list[tuple[str, Path, Path]]:
    for folder in (references, estimates):
        if not folder.is_dir():
            raise DataError(f"{folder}: there is no such folder")
    if _sources(references):
        return [(references.resolve().name, references, estimates)]
    found = []
    for folder in _folders(references):
        # A track, or a split such as museval's train and test.
        for track in [folder] if _sources(folder) else _folders(folder):
            if _sources(track):
                name = track.relative_to(references)
                found.append((name.as_posix(), track, estimates / name))
    if not found:
        raise DataError(
            f"{references}: holds no references, neither <source>.wav nor <track>/<source>.wav "
            f"nor <split>/<track>/<source>.wav ({', '.join(ENDINGS)})"
        )
    return found
