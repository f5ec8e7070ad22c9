"""Scores of audio files: folders of references and estimates, and museval's JSON."""

from __future__ import annotations

import math
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np

from lasaft.audio import Samples, read_audio
from lasaft.errors import AudioError, DataError
from lasaft.files import atomic_write_json
from lasaft.metrics import METRICS, Scores, bss_eval

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


def museval_document(scores: Scores, names: Sequence[str]) -> dict[str, Any]:
    """Return scores in the JSON schema of museval 0.4.1: five digits, infinite as NaN.

    Args:
        scores: of one track.
        names: of its sources, in order.
    """
    columns = {metric: scores.metric(metric).tolist() for metric in METRICS}
    return {
        "museval_version": "0.4.1",
        "targets": [
            {
                "name": name,
                "frames": [
                    {
                        "time": index * scores.hop_seconds,
                        "duration": scores.window_seconds,
                        "metrics": {
                            metric: _rounded(columns[metric][row][index]) for metric in METRICS
                        },
                    }
                    for index in range(scores.sdr.shape[1])
                ],
            }
            for row, name in enumerate(names)
        ],
    }


def score_folders(
    references: Path, estimates: Path, output: Path
) -> Iterator[TrackScores | DataError | AudioError]:
    """Score every track of a folder and write ``output/<track>.json``; yield one after the other.

    A track is a folder of ``<source>.wav`` (or flac, mp3, ogg); ``references`` is one, or a folder
    of them. A track that cannot be scored is yielded as its error, and the others go on.

    Raises:
        DataError: there are no references, or no such folders.
    """
    for name, truth, estimate in _tracks(references, estimates):
        try:
            result = score_track(name, truth, estimate)
        except (DataError, AudioError) as error:
            yield error
            continue
        atomic_write_json(output / f"{name}.json", museval_document(result.scores, result.names))
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
    truth = {path: read_audio(path) for path in files.values()}
    (first, (audio, rate)), *others = truth.items()
    for path, (other, other_rate) in others:
        _check_alike(path, (other, other_rate), first, (audio, rate))
        if other.shape != audio.shape:
            raise DataError(
                f"{path}: has {other.shape[1]} samples, {first} has {audio.shape[1]}: references "
                "of one track must be of one length"
            )
    notes: list[str] = []
    guess = []
    for name in files:
        estimate, estimate_rate = read_audio(found[name])
        _check_alike(found[name], (estimate, estimate_rate), first, (audio, rate))
        guess.append(_fitted(found[name], estimate, audio.shape[1], notes))
    try:
        scores = bss_eval([audio for audio, _ in truth.values()], guess, sample_rate=rate)
    except AudioError as error:
        raise AudioError(f"{track}: {error} (sources in order: {', '.join(files)})") from error
    return TrackScores(track, tuple(files), scores, tuple(notes))


def medians(tracks: Sequence[TrackScores]) -> dict[str, dict[str, dict[str, float | None]]]:
    """Return track -> source -> metric -> median over frames in dB (None: no finite frame).

    Of several tracks a last entry, ``median``, has the medians over the tracks.
    """
    table = {
        track.track: {
            name: {metric: _finite(track.scores.median(metric)[row]) for metric in METRICS}
            for row, name in enumerate(track.names)
        }
        for track in tracks
    }
    if len(tracks) > 1:
        names = dict.fromkeys(name for sources in table.values() for name in sources)
        rows = {name: [row[name] for row in table.values() if name in row] for name in names}
        table["median"] = {
            name: {metric: _median([row[metric] for row in rows[name]]) for metric in METRICS}
            for name in names
        }
    return table


def _median(values: list[float | None]) -> float | None:
    known = [value for value in values if value is not None]
    return _finite(np.median(known)) if known else None


def _finite(value: float) -> float | None:
    return float(value) if math.isfinite(value) else None


def _rounded(value: float) -> float:
    return round(value, 5) if math.isfinite(value) else math.nan


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


def _tracks(references: Path, estimates: Path) -> list[tuple[str, Path, Path]]:
    for folder in (references, estimates):
        if not folder.is_dir():
            raise DataError(f"{folder}: there is no such folder")
    if _sources(references):
        return [(references.resolve().name, references, estimates)]
    tracks = [folder for folder in sorted(references.iterdir()) if folder.is_dir()]
    found = [(path.name, path, estimates / path.name) for path in tracks if _sources(path)]
    if not found:
        raise DataError(
            f"{references}: holds no references, neither <source>.wav nor <track>/<source>.wav "
            f"({', '.join(ENDINGS)})"
        )
    return found
