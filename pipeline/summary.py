"""The summary of one system's scores: its identity, its figures, and how they are defined."""

from __future__ import annotations

from pathlib import Path
from typing import Any, Literal

from pydantic import BaseModel, ConfigDict, Field, ValidationError

from lasaft.errors import DataError

METRIC = "BSS Eval v4 (museval 0.4.1 numbers)"
AGGREGATION = "median of frames, median of tracks"
DEFINITIONS = {
    "metric": (
        "BSS Eval v4, in dB, higher is better: SDR (all distortion), ISR (spatial image), "
        "SIR (interference from other sources), SAR (artifacts). Distortion filters of 512 taps "
        "over the whole track; all sources of a track are scored together, without a separate "
        "vocals-against-accompaniment scenario."
    ),
    "frames": (
        "A track is scored in frames of 1 s, one after the other. Where a reference or an estimate "
        "is silent in a frame, museval has no number (NaN) for any source there; infinite scores "
        "are NaN in its files too. NaN frames are counted and left out."
    ),
    "median": (
        "Median over the frames of a track that are numbers, then median over tracks "
        "(museval's default, SiSEC 2018)."
    ),
    "mean": (
        "Median over the frames of a track that are numbers, then arithmetic mean over tracks."
    ),
    "average": "Arithmetic mean of the figures of the sources.",
}

# Above it a score says that nothing is left to measure but rounding (the mixture has no artifacts):
# tables show "> 100" and no difference to it.
LARGEST_DB = 100.0

Kind = Literal["model", "mixture", "irm", "ibm", "estimates"]
Table = dict[str, dict[str, float | None]]


class _Record(BaseModel):
    model_config = ConfigDict(strict=True, frozen=True, extra="forbid")


class Figure(_Record):
    """One score over all tracks in dB, aggregated in two ways (None: every frame is NaN)."""

    median: float | None
    mean: float | None


class TrackSummary(_Record):
    """One track: its name, its score file, and the medians over its frames in dB."""

    name: str
    file: str
    sha256: str
    frames: int
    nan_frames: dict[str, int]
    medians: Table


class System(_Record):
    """What made the estimates."""

    kind: Kind
    checkpoint: str | None = None
    variant: str | None = None
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
    """All that a leaderboard needs to know about one system: ``scores/<name>/summary.json``."""

    format: Literal[1] = 1
    name: str
    system: System
    data: DataIdentity
    metric: str = METRIC
    aggregation: str = AGGREGATION
    definitions: dict[str, str] = Field(default_factory=lambda: dict(DEFINITIONS))
    sources: list[str]
    scores: dict[str, dict[str, Figure]]
    average: dict[str, Figure]
    frames: int
    nan_frames: dict[str, int]
    verified: list[dict[str, Any]] = Field(default_factory=list)
    tracks: list[TrackSummary]

    def column(self, source: str, metric: str) -> dict[str, float | None]:
        """Return the median over frames for each track."""
        return {track.name: track.medians[source][metric] for track in self.tracks}


def read_summary(path: Path) -> Summary:
    """Read a ``summary.json``.

    Raises:
        DataError: it is missing, or no whole summary of a format that we know.
    """
    try:
        return Summary.model_validate_json(path.read_text(encoding="utf-8"))
    except OSError as error:
        raise DataError(f"{path}: cannot read this summary ({error.strerror})") from error
    except ValidationError as error:
        first = error.errors(include_url=False)[0]
        where = ".".join(str(part) for part in first["loc"]) or "the file"
        raise DataError(
            f"{path}: not a summary of scores ({where}: {first['msg']}); run jobs.evaluate again"
        ) from error
