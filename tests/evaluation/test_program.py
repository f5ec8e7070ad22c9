"""Any program separates songs: what it writes is scored, and what it costs is bounded."""

from __future__ import annotations

import shlex
import sys
from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest
import soundfile

from jobs.cli import parse
from lasaft.config import MUSDB18_SOURCES
from lasaft.errors import ConfigError, DataError
from pipeline.config import RunConfig
from pipeline.data.songs.tracks import list_tracks
from pipeline.data.songs.wanted import Wanted
from pipeline.evaluation.program import Program
from pipeline.evaluation.score_files import read_scores
from pipeline.evaluation.score_track import SystemJob, TrackJob, score_track
from pipeline.evaluation.systems import identity_of, systems_of
from tests.helpers.songs import make_musdb

# Writes as Demucs does, into a folder of the model and of the song below the one it is given.
_SEPARATES = """
import pathlib, sys, soundfile
song, folder = map(pathlib.Path, sys.argv[1:])
wave, rate = soundfile.read(song, dtype="float32")
place = folder / "a model" / song.stem
place.mkdir(parents=True)
for number, source in enumerate(("vocals", "drums", "bass", "other"), 1):
    soundfile.write(place / f"{source}.wav", wave / number, rate, subtype="FLOAT")
"""


def _program(code: str, minutes: float = 1.0, memory_bytes: float = 2e9) -> Program:
    command = shlex.join([sys.executable, "-c", code, "{song}", "{folder}"])
    return Program(command, minutes, memory_bytes)


def test_what_a_program_makes_of_a_song_is_scored_and_kept(tmp_path: Path) -> None:
    root = make_musdb(tmp_path / "songs", train=0, valid=0, test=1, seconds=2.0)
    (track,) = list_tracks(root, Wanted(MUSDB18_SOURCES))
    program = _program(_SEPARATES)
    system = SystemJob("x", "x", "estimates", None, {"separator": program.command}, program)
    job = TrackJob(
        track=track, file="song", sources=MUSDB18_SOURCES, systems=(system,), scenario="sources",
        scores=tmp_path / "scores", estimates=tmp_path / "kept", save="wav", excerpt=True,
    )  # fmt: skip
    assert [score_track(job).scored for _ in range(2)] == [1, 0]
    mixture = soundfile.read(track.path / "mixture.wav", dtype="float32")[0]
    for number, source in enumerate(MUSDB18_SOURCES, 1):
        kept = soundfile.read(tmp_path / "kept/x/test/song" / f"{source}.wav", dtype="float32")[0]
        np.testing.assert_array_equal(kept, mixture / np.float32(number))
        assert (tmp_path / "kept/excerpts/test/song/x" / f"{source}.wav").is_file()
    bound = replace(system, file="mixture", kind="mixture", key={"bound": "x"}, program=None)
    bounds = replace(job, systems=(bound,), save="none", excerpt=False)
    score_track(bounds)
    ours, mixtures = (read_scores(j.score_file(j.systems[0])).values for j in (job, bounds))
    np.testing.assert_array_equal(ours["vocals"]["SDR"], mixtures["vocals"]["SDR"])
    other = replace(system, key={"separator": "another"})
    assert score_track(replace(job, systems=(other,))).scored == 1


@pytest.mark.parametrize(
    ("code", "limits", "reason"),
    [
        ("import sys; sys.exit('no such model')", {}, "exit code 1; it said: no such model"),
        ("import time; time.sleep(60)", {"minutes": 0.01}, "longer than separator_minutes 0.01"),
        (
            "import time; x = bytearray(400_000_000); time.sleep(60)",
            {"memory_bytes": 2e8},
            "more than task_memory 0.2 GB",
        ),
        (
            "import sys; open(sys.argv[2] + '/a.wav', 'w')",
            {},
            r"left no vocals\.wav.*found: a\.wav",
        ),
    ],
)
def test_a_program_that_fails_is_named(code: str, limits: dict[str, float], reason: str) -> None:
    with (
        pytest.raises(DataError, match=rf"separator 'python[\d.]*': .*{reason}"),
        _program(code, **limits).separated("song", np.zeros((2, 100)), 8000, ["vocals"]),
    ):
        pass


def test_a_program_that_is_not_there_is_named() -> None:
    nothing = Program("no-such-program {song} {folder}", 1.0, 1e9)
    with (
        pytest.raises(DataError, match="separator 'no-such-program': is no program that is found"),
        nothing.separated("song", np.zeros((2, 100)), 8000, ["vocals"]),
    ):
        pass


def test_another_program_takes_no_name_that_is_taken(tmp_path: Path) -> None:
    words = ["--musdb_root", str(make_musdb(tmp_path / "songs", train=0, valid=0, test=1))]
    words += ["--output_dir", str(tmp_path / "run"), "--separator"]
    config: RunConfig = parse([*words, "demucs -n htdemucs {song} -o {folder}"], "evaluate").config
    lead, _ = systems_of(config, None)
    assert (lead.name, lead.kind) == ("demucs", "estimates")
    assert identity_of(lead, None).settings == {"separator": config.evaluate.separator}
    key = tmp_path / "run/scores/demucs/keys/test/song.json"
    key.parent.mkdir(parents=True)
    key.write_text('{"key": {"separator": "demucs {song} {folder}"}, "facts": {}}')
    with pytest.raises(ConfigError, match=r"'demucs' is the name of program 'demucs \{song\}"):
        systems_of(config, None)
