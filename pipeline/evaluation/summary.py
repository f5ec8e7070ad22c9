"""The summary of one system's scores: its identity, its figures, and how they are defined."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Annotated, Any, Literal

from pydantic import BaseModel, BeforeValidator, ConfigDict, Field, ValidationError

from lasaft.errors import DataError
from lasaft.files import atomic_write_json, file_sha256, read_steadily
from lasaft.metrics.museval_format import LIMIT_DB
from pipeline.config.fingerprints import digest
from pipeline.evaluation.score_files import ALL_METRICS, LEAK, METRICS, UNITLESS, WHOLE_METRICS

METRIC = "BSS Eval v4 (museval 0.4.1 numbers)"
AGGREGATION = "median of frames, median of tracks"
# Interference and artifacts depend on what else was scored; the other metrics do not.
AGAINST_OTHERS = ("SIR", "SAR", "SI-SAR")
Scenario = Literal["sources", "target_rest", "vocals_accompaniment"]
SCENARIOS: dict[str, str] = {
    "sources": (
        "All scored sources of a track are scored against each other, as museval does where no "
        "accompaniment is supplied."
    ),
    "target_rest": (
        "Each source is scored against the sum of all others, as museval scores vocals against an "
        "accompaniment. A frame is without a number where the source or that sum is silent, not "
        "where any source is; SDR and ISR are the same as among all sources, SIR and SAR are not."
    ),
    "vocals_accompaniment": (
        "Vocals and accompaniment (the sum of all other sources) are scored against each other, "
        "the other sources with the vocals among them, as museval does where an accompaniment is "
        "supplied: in each frame SDR and ISR of the vocals are the same, their SIR and SAR are "
        "not, and fewer frames are without a number."
    ),
}
_DEFINITIONS = {
    "metric": (
        "SDR (all distortion), ISR (spatial image), SIR (interference from other sources) and SAR "
        "(artifacts) are BSS Eval v4, in dB, higher is better. Distortion filters of 512 taps over "
        "the whole track. The median SDR is what others call chunk-level SDR (cSDR)."
    ),
    "uSDR": (
        "10 log10((sum s^2 + 1e-7) / (sum (s - e)^2 + 1e-7)) over all samples and channels of a "
        "song: the MDX challenges' SDR, which Demucs calls nSDR, and, with 1e-8, the SDR of "
        "Music-Source-Separation-Training. They take its mean over songs."
    ),
    "SI-SDR": (
        "10 log10(|a s|^2 / |a s - e|^2) with a = <e, s> / |s|^2 over all samples and channels of "
        "a song, means kept (Le Roux et al. 2019)."
    ),
    "SI-SAR": (
        "10 log10(|a s|^2 / |e - p|^2) with p the sum of all sources, each with its own gain, that "
        "is closest to e (Le Roux et al. 2019). Listeners' ratings of drums and bass follow it "
        "better than SDR, those of vocals follow SDR (Jaffe and Burgoyne 2025)."
    ),
    "logWMSE": (
        "-4 ln(E + 1e-8), E the energy of e - s over that of the mixture, both weighted as ears "
        "hear; the mean over channels (torch-log-wmse). No dB; 73.7 is the most."
    ),
    "bleedless": (
        "100 / (1 + d), d the mean of the level differences e - s in dB above zero, over 512 mel "
        "bands and all frames: how little else is heard (Music-Source-Separation-Training). No dB."
    ),
    "fullness": (
        "100 / (1 + d), d the mean of the level differences s - e in dB above zero, as for "
        "bleedless: how little is missing. No dB."
    ),
    LEAK: (
        "10 log10((sum x^2 + 1e-7) / (sum e^2 + 1e-7)) over all samples and channels of a song in "
        "which the source is silent throughout: how far its estimate e lies below the mixture x. "
        "Nothing else is scored there."
    ),
    "frames": (
        "A track is scored in frames of 1 s, one after the other. Where a reference or an estimate "
        "is silent in a frame, museval has no number (NaN) for any source there; infinite scores "
        "are NaN in its files too. NaN frames are counted and left out. A source whose channels "
        "add up to zero throughout a song is NaN there, and the others are scored among themselves."
    ),
    "median": (
        "Median over the frames of a track that are numbers, then median over tracks "
        "(museval's default, SiSEC 2018); of metrics of whole songs the median over tracks."
    ),
    "mean": (
        "Median over the frames of a track that are numbers, then arithmetic mean over tracks; of "
        "metrics of whole songs the mean over tracks."
    ),
    "average": "Arithmetic mean of the figures of the sources (without an accompaniment).",
}


_SETS = (
    " A set of sources is scored as one source, their sum, against the sum of all others: errors "
    "that its sources make against each other count for nothing. It is in no average."
)


def definitions(scenario: Scenario, *, sets: bool = False) -> dict[str, str]:
    """Return what the figures of a summary mean, in sentences; ``sets``: some are of sets."""
    return {**_DEFINITIONS, "scenario": SCENARIOS[scenario] + (_SETS if sets else "")}


def aggregation_of(metric: str, over_tracks: str) -> str:
    """Return how a figure comes from frames and tracks.

    >>> aggregation_of("uSDR", "mean")
    'whole songs, mean of tracks'
    """
    within = "median of frames" if metric in METRICS else "whole songs"
    return f"{within}, {over_tracks} of tracks"


def unit(metric: str) -> str:
    """Return what stands behind a metric's name: its unit, if it has one."""
    return "" if metric in UNITLESS else " in dB"


def usual_aggregation(metric: str) -> Literal["median", "mean"]:
    """Return how a metric is usually taken over tracks where one figure is quoted."""
    return "mean" if metric in WHOLE_METRICS else "median"


# Above it a score says that nothing is left to measure but rounding (the mixture has no artifacts):
# tables show "> 100" and no difference to it.
LARGEST_DB = 100.0

Kind = Literal["model", "mixture", "irm", "ibm", "oracle", "estimates", "scores"]
Decibels = Annotated[float, Field(ge=-LIMIT_DB, le=LIMIT_DB)]

_SEAL = "sha256"
_AGAIN = "run jobs.evaluate again"


class _Record(BaseModel):
    model_config = ConfigDict(strict=True, frozen=True, extra="forbid")


def _filled(none: Any) -> BeforeValidator:
    """Give a table of metrics ``none`` for each that it is older than."""

    def fill(row: Any) -> Any:
        return {**dict.fromkeys(ALL_METRICS, none), **row} if isinstance(row, dict) else row

    return BeforeValidator(fill)


class Figure(_Record):
    """One score over all tracks in dB, aggregated in two ways (None: every frame is NaN)."""

    median: Decibels | None
    mean: Decibels | None


Row = Annotated[dict[str, Decibels | None], _filled(None)]
Figures = Annotated[dict[str, Figure], _filled(Figure(median=None, mean=None))]


class TrackSummary(_Record):
    """One track: its score file, and one figure for each source and metric in dB.

    Of SDR, ISR, SIR and SAR it is the median over frames; the others are of the whole song.
    """

    name: str
    file: str
    sha256: str
    frames: int
    nan_frames: dict[str, int]
    scores: dict[str, Row]


class System(_Record):
    """What made the estimates.

    ``recipe`` names everything that made a trained network but its seed: runs that share it are
    repetitions of each other. ``config`` is what it was trained with.
    """

    kind: Kind
    checkpoint: str | None = None
    variant: str | None = None
    recipe: str | None = None
    seed: int | None = None
    config: dict[str, Any] | None = None
    provenance: dict[str, Any] = Field(default_factory=dict)
    settings: dict[str, Any] = Field(default_factory=dict)


class DataIdentity(_Record):
    """The songs that were scored: ``hash`` names their content, ``complete`` the whole set."""

    name: str
    kind: Literal["synthetic", "MUSDB18", "MUSDB18-HQ", "own"]
    split: str
    hash: str
    complete: bool = False

    @property
    def comparable(self) -> bool:
        """Whether these are the songs that published MUSDB18 figures are about."""
        return self.kind in ("MUSDB18", "MUSDB18-HQ") and self.split == "test" and self.complete


class Summary(_Record):
    """All that a leaderboard needs to know about one system: ``scores/<name>/summary.json``.

    ``tracks`` are those that were scored; ``failed`` says of each other song why it was not.
    """

    format: Literal[2] = 2
    name: str
    system: System
    data: DataIdentity
    metric: str = METRIC
    aggregation: str = AGGREGATION
    scenario: Scenario = "sources"
    definitions: dict[str, str]
    sources: list[str]
    scores: dict[str, Figures]
    average: Figures
    frames: int
    nan_frames: dict[str, int]
    verified: list[dict[str, Any]] = Field(default_factory=list)
    command: str = ""
    tracks: list[TrackSummary]
    failed: dict[str, str] = Field(default_factory=dict)

    @property
    def songs(self) -> str:
        """How many songs the figures are about, and of how many."""
        scored, failed = len(self.tracks), len(self.failed)
        count = f"{scored} of {scored + failed}" if failed else str(scored)
        return f"{count} track{'' if scored + failed == 1 else 's'}"

    def is_beside(self, other: Summary) -> bool:
        """Return whether the figures are about the same songs as the other's."""
        return self.data == other.data and self.failed.keys() == other.failed.keys()

    @property
    def metrics(self) -> dict[str, float]:
        """Figures for a tracker: ``test/vocals/SDR``, ``test/average/SDR``.

        Medians over tracks; of metrics of whole songs the means. ``test/tracks`` and
        ``test/failed`` are how many were scored, and how many not.
        """
        found: dict[str, float] = {"tracks": len(self.tracks), "failed": len(self.failed)}
        for source, figures in (*self.scores.items(), ("average", self.average)):
            for metric, figure in figures.items():
                value = getattr(figure, usual_aggregation(metric))
                if value is not None:
                    found[f"{source}/{metric}"] = value
        return {f"{self.data.split}/{name}": value for name, value in found.items()}

    def column(self, source: str, metric: str) -> dict[str, float | None]:
        """Return the figure of each track."""
        return {track.name: track.scores[source][metric] for track in self.tracks}

    def count(self, source: str, metric: str) -> int:
        """Return how many tracks have a number."""
        return sum(value is not None for value in self.column(source, metric).values())


def write_summary(path: Path, summary: Summary) -> None:
    """Write a ``summary.json``, with a hash of all else that is in it."""
    content = summary.model_dump(mode="json")
    atomic_write_json(path, content | {_SEAL: digest(content)})


def read_summary(path: Path) -> Summary:
    """Read a ``summary.json``.

    Raises:
        DataError: it is missing, changed, or no whole summary of a format that we know.
    """
    try:
        content = json.loads(read_steadily(path))
        seal = content.pop(_SEAL, None) if isinstance(content, dict) else None
        same = seal in (None, digest(content))  # earlier versions wrote no seal
        summary = Summary.model_validate_json(json.dumps(content))
    except OSError as error:
        raise DataError(f"{path}: cannot read this summary ({error.strerror})") from error
    except (ValueError, RecursionError) as error:
        what = str(error)
        if isinstance(error, ValidationError):
            first = error.errors(include_url=False)[0]
            where = ".".join(str(part) for part in first["loc"]) or "the file"
            what = f"{where}: {first['msg']}"
        raise DataError(f"{path}: not a summary of scores ({what}); {_AGAIN}") from error
    if not same:
        raise DataError(f"{path}: was changed after it was written; {_AGAIN}")
    return summary


def require_scores(path: Path, summary: Summary) -> None:
    """Make sure that the score files beside the summary ``path`` are those that it is about.

    Raises:
        DataError: one is missing, or was changed.
    """
    for track in summary.tracks:
        file = path.parent / track.file
        if not file.is_file():
            raise DataError(f"{file}: is missing, but {path.name} is about it; {_AGAIN}")
        if file_sha256(file) != track.sha256:
            raise DataError(f"{file}: not the scores that {path.name} is about; {_AGAIN}")
