"""The leaderboard: seeds together, other scenarios apart, published figures by convention."""

from __future__ import annotations

import csv
import io
import json
from pathlib import Path

import numpy as np
import pytest

from jobs.cli.show import scores_result
from jobs.report import main as report_job
from pipeline.config import RunConfig
from pipeline.config.roles import recipe_of
from pipeline.evaluation.aggregate import summarise
from pipeline.evaluation.score_files import ALL_METRICS, LEAK
from pipeline.evaluation.score_table import score_table
from pipeline.evaluation.summary import AGAINST_OTHERS, DataIdentity, Summary
from pipeline.report.build import write_report
from pipeline.report.comparisons import AVERAGE
from pipeline.report.seeds import seed_groups
from pipeline.report.tables import markdown_text
from tests.helpers.object_store import address, object_store, put_folder
from tests.helpers.scores import SOURCES, board_of, save_summary, scored_summary

TRACKS = [f"song {number}" for number in range(4)]
HQ = DataIdentity(name="MUSDB18-HQ", kind="MUSDB18-HQ", split="test", hash="12" * 32, complete=True)


def _seeds(count: int = 3) -> list[Summary]:
    return [
        scored_summary(f"net {seed}", 5.0, TRACKS, seed=seed, training_seed=seed)
        for seed in range(count)
    ]


def test_runs_that_differ_in_their_seed_have_a_mean_and_a_spread() -> None:
    runs = _seeds()
    (group,) = seed_groups(runs)
    assert group.runs == {0: "net 0", 1: "net 1", 2: "net 2"}
    medians = [run.scores["drums"]["SIR"].median for run in runs]
    found = group.cells["drums", "SIR", "median"]
    assert found.mean == pytest.approx(np.mean(medians))  # type: ignore[arg-type]
    assert found.sd == pytest.approx(np.std(medians, ddof=1))  # type: ignore[arg-type]


def test_other_recipes_settings_and_the_same_seed_are_no_repetitions() -> None:
    one, two, three = _seeds()

    def with_system(summary: Summary, **change: object) -> Summary:
        return summary.model_copy(update={"system": summary.system.model_copy(update=change)})

    assert seed_groups([one, with_system(two, recipe="00" * 32)]) == []
    assert seed_groups([one, with_system(two, settings={"overlap_ratio": 0.0})]) == []
    assert seed_groups([one, with_system(two, seed=0), with_system(three, recipe=None)]) == []


def test_a_recipe_is_all_of_a_training_but_its_seed_and_machine() -> None:
    def record(data: str = "d", **train: object) -> dict[str, object]:
        config = {"model": {"n_fft": 2048}, "train": {"lr": 0.1, **train}, "output_dir": "x"}
        return {"data_hash": data, "config": config}

    recipe = recipe_of(record(seed=1, gpus=0))
    assert recipe == recipe_of(record(seed=2, gpus=8))
    assert recipe != recipe_of(record(seed=1, gpus=0, lr_schedule="cosine"))
    assert recipe != recipe_of(record(data="other", seed=1))
    assert recipe_of({"data_hash": "d"}) is None


def test_seeds_stand_in_every_table(tmp_path: Path) -> None:
    runs = _seeds(2)
    for run in runs:
        save_summary(tmp_path / "scores", run)
    files = {f.name: f.read_text() for f in write_report(RunConfig(output_dir=tmp_path)).files}
    averages = [run.average["SDR"].median for run in runs]
    mean, sd = np.mean(averages), np.std(averages, ddof=1)  # type: ignore[arg-type]
    rows = csv.DictReader(io.StringIO(files["leaderboard.csv"]))
    (row,) = (
        r for r in rows
        if (r["kind"], r["source"], r["metric"], r["aggregation"])
        == ("seeds", AVERAGE, "SDR", "median")
    )  # fmt: skip
    assert float(row["value_db"]) == pytest.approx(mean, abs=6e-6)
    assert float(row["sd_db"]) == pytest.approx(sd, abs=6e-6)
    assert f"average SDR {mean:.2f} ± {sd:.2f} dB" in files["leaderboard.md"]
    (group,) = json.loads(files["leaderboard.json"])["seeds"]
    assert group["runs"] == {"0": "net 0", "1": "net 1"}
    assert "Over seeds" in files["index.html"]


def test_another_scenario_shares_only_what_does_not_depend_on_it() -> None:
    lead = scored_summary("all", 5.0, TRACKS)
    vocals = scored_summary("vocals only", 6.0, TRACKS, seed=3, sources=("vocals",))
    vocals = vocals.model_copy(update={"scenario": "target_rest"})
    board = board_of(lead, vocals)
    cells = next(row.cells for row in board.measured if row.name == "vocals only")
    assert {source for source, *_ in cells} == {"vocals"}
    assert {metric for _, metric, _ in cells} == {*ALL_METRICS} - {*AGAINST_OTHERS, LEAK}
    assert {(t.first, t.source) for t in board.tests} <= {("all", "vocals")}
    strange = scored_summary("strange", 6.0, TRACKS, sources=("kazoo",))
    assert "strange: scored on other songs" in board_of(lead, strange).left_out[0]


def test_the_average_is_without_an_accompaniment() -> None:
    sources = (*SOURCES, "accompaniment", "vocals+bass")
    summary = scored_summary("net", 5.0, TRACKS, sources=sources)
    medians = [summary.scores[s]["SDR"].median for s in SOURCES]
    assert summary.average["SDR"].median == pytest.approx(np.mean(medians))  # type: ignore[arg-type]


def test_published_figures_stand_under_their_own_convention_only() -> None:
    lead = scored_summary("net", 5.0, TRACKS, data=HQ)
    board = board_of(lead)
    keys = {key[1:] for row in board.published for key in row.cells}
    assert keys == {("SDR", "median"), ("uSDR", "mean")}
    umx = next(row for row in board.published if row.name == "umxhq")
    assert umx.cells["vocals", "SDR", "median"].value == 6.25
    assert ("vocals", "uSDR", "mean") not in umx.cells
    mp4 = scored_summary("net", 5.0, TRACKS, data=HQ.model_copy(update={"kind": "MUSDB18"}))
    keys = {key[1:] for row in board_of(mp4).published for key in row.cells}
    assert keys == {("SDR", "median")}  # the others were measured on MUSDB18-HQ


def test_rows_are_sorted_by_their_average_and_then_by_what_they_have() -> None:
    lead = scored_summary("net", 5.0, TRACKS, data=HQ)
    board = board_of(lead, scored_summary("vocals", 9.0, TRACKS, data=HQ, sources=("vocals",)))
    assert [row.name for row in board.measured] == ["net", "vocals"]
    lines = markdown_text(board).splitlines()
    second = next(i for i, line in enumerate(lines) if line.startswith("### ") and "uSDR" in line)
    for table in (lines[:second], lines[second:]):
        cells = [line.split(" | ")[-1].strip(" |") for line in table if "as published" in line]
        averages = [float(cell) for cell in cells if cell != "-"]
        assert averages == sorted(averages, reverse=True)
        assert len(averages) > 7
        assert "-" not in cells[: len(averages)]  # those without an average come last


def test_two_systems_of_one_name_show_their_folders(tmp_path: Path) -> None:
    save_summary(tmp_path / "scores", scored_summary("net", 5.0, TRACKS, seed=1))
    save_summary(tmp_path / "scores", scored_summary("net", 6.0, TRACKS, seed=2), "net again")
    board = json.loads(_leaderboard(tmp_path))
    assert {s["name"] for s in board["systems"]} == {"net (net)", "net (net again)"}


def _runs(root: Path) -> list[Path]:
    """Make three runs, two of them with a network of the same name, each with its mixture."""
    places = [root / name for name in ("a", "b", "c")]
    for seed, place in enumerate(places):
        network = scored_summary("net" if seed < 2 else "other", 5.0 + seed, TRACKS, seed=seed)
        mixture = scored_summary("mixture", -3.0, TRACKS, kind="mixture", seed=9)
        for summary in (network, mixture):
            save_summary(place / "scores", summary)
    return places


def test_the_networks_of_several_runs_stand_on_one_board(
    tmp_path: Path, capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    a, b, c = _runs(tmp_path)
    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path / "cache"))
    with object_store() as port:
        place = address("board/b", port)
        put_folder(b, place)
        words = ["--output_dir", str(a), "--add", f"{place},{c}", "--log", "False", "--json"]
        assert report_job(words) == 0
    names = {f"net ({a})", f"net ({place.partition('?')[0]})", "other", "mixture"}
    assert set(json.loads(capsys.readouterr().out)["scores"]) == names
    board = json.loads((a / "report" / "leaderboard.json").read_text())
    assert {s["name"] for s in board["systems"]} == names
    assert f"<title>net ({a}) on" in (a / "report" / "index.html").read_text()


def test_a_board_of_other_runs_alone_needs_no_scores_of_its_own(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    a, _, c = _runs(tmp_path)
    words = ["--output_dir", str(tmp_path / "board"), "--log", "False", "--add"]
    assert report_job([*words, f"{a},{c}"]) == 0
    assert "<title>other on" in (tmp_path / "board" / "report" / "index.html").read_text()
    title, head, *ranked = capsys.readouterr().out.split("\n\n")[0].splitlines()
    assert title.startswith("Synthetic songs, test, 4 tracks: BSS Eval v4")
    assert head.split() == ["place", "system", *SOURCES, AVERAGE]
    averages = [float(line.split()[-1]) for line in ranked]
    assert averages == sorted(averages, reverse=True)
    assert {line.split()[0] for line in ranked if "mixture" in line} <= {"-"}
    assert report_job([*words, f"{a},{tmp_path}/nowhere"]) == 2
    assert f"add: {tmp_path}/nowhere holds no scores, allowed: " in capsys.readouterr().err


def test_an_unfinished_system_is_named_and_not_shown(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    save_summary(tmp_path / "scores", scored_summary("net", 5.0, TRACKS))
    half = tmp_path / "scores" / "half" / "test"
    half.mkdir(parents=True)
    (half / "song 0.json").write_text("{}")
    page = write_report(RunConfig(output_dir=tmp_path)).page.read_text()
    reason = "half: 1 songs are scored, but there is no summary of a whole run"
    assert f"Left out: {reason}" in page
    assert f"report: {reason}" in capsys.readouterr().err
    assert {s["name"] for s in json.loads(_leaderboard(tmp_path))["systems"]} == {"net"}


def _leaderboard(root: Path) -> str:
    files = write_report(RunConfig(output_dir=root)).files
    return next(file for file in files if file.name == "leaderboard.json").read_text()


def test_songs_that_failed_and_what_leaked_are_told(tmp_path: Path) -> None:
    summary = scored_summary("net", 5.0, TRACKS)
    first, *others = summary.tracks
    leaked = {**dict.fromkeys(first.scores["vocals"]), LEAK: 31.25}
    first = first.model_copy(update={"scores": {**first.scores, "vocals": leaked}})
    summary = summarise("net", summary.system, summary.data, [first, *others])
    summary = summary.model_copy(update={"failed": {"song 9": "its drums are no sound"}})
    save_summary(tmp_path / "scores", summary)
    files = {f.name: f.read_text() for f in write_report(RunConfig(output_dir=tmp_path)).files}
    top = files["index.html"][: files["index.html"].index("<main>")]
    assert "4 of 5 tracks" in top
    assert "<b>song 9</b>: its drums are no sound" in top
    rows = list(csv.DictReader(io.StringIO(files["leaderboard.csv"])))
    (leak,) = (r for r in rows if (r["metric"], r["aggregation"]) == (LEAK, "median"))
    assert (leak["source"], leak["value_db"], leak["tracks"]) == ("vocals", "31.25000", "1")
    sdr = next(r for r in rows if (r["source"], r["metric"]) == ("vocals", "SDR"))
    assert (sdr["tracks"], sdr["failed"]) == ("3", "1")
    assert "leak in dB, whole songs, median of tracks:  vocals 31.25" in score_table(summary)
    assert 'value="leak"' in files["index.html"]


def test_a_mixture_of_other_songs_is_no_baseline(tmp_path: Path) -> None:
    lead = scored_summary("net", 5.0, TRACKS)
    mixture = scored_summary("mixture", -3.0, TRACKS, kind="mixture")
    assert board_of(lead, mixture).baseline == mixture
    lacking = scored_summary("mixture", -3.0, TRACKS[1:], kind="mixture")
    lacking = lacking.model_copy(update={"failed": {TRACKS[0]: "too long"}})
    assert board_of(lead, lacking).baseline is None
    save_summary(tmp_path / "scores", lead)
    save_summary(tmp_path / "scores", lacking)
    assert "difference" not in scores_result(RunConfig(output_dir=tmp_path)).text


def test_a_mixture_alone_has_a_table(tmp_path: Path) -> None:
    mixture = scored_summary("mixture", -3.0, TRACKS, kind="mixture")
    save_summary(tmp_path / "scores", mixture)
    assert score_table(mixture).rstrip() in scores_result(RunConfig(output_dir=tmp_path)).text
