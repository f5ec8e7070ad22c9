"""A small stored result of each stage: whoever changes what a stage makes must raise its VERSION.

To store the results of today, after a VERSION was raised: ``LASAFT_STORE_RESULTS=1 python -m pytest
tests/workflow/test_versions.py``.
"""

from __future__ import annotations

import hashlib
import json
import math
import os
import re
import shutil
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow as pa
import pytest
import soundfile
import torch

from pipeline import evaluation, report, search, training
from pipeline.config import RunConfig
from pipeline.config.folders import RunFolder
from pipeline.data import shards, synthetic
from pipeline.data.songs.tracks import list_tracks
from pipeline.data.songs.wanted import Wanted
from pipeline.data.synthetic.writer import SongSet, begin_songs, write_song
from pipeline.evaluation.score_track import SystemJob, TrackJob, score_track
from pipeline.report.build import write_report
from pipeline.search.candidates import Checker, trial_base
from pipeline.search.proposals import propose_random
from pipeline.search.ranking import conclude
from pipeline.search.space_reader import read_space
from pipeline.search.trials import TrialBook
from pipeline.training.loop.worker import run_session
from tests.helpers import ROOT
from tests.helpers.runs import config_of, unpack
from tests.helpers.shards import make_shards

_SOURCES = ("vocals", "drums", "bass", "other")
_STORED = ROOT / "tests" / "workflow" / "stored" / "results.json"


@pytest.fixture(scope="module")
def runs(tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("runs")
    unpack(folder)
    return folder


def _fresh(runs: Path, name: str) -> RunConfig:
    """Return the settings of a run on the stored songs whose folder is new."""
    return config_of(runs, "finished").model_copy(update={"output_dir": runs / f"new-{name}"})


def _songs(runs: Path) -> Any:
    songs = SongSet(train=1, valid=0, test=0, seconds=2.0, seed=5)
    entries = begin_songs(runs / "new-songs", songs)
    place = write_song(runs / "new-songs", songs, entries[0])
    return {file.name: _levels(soundfile.read(file)[0]) for file in sorted(place.iterdir())}


def _preprocess(runs: Path) -> Any:
    config = _fresh(runs, "shards")
    manifest = make_shards(config)
    result: dict[str, Any] = {"settings": manifest.settings.model_dump(exclude={"format"})}
    for track in manifest.tracks:
        for shard in track.shards:
            with pa.memory_map(str(RunFolder.of(config).shards / shard.path)) as file:
                table = pa.ipc.open_file(file).read_all()
            for name in table.column_names:
                column = table[name].combine_chunks().storage.flatten()
                values = np.asarray(column).astype(np.float64)
                result[f"{shard.path} {name}"] = [len(values), *_levels(values)]
    return result


def _levels(wave: np.ndarray) -> list[float]:
    """Return what tells signals apart: mean square, and the sum under a window that moves."""
    flat = np.asarray(wave, np.float64).ravel()
    return [float(np.mean(flat**2)), float(np.mean(np.abs(flat) * np.linspace(0, 1, len(flat))))]


def _train(runs: Path) -> Any:
    config = _fresh(runs, "training")
    shutil.copytree(runs / "finished" / "shards", RunFolder.of(config).shards)
    run_session(config, torch.device("cpu"))
    records = map(json.loads, RunFolder.of(config).metrics.read_text().splitlines())
    kept = ("train/", "valid/loss")
    return [
        {name: value for name, value in record["values"].items() if name.startswith(kept)}
        for record in records
        if record["kind"] in ("step", "epoch")
    ]


def _search(runs: Path) -> Any:
    config = config_of(runs, "searched")
    assert config.search.space is not None
    space = read_space(config.search.space)
    book = TrialBook(RunFolder.of(config).search, Checker(trial_base(config), space))
    result = conclude(config, space, book.all(), "")
    drawn = propose_random(Checker(trial_base(config), read_space("conditioning")), 3, [])
    assert drawn is not None
    table = json.loads((result.folder / "results.json").read_text())
    return {"table": table, "drawn": drawn.settings}


def _evaluate(runs: Path) -> Any:
    folder = RunFolder.of(config_of(runs, "finished"))
    wanted = Wanted(_SOURCES, sample_rate=8000)
    track = next(one for one in list_tracks(folder.songs, wanted) if one.split == "test")
    record = json.loads((folder.checkpoint / "config.json").read_text())
    network = {"checkpoint": record["hash"], "overlap_ratio": 0.5}
    job = TrackJob(
        track=track,
        file="song",
        sources=_SOURCES,
        systems=(SystemJob("net", "net", "model", folder.checkpoint, network),),
        scenario="sources",
        scores=runs / "new-scores",
        estimates=runs / "new-estimates",
    )
    score_track(job)
    content = json.loads(job.score_file(job.systems[0]).read_text())
    return [content["targets"], content["whole_song"]]


def _report(runs: Path) -> Any:
    result = write_report(config_of(runs, "finished"))
    return {path.name: _text_hash(path.read_text(), runs) for path in result.files}


def _text_hash(text: str, folder: Path) -> str:
    """Return the hash of what a person sees of a text: no sound, no pictures, no folder's name."""
    text = text.replace(str(folder), "FOLDER")
    text = re.sub(r"audio/[0-9a-f]+", "audio", text)
    text = re.sub(r"'sha256-[A-Za-z0-9+/=]+'", "sha256", text)
    return hashlib.sha256(text.encode()).hexdigest()


# What each stage makes, and how far two machines may be apart in it (relative to the value).
_STAGES: dict[str, tuple[int, Callable[[Path], Any], float]] = {
    "songs": (synthetic.VERSION, _songs, 1e-4),
    "preprocess": (shards.VERSION, _preprocess, 1e-4),
    "train": (training.VERSION, _train, 2e-3),
    "search": (search.VERSION, _search, 1e-6),
    "evaluate": (evaluation.VERSION, _evaluate, 1e-4),
    "report": (report.VERSION, _report, 0.0),
}


@pytest.mark.parametrize("stage", _STAGES)
def test_a_stage_that_makes_something_else_has_another_version(stage: str, runs: Path) -> None:
    version, make, tolerance = _STAGES[stage]
    made = json.loads(json.dumps(make(runs)))
    stored = json.loads(_STORED.read_text()) if _STORED.exists() else {}
    if os.environ.get("LASAFT_STORE_RESULTS"):
        _STORED.write_text(json.dumps({**stored, stage: [version, made]}, indent=1) + "\n")
        return
    assert stored[stage][0] == version, f"{stage}: store the result of VERSION {version} (see top)"
    differing = list(_differences(stored[stage][1], made, tolerance))
    assert not differing, f"{stage}: makes something else now, so its VERSION must be raised"


def _differences(before: Any, now: Any, tolerance: float, place: str = "") -> list[str]:
    if isinstance(before, dict) and isinstance(now, dict) and before.keys() == now.keys():
        pairs = [(f"{place}/{key}", before[key], now[key]) for key in before]
    elif isinstance(before, list) and isinstance(now, list) and len(before) == len(now):
        pairs = [(f"{place}/{i}", *pair) for i, pair in enumerate(zip(before, now, strict=True))]
    elif isinstance(before, float) and isinstance(now, float | int):
        near = math.isclose(before, now, rel_tol=tolerance, abs_tol=tolerance)
        return [] if near or (math.isnan(before) and math.isnan(now)) else [place]
    else:
        return [] if before == now else [place]
    return [line for where, old, new in pairs for line in _differences(old, new, tolerance, where)]
