"""One track scored: museval's own scenarios, whole-song scores, estimates with every fault."""

from __future__ import annotations

import json
import shutil
from collections.abc import Iterable
from dataclasses import replace
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import numpy as np
import pytest
import soundfile

from lasaft.config import MUSDB18_SOURCES
from lasaft.errors import AudioError, ConfigError, DataError
from lasaft.files import file_sha256
from lasaft.metrics import METRICS, bleedless_fullness, log_wmse, si_sar, usdr
from pipeline.config.evaluate import set_problems
from pipeline.data.songs.tracks import Track, list_tracks, read_track
from pipeline.data.songs.wanted import Wanted
from pipeline.evaluation.estimates import oracle_estimates
from pipeline.evaluation.museval_check import verify_track
from pipeline.evaluation.scenarios import ACCOMPANIMENT, scenario_of
from pipeline.evaluation.score_files import (
    UNITLESS,
    WHOLE_METRICS,
    FrameScores,
    read_key,
    read_scores,
    write_key,
)
from pipeline.evaluation.score_track import SystemJob, TrackJob, score_track
from pipeline.evaluation.summary import Kind
from tests.helpers.bss_truth import linalg_errors_found, museval_package
from tests.helpers.songs import make_musdb

RATE = 44100
SECONDS = 2.5


@pytest.fixture(scope="module")
def track(tmp_path_factory: pytest.TempPathFactory) -> Track:
    root = make_musdb(
        tmp_path_factory.mktemp("data") / "songs", train=0, valid=0, test=1, seconds=SECONDS
    )
    (found,) = list_tracks(root, Wanted(MUSDB18_SOURCES))
    return found


def _stem(track: Track, name: str) -> np.ndarray:
    return soundfile.read(track.path / f"{name}.wav", dtype="float32")[0]


def _estimates(track: Track, folder: Path, names: Iterable[str]) -> dict[str, np.ndarray]:
    """Write estimates [sample, channel] that leak and hiss, and return them."""
    random = np.random.default_rng(0)
    made: dict[str, np.ndarray] = {}
    for number, name in enumerate(names):
        wave = 0.9 * _stem(track, name) + 0.05 * _stem(track, "mixture")
        wave += 0.001 * (1 + number) * random.standard_normal(wave.shape)
        made[name] = wave.astype(np.float32)
        _write(folder, track, name, made[name])
    return made


def _write(folder: Path, track: Track, name: str, wave: np.ndarray, rate: int = RATE) -> Path:
    path = folder / "test" / track.name / f"{name}.wav"
    path.parent.mkdir(parents=True, exist_ok=True)
    soundfile.write(path, wave, rate, subtype="FLOAT")
    return path


def _job(
    track: Track,
    root: Path,
    sources: tuple[str, ...] = MUSDB18_SOURCES,
    wanted: str = "sources",
    *,
    kind: Kind = "estimates",
    sets: tuple[str, ...] = (),
) -> TrackJob:
    place = root / "theirs" / "test" if kind == "estimates" else None
    system = SystemJob("theirs", "theirs", kind, place, {"kind": kind})
    return TrackJob(
        track=track, file="song", sources=sources, systems=(system,),
        scenario=scenario_of(wanted, sources), scores=root / "scores", estimates=root / "kept",
        sets=sets,
    )  # fmt: skip


def _scored(job: TrackJob) -> FrameScores:
    score_track(job)
    return read_scores(job.score_file(job.systems[0]))


def _musevals(track: Track, estimates: dict[str, np.ndarray]) -> dict[str, dict[str, np.ndarray]]:
    """Return what ``museval.eval_mus_track`` makes of the estimates, by target and metric."""
    museval = museval_package()
    audio = {name: _stem(track, name).astype(np.float64) for name in track.sources}
    audio[ACCOMPANIMENT] = np.sum([audio[n] for n in track.sources if n != "vocals"], axis=0)
    targets = {name: SimpleNamespace(audio=wave) for name, wave in audio.items()}
    whole: Any = SimpleNamespace(name=track.name, subset="test", rate=RATE, targets=targets)
    tried = {name: wave.astype(np.float64) for name, wave in estimates.items()}
    with linalg_errors_found(), np.errstate(all="ignore"):
        store = museval.eval_mus_track(whole, tried)
    content = json.loads(store.json)
    return {
        target["name"]: {
            m: np.array([frame["metrics"][m] for frame in target["frames"]]) for m in METRICS
        }
        for target in content["targets"]
    }


def _assert_same(ours: FrameScores, theirs: dict[str, dict[str, np.ndarray]]) -> None:
    assert set(ours.sources) == set(theirs)
    for name, metrics in theirs.items():
        for metric, truth in metrics.items():
            # Both files round to five decimals; museval's own spread on such signals is 1e-5.
            np.testing.assert_allclose(
                ours.values[name][metric], truth, rtol=0, atol=3e-5, err_msg=f"{name} {metric}"
            )


# Two sources where museval is asked: the time that its filters take grows with the cube.
TWO = ("vocals", "drums")


def test_vocals_against_accompaniment_is_musevals_scenario(track: Track, tmp_path: Path) -> None:
    estimates = _estimates(track, tmp_path / "theirs", TWO)
    rest = _stem(track, "mixture").astype(np.float64) - estimates["vocals"]
    job = _job(track, tmp_path, TWO, "vocals_accompaniment")
    scores = _scored(job)
    _assert_same(scores, _musevals(track, {**estimates, ACCOMPANIMENT: rest}))
    assert scores.sources == (*TWO, ACCOMPANIMENT)
    assert verify_track(job, job.systems[0])["agrees"]
    plain = _scored(_job(track, tmp_path, TWO))
    np.testing.assert_array_equal(scores.values["vocals"]["SDR"], plain.values["vocals"]["SDR"])
    assert np.abs(scores.values["vocals"]["SIR"] - plain.values["vocals"]["SIR"]).max() > 0.1


def test_with_all_sources_the_accompaniment_is_the_sum_of_their_estimates(
    track: Track, tmp_path: Path
) -> None:
    estimates = _estimates(track, tmp_path / "theirs", MUSDB18_SOURCES)
    found = _scored(_job(track, tmp_path, wanted="vocals_accompaniment"))
    rest = np.sum([estimates[n].astype(np.float64) for n in MUSDB18_SOURCES if n != "vocals"], 0)
    truth = np.sum(
        [_stem(track, n).astype(np.float64) for n in MUSDB18_SOURCES if n != "vocals"], 0
    )
    second = slice(0, RATE)
    sdr = 10 * np.log10((truth[second] ** 2).sum() / ((truth - rest)[second] ** 2).sum())
    assert found.values[ACCOMPANIMENT]["SDR"][0] == pytest.approx(sdr, abs=1e-5)


def test_an_accompaniment_of_their_own_is_what_is_scored(track: Track, tmp_path: Path) -> None:
    (vocals,) = _estimates(track, tmp_path / "theirs", ["vocals"]).values()
    rest = (0.8 * _stem(track, "mixture")).astype(np.float32)
    _write(tmp_path / "theirs", track, ACCOMPANIMENT, rest)
    scores = _scored(_job(track, tmp_path, ("vocals",), "vocals_accompaniment"))
    _assert_same(scores, _musevals(track, {"vocals": vocals, ACCOMPANIMENT: rest}))


def test_a_single_source_is_scored_against_the_sum_of_the_others(
    track: Track, tmp_path: Path
) -> None:
    (vocals,) = _estimates(track, tmp_path / "theirs", ["vocals"]).values()
    rest = _stem(track, "mixture").astype(np.float64) - vocals
    theirs = _musevals(track, {"vocals": vocals, ACCOMPANIMENT: rest})
    job = _job(track, tmp_path, ("vocals",))
    _assert_same(_scored(job), {"vocals": theirs["vocals"]})
    assert verify_track(job, job.systems[0])["agrees"]
    assert _scored(_job(track, tmp_path, ("drums",), kind="irm")).sources == ("drums",)
    mixture = _scored(_job(track, tmp_path, ("drums",), kind="mixture")).values["drums"]["SAR"]
    assert (mixture > 80).all()  # nothing in the mixture is foreign to drums and the rest


def test_a_set_is_scored_as_one_source_against_the_rest(track: Track, tmp_path: Path) -> None:
    estimates, name = _estimates(track, tmp_path / "theirs", TWO), "drums+vocals"
    job = _job(track, tmp_path, TWO, sets=(name,))
    scores = _scored(job)
    assert scores.sources == (*TWO, name)
    assert verify_track(job, job.systems[0])["agrees"]
    tried = estimates["vocals"].astype(np.float64) + estimates["drums"]
    truth = _stem(track, "vocals").astype(np.float64) + _stem(track, "drums")
    second = slice(0, RATE)
    sdr = 10 * np.log10((truth[second] ** 2).sum() / ((truth - tried)[second] ** 2).sum())
    assert scores.values[name]["SDR"][0] == pytest.approx(sdr, abs=1e-5)
    _write(tmp_path / "theirs", track, name, (0.5 * tried).astype(np.float32))
    of_its_own = _scored(job)  # an estimate of the sum itself
    assert of_its_own.whole[name]["uSDR"] == pytest.approx(6.0, abs=0.3)
    assert of_its_own.whole["vocals"] == scores.whole["vocals"]


def test_each_source_against_the_rest_has_the_sdr_that_it_has_among_all(
    track: Track, tmp_path: Path
) -> None:
    _estimates(track, tmp_path / "theirs", TWO)
    job = _job(track, tmp_path, TWO, "target_rest")
    alone, together = _scored(job), _scored(_job(track, tmp_path, TWO))
    assert verify_track(job, job.systems[0])["tolerance_db"]
    for name in TWO:
        np.testing.assert_array_equal(alone.values[name]["SDR"], together.values[name]["SDR"])
        assert (alone.values[name]["SIR"] != together.values[name]["SIR"]).all()


def test_the_ideal_mask_of_a_set_is_of_its_sources_together(track: Track) -> None:
    audio, both = read_track(track), "drums+vocals"
    truth = audio.sources[:2].sum(dim=0).numpy()

    def of(kind: Any) -> tuple[float, float]:
        waves = oracle_estimates(audio, MUSDB18_SOURCES, (*TWO, both), kind)
        tried = waves[both], waves["vocals"] + waves["drums"]
        together, summed = (float(usdr([truth], [wave])[0]) for wave in tried)
        return together, summed

    together, summed = of("irm")
    assert together == pytest.approx(summed, abs=1e-4)
    together, summed = of("ibm")  # where both together are more than half
    assert together > summed + 0.01


@pytest.mark.parametrize(
    ("name", "sources"),
    [
        ("vocals", MUSDB18_SOURCES),
        ("vocals+flute", MUSDB18_SOURCES),
        ("vocals+drums+bass+other", MUSDB18_SOURCES),
        ("vocals+bass", TWO),
        ("bass+drums,drums+bass", MUSDB18_SOURCES),
    ],
)
def test_what_is_no_set_of_the_scored_sources_is_refused(
    name: str, sources: tuple[str, ...]
) -> None:
    (problem,) = set_problems(name.split(","), sources, MUSDB18_SOURCES)
    allowed = "allowed: different sums of two sources or more, but not of all: vocals+drums"
    assert str(problem).startswith(f"sums: got {name.rsplit(',', maxsplit=1)[-1]}, {allowed}")


def test_a_subset_is_scored_among_itself_as_museval_does(track: Track, tmp_path: Path) -> None:
    estimates = _estimates(track, tmp_path / "theirs", ["drums", "bass"])
    _assert_same(_scored(_job(track, tmp_path, ("drums", "bass"))), _musevals(track, estimates))


def test_the_accompaniment_needs_vocals() -> None:
    with pytest.raises(ConfigError, match=r"scenario: got vocals_accompaniment.*not with drums"):
        scenario_of("vocals_accompaniment", ("drums",))


def test_whole_song_scores_stand_in_the_file_and_museval_reads_it(
    track: Track, tmp_path: Path
) -> None:
    estimates = _estimates(track, tmp_path / "theirs", TWO)
    scores = _scored(_job(track, tmp_path, TWO))
    for name, wave in estimates.items():
        s, e = _stem(track, name).astype(np.float64), wave.astype(np.float64)
        usdr = 10 * np.log10(((s**2).sum() + 1e-7) / (((s - e) ** 2).sum() + 1e-7))
        target = (e * s).sum() / (s**2).sum() * s
        si_sdr = 10 * np.log10((target**2).sum() / ((target - e) ** 2).sum())
        # Half of the file's last decimal.
        assert scores.whole[name]["uSDR"] == pytest.approx(usdr, abs=5.1e-6)
        assert scores.whole[name]["SI-SDR"] == pytest.approx(si_sdr, abs=5.1e-6)
        weighted = log_wmse([s.T], [e.T], _stem(track, "mixture").T, RATE)
        sounds = weighted, *bleedless_fullness([s.T], [e.T], RATE)
        for metric, value in zip(UNITLESS, sounds, strict=True):
            assert scores.whole[name][metric] == pytest.approx(value[0], abs=5.1e-6)
    sar = si_sar([_stem(track, name).T for name in TWO], [wave.T for wave in estimates.values()])
    assert [scores.whole[name]["SI-SAR"] for name in TWO] == pytest.approx(sar, abs=5.1e-6)
    store = museval_package().EvalStore()
    store.add_eval_dir(str(tmp_path / "scores" / "theirs"))
    read = store.agg_frames_tracks_scores().to_dict()
    median = np.nanmedian(scores.values["drums"]["SIR"])
    assert read["drums", "SIR"] == pytest.approx(median, abs=1e-9)


def test_scores_of_before_are_kept_with_what_they_have_until_all_is_asked_for(
    track: Track, tmp_path: Path
) -> None:
    _estimates(track, tmp_path / "theirs", TWO)
    job = _job(track, tmp_path, TWO)
    whole = _scored(job).whole
    file, key_file = job.score_file(job.systems[0]), job.key_file(job.systems[0])
    content = json.loads(file.read_text())
    first = {s: {m: row[m] for m in ("uSDR", "SI-SDR")} for s, row in whole.items()}
    file.write_text(json.dumps({**content, "whole_song": first}))
    key = read_key(key_file)["key"]
    write_key(key_file, key | {"scoring": 2}, {"sha256": file_sha256(file)})
    assert score_track(job).scored == 0
    assert read_scores(file).whole == first
    again = replace(job, rescore=True)
    assert [score_track(again).scored for _ in range(2)] == [1, 0]
    assert read_scores(file).whole == whole
    assert read_key(key_file)["key"] == key


def test_longer_estimates_are_cut_and_shorter_ones_end_in_silence(
    track: Track, tmp_path: Path
) -> None:
    estimates = _estimates(track, tmp_path / "theirs", TWO)
    plain = _scored(_job(track, tmp_path, TWO))
    for name, wave in estimates.items():
        _write(tmp_path / "theirs", track, name, np.concatenate([wave, wave[:5000]]))
    job = _job(track, tmp_path / "longer", TWO)
    (tmp_path / "longer").mkdir()
    (tmp_path / "theirs").rename(tmp_path / "longer" / "theirs")
    longer = _scored(job)
    assert longer.whole == plain.whole
    for name in TWO:
        np.testing.assert_array_equal(longer.values[name]["SAR"], plain.values[name]["SAR"])
    for name, wave in estimates.items():
        _write(tmp_path / "shorter" / "theirs", track, name, wave[: RATE + 100])
    shorter = _scored(_job(track, tmp_path / "shorter", TWO))
    for name, wave in estimates.items():
        s, e = _stem(track, name).astype(np.float64), wave.astype(np.float64)
        e[RATE + 100 :] = 0
        usdr = 10 * np.log10(((s**2).sum() + 1e-7) / (((s - e) ** 2).sum() + 1e-7))
        assert shorter.whole[name]["uSDR"] == pytest.approx(usdr, abs=5.1e-6)
    one = _scored(_job(track, tmp_path / "shorter", TWO[:1]))  # against the sum of the others
    for metric in set(WHOLE_METRICS) - {"SI-SAR"}:  # which is about all sources, as SAR is
        assert one.whole[TWO[0]][metric] == shorter.whole[TWO[0]][metric]


@pytest.mark.parametrize(
    ("fault", "message"),
    [
        ("one shorter", r"bass\.wav: 100 samples, but the estimate of vocals has"),
        ("mono", r"bass\.wav: 1 channels; allowed: the track's 2"),
        ("rate", r"bass\.wav: 22050 Hz; allowed: the track's 44100 Hz"),
        ("nan", r"bass\.wav: holds a value that is not a finite number"),
        ("damaged", r"bass\.wav: is not an audio file that can be read"),
        (
            "cut short",
            r"bass\.wav: is cut short: 1000 bytes are missing at its end; .* whole files",
        ),
        ("missing", r"no estimate of bass, found: drums\.wav, .*; allowed: bass\.wav"),
        ("misnamed", r"no estimate of bass, found: Bass guitar\.wav, drums\.wav, "),
        ("twice", r"several estimates of bass: bass\.wav, bass\.flac; allowed: one"),
        ("silent", r"estimates\[2\] is silent.*2 is bass"),
    ],
)
def test_a_faulty_estimate_is_named(track: Track, tmp_path: Path, fault: str, message: str) -> None:
    wave = _estimates(track, tmp_path / "theirs", MUSDB18_SOURCES)["bass"]
    path = tmp_path / "theirs" / "test" / track.name / "bass.wav"
    match fault:
        case "one shorter":
            soundfile.write(path, wave[:100], RATE)
        case "mono":
            soundfile.write(path, wave[:, 0], RATE)
        case "rate":
            soundfile.write(path, wave, 22050)
        case "nan":
            soundfile.write(path, np.full_like(wave, np.nan), RATE, subtype="FLOAT")
        case "damaged":
            path.write_bytes(b"RIFF")
        case "cut short":
            path.write_bytes(path.read_bytes()[:-1000])
        case "missing":
            path.unlink()
        case "misnamed":
            path.rename(path.with_name("Bass guitar.wav"))
        case "twice":
            soundfile.write(path.with_suffix(".flac"), wave, RATE)
        case _:
            soundfile.write(path, np.zeros_like(wave), RATE)
    with pytest.raises(AudioError, match=message):
        score_track(_job(track, tmp_path))
    assert not list((tmp_path / "scores").rglob("*.json"))


@pytest.mark.parametrize("right", [0, -1])
def test_a_silent_source_has_no_scores_and_the_others_theirs_among_themselves(
    tmp_path: Path, right: int
) -> None:
    """Silent is what museval calls so: channels that add up to zero at every sample."""
    root = make_musdb(tmp_path / "songs", train=0, valid=0, test=1, seconds=2.0)
    (track,) = list_tracks(root, Wanted(MUSDB18_SOURCES))
    estimates = _estimates(track, tmp_path / "theirs", (*TWO, "bass"))
    left = np.random.default_rng(3).integers(-3000, 3000, 2 * RATE, np.int16) * abs(right)
    soundfile.write(track.path / "bass.wav", np.stack([left, right * left], 1), RATE)
    job = _job(track, tmp_path, (*TWO, "bass"))
    scores = _scored(job)
    assert all(np.isnan(scores.values["bass"][metric]).all() for metric in METRICS)
    mixture, leaked = _stem(track, "mixture").astype(np.float64), estimates.pop("bass")
    below = 10 * np.log10((mixture**2).sum() / (leaked.astype(np.float64) ** 2).sum())
    # Half of the file's last decimal.
    leak = pytest.approx(below, abs=5.1e-6)
    assert scores.whole["bass"] == dict.fromkeys(WHOLE_METRICS) | {"leak": leak}
    others = FrameScores({name: scores.values[name] for name in estimates})
    _assert_same(others, _musevals(track, estimates))
    assert verify_track(job, job.systems[0])["agrees"]


def test_of_a_target_that_is_silent_nothing_is_scored(tmp_path: Path) -> None:
    root = make_musdb(tmp_path / "songs", train=0, valid=0, test=1, seconds=2.0)
    (track,) = list_tracks(root, Wanted(MUSDB18_SOURCES))
    _estimates(track, tmp_path / "theirs", MUSDB18_SOURCES)
    soundfile.write(track.path / "drums.wav", np.zeros((2 * RATE, 2)), RATE)
    scores = _scored(_job(track, tmp_path, ("drums",)))
    assert scores.frames == 2
    assert np.isnan(scores.values["drums"]["SDR"]).all()
    assert scores.whole["drums"]["leak"] is not None
    mixture = _scored(_job(track, tmp_path / "mixture", ("drums",), kind="mixture"))
    assert mixture.whole["drums"]["leak"] == pytest.approx(0.0, abs=5.1e-6)


def test_a_track_shorter_than_a_window_is_one_frame(tmp_path: Path) -> None:
    root = make_musdb(tmp_path / "songs", train=0, valid=0, test=1, seconds=2.0)
    (track,) = list_tracks(root, Wanted(MUSDB18_SOURCES))
    for (file,) in track.files:
        wave, rate = soundfile.read(file)
        soundfile.write(file, wave[RATE : RATE + 30000], rate)
    estimates = _estimates(track, tmp_path / "theirs", TWO)
    scores = _scored(_job(track, tmp_path, TWO))
    assert len(scores.values["drums"]["SDR"]) == 1
    _assert_same(scores, _musevals(track, estimates))


def test_a_score_file_of_a_wrong_whole_song_table_is_named(track: Track, tmp_path: Path) -> None:
    _estimates(track, tmp_path / "theirs", TWO)
    job = _job(track, tmp_path, TWO)
    score_track(job)
    file = job.score_file(job.systems[0])
    content = json.loads(file.read_text())
    for row in ({"uSDR": 1.0}, 3, {"uSDR": "x", "SI-SDR": 1}):
        file.write_text(json.dumps({**content, "whole_song": {"drums": row}}))
        with pytest.raises(DataError, match=r"song\.json: whole_song is not a table of uSDR, SI"):
            read_scores(file)


def test_a_song_that_was_changed_in_place_is_scored_anew_and_told(
    track: Track, tmp_path: Path
) -> None:
    root = shutil.copytree(track.path.parents[1], tmp_path / "songs")
    (own,) = list_tracks(root, Wanted(MUSDB18_SOURCES))
    job = _job(own, tmp_path, kind="mixture")
    first = score_track(job)
    assert (first.scored, first.changed) == (1, False)
    assert score_track(job).scored == 0
    wave, rate = soundfile.read(own.path / "vocals.wav", dtype="int16")
    soundfile.write(own.path / "vocals.wav", wave // 2, rate)  # as many bytes
    again = score_track(job)
    assert (again.scored, again.changed) == (1, True)
    job.score_file(job.systems[0]).write_text("damaged")  # that is no change of the song
    assert score_track(job).changed is False
