"""Aggregation: museval's medians, means, NaN frames counted, the table of a terminal."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import pytest

from lasaft.errors import DataError
from pipeline.evaluation.aggregate import difference, summarise, summarise_track
from pipeline.evaluation.score_files import (
    LEAK,
    METRICS,
    WHOLE_METRICS,
    FrameScores,
    read_scores,
)
from pipeline.evaluation.score_table import score_table
from pipeline.evaluation.summary import System, TrackSummary, read_summary
from tests.helpers.bss_truth import museval_package
from tests.helpers.scores import (
    SOURCES,
    SYNTHETIC,
    frame_scores,
    record_of,
    save_museval_files,
    save_summary,
    scored_summary,
)

MODEL = System(kind="model", checkpoint="00" * 32)


def _tracks(folder: Path, scores: dict[str, FrameScores]) -> list[TrackSummary]:
    save_museval_files(folder, scores)
    return [
        summarise_track(name, f"{name}.json", "", read_scores(folder / "test" / f"{name}.json"))
        for name in scores
    ]


def _musevals(folder: Path, over_tracks: str = "median") -> dict[tuple[str, str], float]:
    store = museval_package().EvalStore(frames_agg="median", tracks_agg=over_tracks)
    store.add_eval_dir(str(folder))
    return store.agg_frames_tracks_scores().to_dict()


@pytest.mark.parametrize("tracks", [1, 4, 7])
@pytest.mark.parametrize("over_tracks", ["median", "mean"])
def test_figures_are_musevals_own(tmp_path: Path, tracks: int, over_tracks: str) -> None:
    scores = {f"song {n}.x": frame_scores(3.0 * n, n, frames=5 + n) for n in range(tracks)}
    summary = summarise("ours", MODEL, SYNTHETIC, _tracks(tmp_path, scores))
    theirs = _musevals(tmp_path, over_tracks)
    for source in SOURCES:
        for metric in METRICS:
            ours = getattr(summary.scores[source][metric], over_tracks)
            assert ours == pytest.approx(theirs[source, metric], abs=1e-12)  # same 5 decimals


def test_a_track_without_a_single_number_is_left_out_as_museval_does(tmp_path: Path) -> None:
    silent = FrameScores({s: {m: np.full(4, np.nan) for m in METRICS} for s in SOURCES})
    scores = {"silent": silent, "loud": frame_scores(4.0, 1), "louder": frame_scores(6.0, 2)}
    summary = summarise("ours", MODEL, SYNTHETIC, _tracks(tmp_path, scores))
    theirs = _musevals(tmp_path)
    assert summary.scores["bass"]["SIR"].median == pytest.approx(theirs["bass", "SIR"], abs=1e-12)
    assert summary.tracks[0].scores["bass"]["SIR"] is None
    assert summary.nan_frames == dict.fromkeys(SOURCES, 4 + 1 + 1)
    assert summary.frames == 4 + 12 + 12


def test_without_any_number_there_is_no_figure_and_no_average() -> None:
    nothing = FrameScores({s: {m: np.full(2, np.nan) for m in METRICS} for s in SOURCES})
    track = summarise_track("t", "t.json", "", nothing)
    summary = summarise("ours", MODEL, SYNTHETIC, [track])
    assert summary.scores["vocals"]["SDR"].median is None
    assert summary.average["SDR"].median is None


def test_the_average_is_the_mean_over_sources() -> None:
    summary = scored_summary("ours", 5.0, ["a", "b", "c"])
    medians = [summary.scores[s]["SDR"].median for s in SOURCES]
    assert summary.average["SDR"].median == pytest.approx(np.mean(medians))  # type: ignore[arg-type]


def test_the_average_leaves_out_what_no_song_has_and_says_so() -> None:
    scores = frame_scores(5.0, 0)
    nothing = {metric: np.full(scores.frames, np.nan) for metric in METRICS}
    silent = {**dict.fromkeys(WHOLE_METRICS), LEAK: 40.0}
    lacks = FrameScores({**scores.values, "bass": nothing}, {**scores.whole, "bass": silent})
    records = {"has": record_of("has", scores), "lacks": record_of("lacks", lacks)}
    mixed, never = (
        summarise("net", System(kind="model"), SYNTHETIC, [records[name] for name in names])
        for names in (("has", "lacks"), ("lacks", "lacks"))
    )
    assert mixed.average["SDR"].median is not None
    assert "silent in every song" not in mixed.definitions["average"]
    others = [never.scores[name]["SDR"].median for name in ("vocals", "drums", "other")]
    assert never.average["SDR"].median == pytest.approx(np.mean(np.array(others, float)))
    assert never.definitions["average"].endswith("because silent in every song: bass.")


def test_no_tracks_and_mixed_sources_are_refused() -> None:
    with pytest.raises(DataError, match="no scored track"):
        summarise("ours", MODEL, SYNTHETIC, [])
    two = [
        summarise_track("a", "a.json", "", frame_scores(1, 0)),
        summarise_track("b", "b.json", "", frame_scores(1, 0, sources=("vocals", "rest"))),
    ]
    with pytest.raises(DataError, match="'b' is scored on vocals, rest, but 'a' on vocals, drums"):
        summarise("ours", MODEL, SYNTHETIC, two)


def test_a_summary_is_read_as_it_was_written(tmp_path: Path) -> None:
    summary = scored_summary("ours", 5.0, ["a", "b"])
    save_summary(tmp_path, summary)
    assert read_summary(tmp_path / "ours" / "summary.json") == summary


@pytest.mark.parametrize(
    "text", [b"", b"{}", b"[1]", b'{"format": 2}', b'{"\\x80": 2}', b"[" * 99_999]
)
def test_a_damaged_summary_is_named(tmp_path: Path, text: bytes) -> None:
    (tmp_path / "summary.json").write_bytes(text)
    with pytest.raises(DataError, match=r"summary\.json: not a summary of scores"):
        read_summary(tmp_path / "summary.json")


def test_a_summary_that_was_changed_is_not_read(tmp_path: Path) -> None:
    save_summary(tmp_path, scored_summary("ours", 5.0, ["a", "b"]))
    file = tmp_path / "ours" / "summary.json"
    content = file.read_text()
    for before, after in (
        ("median of frames", "median of tracks"),
        ('"seed": 2020', '"seed": 2021'),
    ):
        assert before in content
        file.write_text(content.replace(before, after, 1))
        with pytest.raises(DataError, match=r"summary\.json: was changed .*; run jobs.evaluate"):
            read_summary(file)


def test_a_summary_of_an_earlier_version_is_read(tmp_path: Path) -> None:
    """They have no hash of themselves."""
    summary = scored_summary("ours", 5.0, ["a", "b"])
    (tmp_path / "summary.json").write_text(summary.model_dump_json())
    assert read_summary(tmp_path / "summary.json") == summary


def test_the_table_shows_model_mixture_and_difference() -> None:
    model = scored_summary("my model", 6.0, ["a", "b"], seed=1)
    mixture = scored_summary("mixture", -2.0, ["a", "b"], kind="mixture", seed=2)
    lines = score_table(model, mixture).splitlines()
    assert "Synthetic songs (abababababab), test, 2 tracks" in lines[0]
    assert "BSS Eval v4" in lines[0]
    assert "median of frames, median of tracks" in lines[0]
    row = next(line for line in lines if line.startswith("drums")).split()
    ours, theirs = model.scores["drums"]["SDR"].median, mixture.scores["drums"]["SDR"].median
    assert ours is not None
    assert theirs is not None
    assert row[1] == f"{ours:.2f}"
    assert row[5] == f"{theirs:.2f}"
    assert row[9] == f"{ours - theirs:.2f}"
    assert [line.split()[0] for line in lines[3:8]] == [*SOURCES, "average"]
    assert "drums 2" in lines[-1]  # the NaN frames
    assert len({len(line) for line in lines[2:8]}) == 1


def test_interference_has_no_difference_to_a_mixture_scored_against_other_sources() -> None:
    model = scored_summary("my model", 6.0, ["a", "b"])
    mixture = scored_summary("mixture", -2.0, ["a", "b"], kind="mixture")
    other = mixture.model_copy(update={"scenario": "vocals_accompaniment"})
    row = score_table(model, other).splitlines()[3].split()
    assert row[9:11] == score_table(model, mixture).splitlines()[3].split()[9:11]
    assert row[11:] == ["-", "-"]


def test_a_score_that_is_only_rounding_has_no_difference() -> None:
    assert difference(3.0, 180.0) is None
    assert difference(3.0, -1.0) == 4.0
    model, mixture = (scored_summary(n, v, ["a"]) for n, v in (("m", 6.0), ("mixture", 180.0)))
    row = score_table(model, mixture).splitlines()[3].split()
    assert row[5:] == [">100"] * 4 + ["-"] * 4
