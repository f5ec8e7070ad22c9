"""Score files: museval's text to the byte, names that stay in their folder, keys."""

from __future__ import annotations

import hashlib
import json
from pathlib import Path

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from lasaft.errors import DataError
from pipeline.evaluation.score_files import (
    METRICS,
    FrameScores,
    facts_if_current,
    file_names,
    read_scores,
    require_writable,
    was_of_other_track,
    write_key,
    write_scores,
)
from tests.helpers.bss_truth import museval_package
from tests.helpers.scores import frame_scores

ODD = (1.0000049, -1e-9, 0.000005, -0.000015, 12345.678915, np.nan, np.inf, -np.inf, 2.5e-6)


def _museval_text(scores: FrameScores, window: float = 1.0, hop: float = 1.0) -> str:
    store = museval_package().TrackStore("a track", win=window, hop=hop)
    for source, metrics in scores.values.items():
        store.add_target(source, {metric: list(metrics[metric]) for metric in METRICS})
    store.validate()
    return store.json


@pytest.mark.parametrize("source", ["vocals", "@", 'a "quoted" \\ name', "SDR"])
def test_text_is_musevals_to_the_byte(tmp_path: Path, source: str) -> None:
    scores = FrameScores({source: {metric: np.array(ODD) for metric in METRICS},
                          "bass": dict(frame_scores(3.0, 1, 9).values["vocals"])})  # fmt: skip
    for window, hop in ((1.0, 1.0), (2.0, 0.5)):
        write_scores(tmp_path / "song.json", scores, window, hop)
        assert (tmp_path / "song.json").read_text() == _museval_text(scores, window, hop)


def test_what_is_written_is_read_again_to_five_decimals(tmp_path: Path) -> None:
    scores = frame_scores(5.0, 0)
    write_scores(tmp_path / "song.json", scores)
    again = read_scores(tmp_path / "song.json")
    assert again.sources == scores.sources
    for source in scores.sources:
        for metric in METRICS:
            np.testing.assert_allclose(
                again.values[source][metric],
                scores.values[source][metric],
                rtol=0,
                atol=5.0001e-6,  # half of the last decimal
            )


@pytest.mark.parametrize(
    "text",
    ["", "{", "[]", '{"targets": []}', '{"targets": [{"name": "vocals", "frames": []}]}',
     '{"targets": [{"name": "vocals", "frames": [{"metrics": {"SDR": 1}}]}]}',
     '{"targets": [{"name": 3, "frames": [{"metrics": {"SDR": 1, "ISR": 1, "SIR": 1, "SAR": 1}}]'
     "}]}",
     '{"targets": [{"name": "v", "frames": [{"metrics": {"SDR": "x", "ISR": 1, "SIR": 1, "SAR": 1}}'
     "]}]}"],
)  # fmt: skip
def test_a_damaged_score_file_is_named(tmp_path: Path, text: str) -> None:
    (tmp_path / "song.json").write_text(text)
    with pytest.raises(DataError, match=r"song\.json"):
        read_scores(tmp_path / "song.json")


def test_a_missing_score_file_is_named(tmp_path: Path) -> None:
    with pytest.raises(DataError, match=r"no\.json.*No such file"):
        read_scores(tmp_path / "no.json")


def test_safe_names_stay_as_they_are() -> None:
    names = ["Music Delta - 80s Rock", "Ünïcode – ßong", "a.b.c", "Punkdisco - Oral Hygiene"]
    assert file_names(names) == dict(zip(names, names, strict=True))


@given(st.lists(st.text(min_size=1), unique=True, max_size=8))
def test_file_names_are_different_and_stay_in_their_folder(names: list[str]) -> None:
    files = list(file_names(names).values())
    assert len({file.casefold() for file in files}) == len(names)
    for file in files:
        assert (Path("/scores") / file).resolve().parent == Path("/scores")
        assert len(f"{file}.json".encode()) < 255
        assert not file.startswith(".")


@pytest.mark.parametrize(
    "name", ["../../etc/passwd", "..", "/etc/passwd", "a/b", "a\\b", "C:x", "\0"]
)
def test_hostile_names_cannot_leave_their_folder(tmp_path: Path, name: str) -> None:
    path = tmp_path / "scores" / f"{file_names([name])[name]}.json"
    write_scores(path, frame_scores(1.0, 0))
    assert [file.resolve() for file in tmp_path.rglob("*.json")] == [path.resolve()]
    assert path.resolve().parent == tmp_path / "scores"


def test_names_that_differ_only_in_case_get_files_of_their_own() -> None:
    files = file_names(["Song", "song", "SONG "])
    assert len({file.casefold() for file in files.values()}) == 3


def test_a_folder_that_cannot_be_written_is_named_before_any_work(tmp_path: Path) -> None:
    require_writable(tmp_path / "new" / "folder")
    assert list((tmp_path / "new" / "folder").iterdir()) == []
    (tmp_path / "file").write_text("in the way")
    with pytest.raises(DataError, match=r"file/scores: cannot write here \(Not a directory\)"):
        require_writable(tmp_path / "file" / "scores")


def test_scores_are_current_only_with_the_same_key_and_content(tmp_path: Path) -> None:
    scores, key_file = tmp_path / "song.json", tmp_path / "keys" / "song.json"
    key = {"scoring": 3, "checkpoint": "abc", "sources": ["vocals"]}
    assert facts_if_current(scores, key_file, key, 3) is None
    write_scores(scores, frame_scores(1.0, 0))
    assert facts_if_current(scores, key_file, key, 3) is None
    digest = hashlib.sha256(scores.read_bytes()).hexdigest()
    write_key(key_file, key, {"sha256": digest})
    assert facts_if_current(scores, key_file, key, 3) == {"sha256": digest}
    later = {**key, "scoring": 4}  # scores of before are kept, unless what they lack is wanted
    assert facts_if_current(scores, key_file, later, 3) == {"sha256": digest}
    assert facts_if_current(scores, key_file, later, 4) is None
    assert facts_if_current(scores, key_file, {**key, "scoring": 2}, 2) is None
    assert not was_of_other_track(key_file, later)
    assert facts_if_current(scores, key_file, {**key, "checkpoint": "abd"}, 3) is None
    scores.write_text(scores.read_text().replace("vocals", "vocalz"))
    assert facts_if_current(scores, key_file, key, 3) is None
    key_file.write_text(json.dumps({"key": key}))
    assert facts_if_current(scores, key_file, key, 3) is None


@pytest.mark.parametrize("value", [1e308, -1e7])
def test_a_score_beyond_all_scores_is_an_error(tmp_path: Path, value: float) -> None:
    frame = {"time": 0.0, "duration": 1.0, "metrics": dict.fromkeys(METRICS, 1.0) | {"SDR": value}}
    text = json.dumps({"targets": [{"name": "vocals", "frames": [frame]}]})
    (tmp_path / "a.json").write_text(text)
    with pytest.raises(
        DataError, match=r"a\.json: not museval's structure .* a score of 1e\+\d+ dB"
    ):
        read_scores(tmp_path / "a.json")
