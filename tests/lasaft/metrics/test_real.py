"""On the real MUSDB18 excerpt BSS Eval gives museval's numbers, fresh and as published."""

from __future__ import annotations

import os
from pathlib import Path

import numpy as np
import pytest

from lasaft.metrics import METRICS, bss_eval, read_museval_json
from tests.helpers.bss_truth import differences, museval_package, museval_table, table

ROUNDING_DB = 5.001e-6  # the published file has five decimals


@pytest.fixture(scope="module")
def folder() -> Path:
    """Return the folder of the excerpt, or skip where it is not at hand."""
    root = os.environ.get("LASAFT_REAL_DATA")
    if not root:
        pytest.skip("LASAFT_REAL_DATA does not name a folder with musdb18-sample")
    return Path(root) / "musdb18-sample"


@pytest.fixture(scope="module")
def stems(folder: Path) -> dict[str, np.ndarray]:
    """Return the excerpt's targets and mixture as musdb decodes them, [channel, sample]."""
    musdb = museval_package("musdb")
    track = musdb.DB(root=str(folder), is_wav=False, subsets="train").tracks[0]
    decoded = {name: target.audio.T for name, target in track.targets.items()}
    return {**decoded, "mixture": track.audio.T}


def test_published_scores_of_the_excerpt_are_reached(
    folder: Path, stems: dict[str, np.ndarray]
) -> None:
    """museval's own regression file: uniform noise as vocals and as accompaniment, seed 0."""
    random = np.random.RandomState(0)
    shape = stems["mixture"].T.shape
    noise = {name: random.random_sample(shape).T for name in ("vocals", "accompaniment")}
    (file,) = folder.glob("*.json")
    names, published = read_museval_json(file.read_bytes())
    assert names == ("vocals", "accompaniment")
    ours = bss_eval([stems[n] for n in names], [noise[n] for n in names])
    assert ours.sdr.shape == (2, 6)
    assert differences(table(ours), table(published)).max() < ROUNDING_DB


def test_real_stems_stay_within_what_museval_differs_from_itself(
    stems: dict[str, np.ndarray],
) -> None:
    """Music makes ill-conditioned systems (6e10), where museval's own rounding shows.

    museval against itself, with sources and channels in another order and another scale: the
    order changes the rounding of its solver, the scale that of its correlations. The difference
    to ours holds the rounding of both, hence twice the spread.
    """
    names = ["vocals", "bass"]
    seconds = slice(0, int(3.2 * 44100))
    references = np.stack([stems[name][:, seconds] for name in names])
    noise = 0.01 * np.random.default_rng(0).standard_normal(references.shape)
    estimates = references + 0.1 * references[::-1] + noise
    theirs = museval_table(references, estimates, window=44100, hop=44100)
    again = museval_table(
        3 * references[::-1, ::-1], 3 * estimates[::-1, ::-1], window=44100, hop=44100
    )
    spread = differences(again[:, ::-1], theirs)
    gaps = differences(table(bss_eval(references, estimates)), theirs)
    report = dict(zip(METRICS, zip(gaps, spread, strict=True), strict=True))
    assert gaps[0] < 1e-9, report
    assert np.all(gaps[1:] <= np.maximum(2 * spread[1:], 1e-6)), report
