"""Scores from museval's files alone: taken over as they are, matched with songs, or refused."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import pytest

from jobs.evaluate import main
from lasaft.errors import ConfigError, DataError
from pipeline.config import RunConfig
from pipeline.config.folders import RunFolder
from pipeline.evaluation.evaluate import evaluate
from pipeline.evaluation.score_files import FrameScores, write_scores
from pipeline.evaluation.summary import Summary, read_summary
from pipeline.report.build import write_report
from pipeline.tracking import tracking_address
from pipeline.tracking.outbox import Outbox
from pipeline.workflow.stages import score_songs
from tests.helpers.bss_truth import museval_package
from tests.helpers.scores import SOURCES, frame_scores, save_summary, scored_summary

TRACKS = ["song a", "song b", "song c"]


def _config(root: Path, theirs: Path, **tracking: Any) -> RunConfig:
    tree = {
        "output_dir": str(root / "run"),
        "evaluate": {"scores_dir": str(theirs)},
        "tracking": {"log": False, **tracking},
    }
    return RunConfig.model_validate_json(json.dumps(tree))


@pytest.fixture
def theirs(tmp_path: Path) -> Path:
    """Score files as museval leaves them, in its layout."""
    for number, track in enumerate(TRACKS):
        scores = frame_scores(4.0 + number, number)
        scores = type(scores)(scores.values)  # museval has no scores of whole songs
        write_scores(tmp_path / "umx" / "test" / f"{track}.json", scores)
    return tmp_path / "umx"


def test_three_systems_in_turn_have_three_records_and_the_run_none_of_their_scores(
    theirs: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("pipeline.tracking.tracker.Feeder", _NoFeeder)
    for name in ("a", "b", "c"):
        config = _config(tmp_path, theirs, log=True, run_id=name)
        score_songs(config)
    entries = Outbox(RunFolder.of(config).tracking, tracking_address(config)).entries()
    metrics = [(entry.get("child"), entry) for entry in entries if entry["kind"] == "metrics"]
    assert [child for child, _ in metrics] == ["a", "b", "c"]
    summary = read_summary(tmp_path / "run" / "scores" / "c" / "summary.json")
    assert metrics[2][1]["values"] == pytest.approx(summary.metrics)
    (table,) = (e for e in entries if e["kind"] == "table" and e.get("child") == "a")
    assert [row[:2] for row in table["rows"]] == [[t, s] for t in TRACKS for s in SOURCES]
    assert table["rows"][0][2] == summary.tracks[0].scores["vocals"]["SDR"]


class _NoFeeder:
    """Tells MLflow nothing: what it would be told stands in the outbox."""

    def __init__(self, *_: object) -> None: ...

    def start(self) -> None: ...

    def finish(self) -> str:
        return ""


def _own(root: Path) -> None:
    save_summary(root / "run" / "scores", scored_summary("my_net", 5.0, TRACKS))


def test_a_folder_of_jsons_is_aggregated_as_museval_does(theirs: Path, tmp_path: Path) -> None:
    result = evaluate(_config(tmp_path, theirs))
    store = museval_package().EvalStore()
    store.add_eval_dir(str(theirs))
    figures = store.agg_frames_tracks_scores().to_dict()
    for source in SOURCES:
        found = result.lead.scores[source]["SAR"].median
        assert found == pytest.approx(figures[source, "SAR"], abs=1e-12)
    assert result.lead.name == "umx"
    assert result.lead.system.kind == "scores"
    assert result.lead.system.settings == {"songs": "known by the names of the score files alone"}
    assert result.lead.scores["bass"]["uSDR"].mean is None
    for track in TRACKS:
        copy = tmp_path / "run" / "scores" / "umx" / "test" / f"{track}.json"
        assert copy.read_bytes() == (theirs / "test" / f"{track}.json").read_bytes()


def test_they_stand_on_the_board_of_a_run_about_the_same_songs(
    theirs: Path, tmp_path: Path
) -> None:
    _own(tmp_path)
    result = evaluate(_config(tmp_path, theirs))
    own = read_summary(tmp_path / "run" / "scores" / "my_net" / "summary.json")
    assert result.lead.data == own.data
    page = write_report(RunConfig(output_dir=tmp_path / "run")).page.read_text()
    assert page.count(">scores of others<") == 1
    assert "matched to these songs by name and number of frames" in page
    assert "<title>my_net on" in page


def test_the_job_needs_neither_songs_nor_ray(
    theirs: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    words = ["--scores_dir", str(theirs), "--output_dir", str(tmp_path / "run"), "--log", "False"]
    assert main([*words, "--run_id", "theirs", "--json"]) == 0
    assert set(json.loads(capsys.readouterr().out)["scores"]) == {"theirs"}
    assert main([*words, "--verify", "1"]) == 2
    assert "verify: has no effect, because scores_dir" in capsys.readouterr().err


def test_a_place_that_cannot_be_written_is_named(
    theirs: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    (tmp_path / "run").mkdir()
    (tmp_path / "run" / "scores").write_text("a file where the folder should be")
    words = ["--scores_dir", str(theirs), "--output_dir", str(tmp_path / "run"), "--log", "False"]
    assert main(words) == 1
    assert f"Not a directory: {tmp_path}/run/scores/umx" in capsys.readouterr().err


def test_declared_bounds_do_not_compete_and_declared_songs_stand_beside_published(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("pipeline.evaluation.data_identity._TEST_SECONDS", 500.0)
    songs = [f"song {number}" for number in range(50)]

    def adopt(name: str, frames: int = 10, **options: str) -> Summary:
        for number, song in enumerate(songs):
            scores = FrameScores(frame_scores(len(name), number, frames, ("vocals",)).values)
            write_scores(tmp_path / name / f"{song}.json", scores)
        config = _config(tmp_path, tmp_path / name)
        given = config.evaluate.model_copy(update=options)
        return evaluate(config.model_copy(update={"evaluate": given})).lead

    first = adopt("mine", scores_data="MUSDB18")
    assert first.data.comparable
    assert first.data.name == "MUSDB18 (declared)"
    assert adopt("ideal", scores_kind="oracle", frames=9).data == first.data
    assert adopt("nothing", scores_kind="mixture", frames=11).system.kind == "mixture"
    with pytest.raises(ConfigError, match=r"scores_data: got MUSDB18-HQ, but .* MUSDB18 \(decl"):
        adopt("late", scores_data="MUSDB18-HQ")
    with pytest.raises(DataError, match=r"8 frames, but 'song 0' has 10"):
        adopt("short", frames=8)
    page = write_report(RunConfig(output_dir=tmp_path / "run")).page.read_text()
    assert "<title>mine on MUSDB18 (declared), test, 50 tracks" in page
    assert page.count(">oracle<") == page.count(">does nothing<") == 1
    assert "D3Net" in page[: page.index("</table>")]


def test_damaged_misnamed_and_missing_files_are_all_named(theirs: Path, tmp_path: Path) -> None:
    _own(tmp_path)
    folder = theirs / "test"
    (folder / "song b.json").write_text("{")
    (folder / "song c.json").write_text('{"targets": []}')
    with pytest.raises(DataError) as caught:
        evaluate(_config(tmp_path, theirs))
    assert str(folder / "song b.json") in str(caught.value)
    assert str(folder / "song c.json") in str(caught.value)
    write_scores(folder / "song b.json", frame_scores(1.0, 1, frames=9))
    (folder / "song c.json").rename(folder / "song d.json")
    write_scores(folder / "song d.json", frame_scores(1.0, 1))
    with pytest.raises(DataError) as caught:
        evaluate(_config(tmp_path, theirs))
    text = str(caught.value)
    assert "song b.json: 9 frames, but 'song b' has 12" in text
    assert "song d.json: no scored song is called 'song d'" in text
    assert "no scores of 'song c' (1 of 3 songs)" in text
    assert not (tmp_path / "run" / "scores" / "umx").exists()
    with pytest.raises(DataError, match=r"empty: no scores in it; allowed: test/<track>\.json"):
        (tmp_path / "empty").mkdir()
        evaluate(_config(tmp_path, tmp_path / "empty"))


def test_a_song_that_failed_elsewhere_may_be_there_or_not(theirs: Path, tmp_path: Path) -> None:
    own = scored_summary("my_net", 5.0, TRACKS[:2]).model_copy(update={"failed": {"song c": "why"}})
    save_summary(tmp_path / "run" / "scores", own)
    adopted = evaluate(_config(tmp_path, theirs)).lead
    assert [track.name for track in adopted.tracks] == TRACKS
    assert (adopted.data, adopted.failed) == (own.data, {})
    (theirs / "test" / "song c.json").unlink()
    assert len(evaluate(_config(tmp_path, theirs)).lead.tracks) == 2
    moved = evaluate(_config(tmp_path / "elsewhere", tmp_path / "run" / "scores" / "my_net")).lead
    assert moved.failed == own.failed


def test_another_system_never_takes_a_name(theirs: Path, tmp_path: Path) -> None:
    evaluate(_config(tmp_path, theirs))
    key = tmp_path / "run" / "scores" / "umx" / "keys" / "test" / "song a.json"
    content = json.loads(key.read_text())
    key.write_text(json.dumps({**content, "key": {"checkpoint": "ab" * 32}}))
    with pytest.raises(ConfigError, match=r"run_id: 'umx' is the name of checkpoint abababababab,"):
        evaluate(_config(tmp_path, theirs))
    with pytest.raises(ConfigError, match="run_id: got 'irm', which names something else here"):
        evaluate(_config(tmp_path, theirs, run_id="irm"))
    assert evaluate(_config(tmp_path, theirs, run_id="umx 2")).lead.name == "umx 2"


def test_the_same_name_with_fewer_songs_drops_the_old_files(theirs: Path, tmp_path: Path) -> None:
    evaluate(_config(tmp_path, theirs))
    (theirs / "test" / "song a.json").unlink()
    result = evaluate(_config(tmp_path, theirs))
    assert [track.name for track in result.lead.tracks] == ["song b", "song c"]
    left = sorted(path.stem for path in (tmp_path / "run/scores/umx/test").iterdir())
    assert left == ["song b", "song c"]


def test_a_folder_of_ours_keeps_what_is_known_of_its_network(tmp_path: Path, theirs: Path) -> None:
    first = evaluate(_config(tmp_path, theirs))
    ours = tmp_path / "run" / "scores" / "umx"
    known = scored_summary("net", 5.0, TRACKS)
    summary = first.lead.model_copy(update={"name": "net", "system": known.system})
    (ours / "summary.json").write_text(summary.model_dump_json())
    moved = evaluate(_config(tmp_path / "elsewhere", ours)).lead
    assert (moved.name, moved.system, moved.data) == ("net", known.system, first.lead.data)
    assert moved.scores == first.lead.scores
    write_scores(ours / "test" / "song b.json", frame_scores(9.0, 9))
    with pytest.raises(DataError, match=r"song b\.json: not the scores that .*summary\.json"):
        evaluate(_config(tmp_path / "again", ours))
