"""The evaluation on Ray: right figures, nothing done twice, nothing half passed off as whole."""

from __future__ import annotations

import hashlib
import json
import shutil
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import soundfile
import torch

from jobs.cli.show import scores_result
from lasaft.card import card_of, read_cards
from lasaft.checkpoint import save_checkpoint
from lasaft.config import MUSDB18_SOURCES, ModelConfig
from lasaft.errors import CheckpointError, ConfigError, DataError, StageError
from lasaft.network.model import LaSAFT
from pipeline.cluster.connection import connected
from pipeline.config import ClusterConfig, RunConfig
from pipeline.evaluation.evaluate import EvaluationResult, evaluate
from pipeline.evaluation.score_files import read_scores
from pipeline.evaluation.summary import read_summary
from pipeline.report.build import write_report
from tests.helpers.songs import make_musdb

NETWORK = ModelConfig(
    n_fft=512, hop_length=256, num_frame=32, n_blocks=3, internal_channels=4,
    n_internal_layers=1, num_tdfs=2, dk=4,
)  # fmt: skip
NAME = "CUNET_TFC_GPoCM_LaSAFT"
SECONDS = 4.0


@pytest.fixture(scope="module", autouse=True)
def ray_cluster() -> Iterator[None]:
    with connected(ClusterConfig(num_cpus=2)):
        yield


@pytest.fixture(scope="module")
def songs(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return make_musdb(
        tmp_path_factory.mktemp("data") / "songs", train=1, valid=0, test=3, seconds=SECONDS
    )


def _publish_network(folder: Path, seed: int) -> None:
    torch.manual_seed(seed)
    provenance = {
        "git_commit": "0123abc", "data_hash": "77", "config": {"train": {"seed": seed}},
    }  # fmt: skip
    save_checkpoint(folder, LaSAFT(NETWORK).state_dict(), NETWORK, provenance)


def _config(root: Path, songs: Path, **options: Any) -> RunConfig:
    sections: dict[str, Any] = {
        "output_dir": str(root),
        "data": {"musdb_root": str(songs)},
        "evaluate": {key: value for key, value in options.items() if key != "run_id"},
        "tracking": {"run_id": options.get("run_id")},
        "cluster": {"task_memory": 0.2},
    }
    return RunConfig.model_validate_json(json.dumps(sections))


@pytest.fixture(scope="module")
def whole(tmp_path_factory: pytest.TempPathFactory, songs: Path) -> tuple[Path, EvaluationResult]:
    """One whole evaluation, with oracles, kept estimates and a check by museval; read only."""
    root = tmp_path_factory.mktemp("run")
    _publish_network(root / "checkpoint", 0)
    result = evaluate(_config(root, songs, oracles=True, verify=1, save_estimates="wav"))
    return root, result


@pytest.fixture
def run(tmp_path: Path, whole: tuple[Path, EvaluationResult]) -> Path:
    """A copy of the whole run that a test may damage."""
    return shutil.copytree(whole[0], tmp_path / "run")


def _test_tracks(songs: Path) -> list[str]:
    return sorted(path.name for path in (songs / "test").iterdir())


def _stem(songs: Path, track: str, stem: str) -> np.ndarray:
    return soundfile.read(songs / "test" / track / f"{stem}.wav", dtype="float64")[0]


def test_museval_itself_finds_the_same_numbers(whole: tuple[Path, EvaluationResult]) -> None:
    (record,) = whole[1].lead.verified
    assert record["agrees"]
    # Half of the files' last decimal, and museval's own spread on ill-conditioned filters.
    assert record["difference_db"]["SDR"] < 5.1e-6
    assert record["largest_db"] < 1e-4


def test_the_mixtures_sdr_is_the_energy_ratio(
    whole: tuple[Path, EvaluationResult], songs: Path
) -> None:
    for track in _test_tracks(songs):
        scores = read_scores(whole[0] / "scores" / "mixture" / "test" / f"{track}.json")
        mixture = _stem(songs, track, "mixture")
        for source in MUSDB18_SOURCES:
            stem = _stem(songs, track, source)
            for second, found in enumerate(scores.values[source]["SDR"]):
                part = slice(second * 44100, (second + 1) * 44100)
                if np.isfinite(found):
                    noise = (mixture[part] - stem[part]) ** 2
                    truth = 10 * np.log10((stem[part] ** 2).sum() / noise.sum())
                    # Half of the file's last decimal; the sums are of float32 samples.
                    assert found == pytest.approx(truth, abs=1e-5)


def test_kept_estimates_are_what_was_scored(
    whole: tuple[Path, EvaluationResult], songs: Path
) -> None:
    root, _ = whole
    track = _test_tracks(songs)[0]
    scores = read_scores(root / "scores" / NAME / "test" / f"{track}.json")
    kept, rate = soundfile.read(root / "estimates" / NAME / "test" / track / "drums.wav")
    (card,) = read_cards(root / "estimates" / NAME)
    assert f"test/{track}" in card["files"]
    stem = _stem(songs, track, "drums")
    assert rate == 44100
    assert kept.shape == stem.shape == (round(SECONDS * 44100), 2)
    noise = (kept[:44100] - stem[:44100]) ** 2
    truth = 10 * np.log10((stem[:44100] ** 2).sum() / noise.sum())
    assert scores.values["drums"]["SDR"][0] == pytest.approx(truth, abs=1e-5, nan_ok=True)


def test_oracles_bound_the_mixture_from_above(whole: tuple[Path, EvaluationResult]) -> None:
    summaries = whole[1].summaries
    assert list(summaries) == [NAME, "mixture", "irm", "ibm"]
    for source in MUSDB18_SOURCES:
        mixture = summaries["mixture"].scores[source]["SDR"].median
        for oracle in ("irm", "ibm"):
            bound = summaries[oracle].scores[source]["SDR"].median
            assert bound is not None
            assert mixture is not None
            assert bound > mixture + 5


def test_the_summary_names_checkpoint_songs_and_settings(
    whole: tuple[Path, EvaluationResult], songs: Path
) -> None:
    root, result = whole
    summary = read_summary(root / "scores" / NAME / "summary.json")
    assert summary == result.lead
    recorded = json.loads((root / "checkpoint" / "config.json").read_text())
    assert summary.system.checkpoint == recorded["hash"]
    assert summary.system.settings == {"overlap_ratio": 0.5}
    said = dict(summary.system.provenance)
    assert said.pop("card") == card_of(recorded["provenance"], recorded["hash"])
    assert said == {"git_commit": "0123abc", "training_data_hash": "77"}
    assert summary.system.seed == 0
    assert summary.scenario == "sources"
    assert summary.data.kind == "synthetic"
    assert not summary.data.comparable
    assert [track.name for track in summary.tracks] == _test_tracks(songs)
    assert all(other.data == summary.data for other in result.summaries.values())


def test_figures_for_a_tracker_and_for_a_terminal(whole: tuple[Path, EvaluationResult]) -> None:
    result = whole[1]
    metrics = result.lead.metrics
    assert metrics["test/vocals/SDR"] == result.lead.scores["vocals"]["SDR"].median
    assert metrics["test/average/uSDR"] == result.lead.average["uSDR"].mean
    assert "mixture" in result.table
    assert "difference" in result.table
    assert all(path.is_file() for path in result.files)


def test_the_report_plays_an_excerpt_without_model_or_songs(run: Path, tmp_path: Path) -> None:
    shutil.rmtree(run / "checkpoint")
    html = write_report(_config(run, tmp_path / "no songs")).page.read_text()
    assert html.count("<audio") == 1 + 2 * len(MUSDB18_SOURCES)
    assert f"<title>{NAME} on Synthetic songs" in html


def test_a_second_evaluation_scores_nothing_and_says_the_same(
    run: Path, songs: Path, whole: tuple[Path, EvaluationResult]
) -> None:
    files = sorted((run / "scores").rglob("test/*.json"))
    before = {file: file.stat().st_mtime_ns for file in files}
    again = evaluate(_config(run, songs, oracles=True, verify=1, save_estimates="wav"))
    assert again.scored == 0
    assert {file: file.stat().st_mtime_ns for file in files} == before
    place = {"command": again.lead.command}  # which names the copied folder
    assert again.summaries == {
        name: summary.model_copy(update=place) for name, summary in whole[1].summaries.items()
    }


def test_another_checkpoint_is_scored_anew_but_not_the_mixture(run: Path, songs: Path) -> None:
    old = read_summary(run / "scores" / NAME / "summary.json")
    _publish_network(run / "checkpoint", 1)
    result = evaluate(_config(run, songs))
    assert result.scored == 3
    assert result.lead.system.checkpoint != old.system.checkpoint
    assert result.lead.scores != old.scores


def test_only_damaged_and_missing_files_are_made_again(
    run: Path, songs: Path, whole: tuple[Path, EvaluationResult]
) -> None:
    tracks = _test_tracks(songs)
    scores = run / "scores" / NAME / "test"
    (scores / f"{tracks[0]}.json").write_text("{")
    (run / "scores" / "mixture" / "keys" / "test" / f"{tracks[1]}.json").unlink()
    shutil.rmtree(run / "estimates" / NAME / "test" / tracks[2])
    result = evaluate(_config(run, songs, report_audio=0, save_estimates="wav"))
    assert result.scored == 3
    assert result.lead.scores == whole[1].lead.scores
    assert (run / "estimates" / NAME / "test" / tracks[2] / "bass.wav").is_file()
    assert not list((run / "estimates" / "excerpts").rglob("*.wav"))  # of no report any more


def test_a_failed_track_is_named_and_the_others_are_summarised(
    run: Path, songs: Path, tmp_path: Path
) -> None:
    copy = shutil.copytree(songs, tmp_path / "songs")
    bad, *_ = tracks = _test_tracks(copy)
    stem = copy / "test" / bad / "bass.wav"
    good = stem.read_bytes()
    wave, rate = soundfile.read(stem, dtype="float32")
    wave[1000] = np.nan
    soundfile.write(stem, wave, rate, subtype="FLOAT")
    _publish_network(run / "checkpoint", 1)
    result = evaluate(_config(run, copy, verify=3))
    for name in (NAME, "mixture"):
        summary = read_summary(run / "scores" / name / "summary.json")
        assert summary == result.summaries[name]
        assert [track.name for track in summary.tracks] == tracks[1:]
        assert list(summary.failed) == [bad]
        assert "bass is not finite" in summary.failed[bad]
    assert [record["track"] for record in result.lead.verified] == tracks[1:]
    assert (result.lead.metrics["test/tracks"], result.lead.metrics["test/failed"]) == (2, 1)
    assert result.lead.data.hash != read_summary(run / "scores/irm/summary.json").data.hash
    told = scores_result(_config(run, copy))
    assert told.exit_code == 1
    assert "2 of 3 tracks: BSS Eval" in told.text
    assert f"  {bad}: " in told.text
    kept = [(run / "scores" / NAME / "test" / f"{track}.json") for track in tracks[1:]]
    before = [file.stat().st_mtime_ns for file in kept]
    stem.write_bytes(good)
    whole = evaluate(_config(run, copy))
    assert whole.scored == 1  # what was done is not done again
    assert scores_result(_config(run, copy)).exit_code == 0
    assert whole.lead.data == read_summary(run / "scores/irm/summary.json").data
    assert [file.stat().st_mtime_ns for file in kept] == before


def test_disagreement_with_museval_is_loud(run: Path, songs: Path) -> None:
    for file in (run / "scores" / NAME / "test").glob("*.json"):
        scores = json.loads(file.read_text())
        scores["targets"][1]["frames"][-1]["metrics"]["SIR"] += 0.001
        file.write_text(json.dumps(scores))
        key_file = run / "scores" / NAME / "keys" / "test" / file.name
        key = json.loads(key_file.read_text())
        key["facts"] = {"sha256": hashlib.sha256(file.read_bytes()).hexdigest()}
        key_file.write_text(json.dumps(key))
    with pytest.raises(StageError, match=r"1 of 1 tracks differ from museval.*\n.*SIR 1\.0e-03 dB"):
        evaluate(_config(run, songs, verify=1, report_audio=0))
    assert not (run / "scores" / NAME / "summary.json").exists()


def test_estimates_of_another_system_are_scored_alike(
    run: Path, songs: Path, whole: tuple[Path, EvaluationResult]
) -> None:
    folder = run / "estimates" / NAME
    result = evaluate(_config(run, songs, estimates_dir=str(folder), run_id="theirs"))
    assert result.lead.name == "theirs"
    assert result.lead.system.kind == "estimates"
    assert result.lead.scores == whole[1].lead.scores  # float wav keeps what was scored
    for short in folder.rglob("*.wav"):  # scored as if silence followed, as museval does
        wave, rate = soundfile.read(short)
        soundfile.write(short, wave[: rate + 1000], rate, subtype="FLOAT")
    shorter = evaluate(_config(run, songs, estimates_dir=str(folder), run_id="theirs"))
    # Where an estimate has ended it is silent, and its frames are no numbers.
    assert shorter.lead.nan_frames["bass"] >= 3 * (round(SECONDS) - 2)
    (folder / "test" / _test_tracks(songs)[1] / "other.wav").unlink()
    lacking = evaluate(_config(run, songs, estimates_dir=str(folder), run_id="theirs")).lead
    assert list(lacking.failed) == [_test_tracks(songs)[1]]
    assert lacking.data == shorter.lead.data
    for other in folder.rglob("other.wav"):
        other.unlink()
    with pytest.raises(StageError, match=r"3 of 3 failed(.*\n)+.*no estimate of other, found: "):
        evaluate(_config(run, songs, estimates_dir=str(folder), run_id="theirs"))


def test_estimates_without_a_track_or_under_a_wrong_name_are_refused_at_once(
    run: Path, songs: Path
) -> None:
    folder = run / "estimates" / NAME
    track = _test_tracks(songs)[1]
    (folder / "test" / track).rename(folder / "test" / "misnamed")
    with pytest.raises(DataError, match=rf"no estimates of {track} \(1 of 3 tracks\).*misnamed"):
        evaluate(_config(run, songs, estimates_dir=str(folder), run_id="theirs"))
    assert not (run / "scores" / "theirs").exists()


def test_another_checkpoint_needs_a_name_of_its_own_and_both_stay(run: Path, songs: Path) -> None:
    other = run / "other"
    _publish_network(other, 1)
    with pytest.raises(ConfigError, match=rf"run_id: '{NAME}' is the name of checkpoint [0-9a-f]"):
        evaluate(_config(run, songs, checkpoint=str(other)))
    assert (run / "scores" / NAME / "summary.json").is_file()
    second = evaluate(_config(run, songs, checkpoint=str(other), run_id="second", report_audio=0))
    assert second.scored == 3
    first = read_summary(run / "scores" / NAME / "summary.json")
    assert second.lead.system.recipe == first.system.recipe
    assert (second.lead.system.seed, first.system.seed) == (1, 0)
    html = write_report(_config(run, songs)).page.read_text()
    assert "runs with seeds 0, 1 and otherwise the same settings" in html


def test_a_subset_and_a_single_source_are_scored(run: Path, songs: Path) -> None:
    config = _config(run, songs, run_id="part", report_audio=0)
    for targets, scenario in ((("vocals", "bass"), "sources"), (("drums",), "target_rest")):
        train = config.train.model_copy(update={"target_names": targets})
        result = evaluate(config.model_copy(update={"train": train}))
        assert result.lead.sources == list(targets)
        assert result.lead.scenario == scenario
        assert all(result.lead.scores[t]["SIR"].median is not None for t in targets)


def test_sets_of_sources_are_scored_and_reported(run: Path, songs: Path) -> None:
    config = _config(run, songs, run_id="sets", report_audio=0, sums=("vocals+bass",))
    lead = evaluate(config).lead
    assert lead.sources == [*MUSDB18_SOURCES, "vocals+bass"]
    singles = [lead.scores[name]["SDR"].median for name in MUSDB18_SOURCES]
    assert lead.average["SDR"].median == pytest.approx(np.mean(np.array(singles, float)))
    html = write_report(config).page.read_text()
    assert "vocals+bass" in html
    assert "A set of sources is scored as one source, their sum" in html


@pytest.mark.parametrize("name", ["mixture", "irm", "excerpts", "reference"])
def test_a_name_that_means_something_else_is_refused(run: Path, songs: Path, name: str) -> None:
    with pytest.raises(ConfigError, match=f"run_id: got '{name}'"):
        evaluate(_config(run, songs, run_id=name))


def test_a_missing_checkpoint_split_or_folder_is_named(run: Path, songs: Path) -> None:
    with pytest.raises(CheckpointError, match="nowhere"):
        evaluate(_config(run, songs, checkpoint="/nowhere"))
    with pytest.raises(DataError, match=r"split: no valid track in .*tracks of: test, train"):
        evaluate(_config(run, songs, split="valid"))
    with pytest.raises(DataError, match=r"estimates_dir .*no folder test in it"):
        evaluate(_config(run, songs, estimates_dir=str(songs / "train")))
    assert (run / "scores" / NAME / "summary.json").is_file()  # nothing was begun


def test_scores_on_a_gpu_are_refused_at_once_where_the_cluster_has_none(
    tmp_path: Path, songs: Path
) -> None:
    config = _config(tmp_path / "run", songs, score_device="cuda")
    with pytest.raises(ConfigError, match=r"score_device: got cuda; .* has 0 of 0\.125 GPUs"):
        evaluate(config)
    assert not (tmp_path / "run" / "scores").exists()
