"""Scores of another system from its museval files alone: checked, taken over, summarised."""

from __future__ import annotations

import hashlib
from collections.abc import Mapping, Sequence
from contextlib import suppress
from pathlib import Path

from lasaft.errors import ConfigError, DataError
from lasaft.files import atomic_write_bytes, file_sha256, read_steadily
from pipeline.config import RunConfig
from pipeline.config.command_line import command_line, evaluation_settings
from pipeline.config.folders import RunFolder
from pipeline.evaluation.aggregate import summarise, summarise_track
from pipeline.evaluation.data_identity import is_whole_test_set
from pipeline.evaluation.scenarios import ACCOMPANIMENT
from pipeline.evaluation.score_files import FrameScores, file_names, read_scores, write_key
from pipeline.evaluation.score_track import SystemJob
from pipeline.evaluation.summary import (
    DataIdentity,
    Kind,
    Scenario,
    Summary,
    System,
    read_summary,
    write_summary,
)
from pipeline.evaluation.systems import require_free_name

_SHOWN = 10
_BY_NAMES = "known by the names of the score files alone"
_KINDS: dict[str, Kind] = {"system": "scores", "oracle": "oracle", "mixture": "mixture"}


def adopt_scores(config: RunConfig) -> tuple[Summary, list[Path]]:
    """Take the scores in ``scores_dir`` over into the run's folder, as one more system.

    The files are ``<split>/<track>.json`` as museval writes them. Where the run has scores of its
    own, the files must be about the same songs: the same names, and as many frames of each (or one
    more or less: tools differ in whether they score the last). A folder that an evaluation of ours
    made keeps what its summary says about the system.

    Returns:
        The summary, and the files that were written.

    Raises:
        DataError: a file is damaged, misnamed or missing, or is about another song.
        ConfigError: the system's name is taken, or the run's other scores are of other songs than
            is declared.
    """
    place = RunFolder.of(config).given["scores_dir"]
    split = config.evaluate.split
    scores = _read_all(place, split)
    origin = _own_summary(place, scores)
    name = config.tracking.run_id or (origin.name if origin else place.name)
    file = file_names([name])[name]
    folder = RunFolder.of(config).scores / file
    require_free_name(config, SystemJob(name, file, "scores", place, {}))
    known = origin or _known(RunFolder.of(config).scores, split, but=file)
    paths, songs = _match(scores, known)
    data = _data(config, known, songs)
    (folder / "summary.json").unlink(missing_ok=True)
    written = _write(folder, split, paths, known)
    records = [
        summarise_track(track, f"{split}/{path.name}", file_sha256(path), songs[track])
        for track, path in written.items()
    ]
    songs_are = _BY_NAMES
    if known is not None:
        songs_are = f"matched with those of {known.name} by name and number of frames"
    kind = _KINDS[config.evaluate.scores_kind]
    system = origin.system if origin else System(kind=kind, settings={"songs": songs_are})
    sources = next(iter(songs.values())).sources
    command = command_line("evaluate", evaluation_settings(config))
    summary = summarise(
        name, system, data, records, scenario=_scenario(sources, origin), command=command
    )
    failed = (
        {name: why for name, why in origin.failed.items() if name not in songs} if origin else {}
    )
    summary = summary.model_copy(update={"failed": failed})
    write_summary(folder / "summary.json", summary)
    return summary, [folder / "summary.json", *written.values()]


def _read_all(place: Path, split: str) -> dict[Path, FrameScores]:
    """Read every score file; all that cannot be read are named at once."""
    folder = place / split if (place / split).is_dir() else place
    files = sorted(f for f in folder.glob("*.json") if f.name != "summary.json")
    if not files:
        raise DataError(f"{place}: no scores in it; allowed: {split}/<track>.json of museval")
    found: dict[Path, FrameScores] = {}
    problems: list[str] = []
    for file in files:
        try:
            found[file] = read_scores(file)
        except DataError as error:
            problems.append(str(error))
    _refuse(problems)
    return found


def _refuse(problems: Sequence[str]) -> None:
    if problems:
        more = len(problems) - _SHOWN
        lines = [*problems[:_SHOWN], *([f"and {more} more"] if more > 0 else [])]
        raise DataError("\n".join(lines))


def _own_summary(place: Path, scores: Mapping[Path, FrameScores]) -> Summary | None:
    """Return the summary beside scores that an evaluation of ours made; None if there is none."""
    if not (place / "summary.json").is_file():
        return None
    summary = read_summary(place / "summary.json")
    hashes = {track.sha256 for track in summary.tracks}
    _refuse(
        [
            f"{file}: not the scores that {place / 'summary.json'} is about; evaluate again, or "
            "leave that summary out"
            for file in scores
            if file_sha256(file) not in hashes
        ]
    )
    return summary


def _known(scores: Path, split: str, but: str) -> Summary | None:
    """Return a summary of the run's own, whose songs the others must be about.

    Of those that were taken over themselves, the first one: others may differ from it by a frame,
    and none by more.
    """
    found: list[Summary] = []
    for file in sorted(scores.glob("*/summary.json")):
        with suppress(DataError):  # one of another format says nothing about songs
            summary = read_summary(file)
            if file.parent.name != but and summary.data.split == split:
                found.append(summary)
    order = ("", _BY_NAMES)  # what it says of its songs; an evaluation says nothing
    found.sort(key=lambda one: one.system.settings.get("songs", "") not in order)
    return found[0] if found else None


def _match(
    scores: Mapping[Path, FrameScores], known: Summary | None
) -> tuple[dict[str, Path], dict[str, FrameScores]]:
    """Return the file and the scores of each track, by its name."""
    if known is None:
        paths = {file.stem: file for file in scores}
        return paths, {file.stem: found for file, found in scores.items()}
    # Songs that failed there have no frames to compare, and need no scores here.
    frames = {track.name: track.frames for track in known.tracks} | dict.fromkeys(known.failed)
    of_file = {stem: name for name, stem in file_names(list(frames)).items()}
    of_file |= {name: name for name in frames}
    of_file |= {Path(track.file).stem: track.name for track in known.tracks}
    problems: list[str] = []
    paths: dict[str, Path] = {}
    for file, found in scores.items():
        track = of_file.get(file.stem)
        if track is None:
            problems.append(
                f"{file}: no scored song is called {file.stem!r}; allowed: the name of a track of "
                f"{known.name}"
            )
            continue
        paths[track] = file
        if abs(found.frames - (frames[track] or found.frames)) > 1:
            problems.append(
                f"{file}: {found.frames} frames, but {track!r} has {frames[track]}; "
                "allowed: scores of the same song, in frames of 1 s, the last of which may lack"
            )
    missing = [track.name for track in known.tracks if track.name not in paths]
    if missing:
        folder = next(iter(scores)).parent
        shown = ", ".join(map(repr, missing[:_SHOWN]))
        problems.append(
            f"{folder}: no scores of {shown} ({len(missing)} of {len(known.tracks)} songs); "
            "allowed: a file for every song"
        )
    _refuse(problems)
    ordered = {name: paths[name] for name in frames if name in paths}
    return ordered, {name: _in_order(scores[path], known) for name, path in ordered.items()}


def _in_order(scores: FrameScores, known: Summary) -> FrameScores:
    """Return the same scores with the sources in the order of the board."""
    names = [s for s in known.sources if s in scores.sources]
    names += [s for s in scores.sources if s not in names]
    return FrameScores({name: scores.values[name] for name in names}, scores.whole)


def _data(
    config: RunConfig, known: Summary | None, songs: Mapping[str, FrameScores]
) -> DataIdentity:
    """Return what the songs are: as the run's other scores say, as is declared, or their names."""
    declared, split = config.evaluate.scores_data, config.evaluate.split
    if known is not None and declared not in (None, known.data.kind):
        found = f"got {declared}, but {known.name} is about {known.data.name}"
        raise ConfigError(f"scores_data: {found}; leave it out, or take another output_dir")
    if known is not None:
        return known.data
    text = "".join(f"{found.frames} {name}\n" for name, found in sorted(songs.items()))
    digest = hashlib.sha256(text.encode(errors="surrogateescape")).hexdigest()
    if declared is None:
        name = f"Songs named in {RunFolder.of(config).given['scores_dir'].name}"
        return DataIdentity(name=name, kind="own", split=split, hash=digest)
    whole = is_whole_test_set(split, len(songs), sum(found.frames for found in songs.values()))
    name = f"{declared} (declared)"
    return DataIdentity(name=name, kind=declared, split=split, hash=digest, complete=whole)


def _scenario(sources: Sequence[str], origin: Summary | None) -> Scenario:
    if origin is not None:
        return origin.scenario
    if ACCOMPANIMENT in sources:
        return "vocals_accompaniment"
    return "sources" if len(sources) > 1 else "target_rest"


def _write(
    folder: Path, split: str, paths: Mapping[str, Path], known: Summary | None
) -> dict[str, Path]:
    """Copy the files as they are, with a key each; files of other songs go."""
    names = file_names(list(paths))
    if known is not None:
        names |= {track.name: Path(track.file).stem for track in known.tracks}
    written: dict[str, Path] = {}
    for track, path in paths.items():
        content = read_steadily(path)
        written[track] = folder / split / f"{names[track]}.json"
        atomic_write_bytes(written[track], content)
        digest = hashlib.sha256(content).hexdigest()
        key = folder / "keys" / split / f"{names[track]}.json"
        write_key(key, {"scores": digest}, {"sha256": digest})
    for old in (folder / split).glob("*.json"):
        if old not in written.values():
            old.unlink()
            (folder / "keys" / split / old.name).unlink(missing_ok=True)
    return written
