"""What a search draws: repeatable, valid, conditional, equal in size, never the same twice."""

from __future__ import annotations

import random
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from lasaft.config import ModelConfig
from lasaft.errors import ConfigError
from lasaft.network.model import LaSAFT
from pipeline.config import ClusterConfig, RunConfig, SearchConfig, TrainConfig
from pipeline.search.candidates import Checker, InvalidCandidateError, count_parameters
from pipeline.search.capacity import Places, lack_of_a_trial, share_places
from pipeline.search.importance import importances
from pipeline.search.proposals import draw, grid, propose_optuna, propose_random
from pipeline.search.ranking import front, ranked, with_settings
from pipeline.search.space import Constraints, Dimension, Space
from pipeline.search.space_reader import read_space
from pipeline.search.trials import Epoch, Trial

BASE = RunConfig(model=ModelConfig(n_fft=512, hop_length=256, num_frame=32, n_blocks=3))


def _checker(folder: Path, text: str, base: RunConfig = BASE) -> Checker:
    path = folder / "mine.yaml"
    path.write_text(text)
    return Checker(base, read_space(str(path)))


def _trial(number: int, settings: dict[str, Any], sdr: float | None = None, **others: Any) -> Trial:
    curve = () if sdr is None else (Epoch(1, 1.0, sdr, 1.0, {"vocals": sdr}),)
    values = {"parameters": 100, "repeat": 0, "status": "done", "reason": ""} | others
    return Trial(
        name=f"{number:04d}", folder=Path("x"), number=number, settings=settings, config=BASE,
        curve=curve, seconds_per_song=None, **values,
    )  # fmt: skip


def _proposed(checker: Checker, count: int, seed: int = 0) -> list[dict[str, Any]]:
    trials: list[Trial] = []
    for number in range(count):
        candidate = propose_random(checker, seed, trials)
        if candidate is None:
            break
        trials.append(_trial(number, candidate.settings))
    return [trial.settings for trial in trials]


def test_table_1_gives_the_papers_sizes() -> None:
    """Parameter counts of the reference's networks with the paper's settings."""
    base = RunConfig(model=ModelConfig(n_fft=2048))
    sizes = [one.parameters for one in grid(Checker(base, read_space("paper_table1")))]
    assert sizes == [720676, 1069508, 7998436, 1146268, 1495100, 8424028, 2374236]


def test_counting_is_what_the_network_has() -> None:
    model = ModelConfig(n_fft=512, hop_length=256, num_frame=32, n_blocks=3, block="tfc_tdf")
    assert count_parameters(model) == sum(p.numel() for p in LaSAFT(model).parameters())


def test_a_grid_leaves_out_what_does_not_apply(tmp_path: Path) -> None:
    text = """
options:
  block: [tfc, tfc_lasaft]
  num_tdfs: {choices: [2, 4], when: {block: tfc_lasaft}}
  modulation: [film, none]
  pocm_norm: [None, batch_norm]
"""
    cells = [one.settings for one in grid(_checker(tmp_path, text))]
    assert len(cells) == 6
    assert {"block": "tfc", "modulation": "none"} in cells
    assert all("pocm_norm" not in cell for cell in cells)


def test_draws_are_repeatable_and_never_the_same_settings(tmp_path: Path) -> None:
    text = "options: {block: [tfc, tfc_tdf], modulation: [film, gpocm], lr: [0.1, 0.2, 0.3]}"
    checker = _checker(tmp_path, text)
    first, other = _proposed(checker, 20), _proposed(checker, 20, seed=1)
    assert first == _proposed(checker, 20)
    assert first != other
    assert len(first) == 12, "the whole space, then nothing new"
    key = repr
    assert sorted(first, key=key) == sorted(other, key=key)
    assert _proposed(checker, 5) == first[:5]


def test_ranges_are_drawn_within_their_ends_and_as_they_say(tmp_path: Path) -> None:
    text = "options: {lr: {log: [0.0001, 0.1]}, dk: {integer: [4, 64], step: 4}, gain_probability: {uniform: [0, 0.5]}}"  # noqa: E501
    space = _checker(tmp_path, text).space
    source = random.Random(0)
    drawn = {one.name: [one.draw(source) for _ in range(2000)] for one in space.dimensions}
    assert set(drawn["dk"]) == set(range(4, 65, 4))
    logs = np.log10(drawn["lr"])
    # Mean of uniform draws and the share below a third: 2000 draws, 4 standard deviations.
    assert np.mean(logs) == pytest.approx(-2.5, abs=4 * 3 / np.sqrt(12 * 2000))
    assert np.mean(logs < -3) == pytest.approx(1 / 3, abs=4 * np.sqrt(2 / 9 / 2000))
    assert 0 <= min(drawn["gain_probability"]) < max(drawn["gain_probability"]) <= 0.5


def test_what_breaks_a_constraint_is_drawn_again(tmp_path: Path) -> None:
    text = """
options:
  n_blocks: {integer: [1, 7]}
  internal_channels: {integer: [4, 16]}
constraints: {odd: n_blocks, max_parameters: 30000}
"""
    checker = _checker(tmp_path, text, BASE.model_copy(update={"model": ModelConfig(
        n_fft=512, hop_length=256, num_frame=32, n_blocks=3, block="tfc")}))  # fmt: skip
    for settings in _proposed(checker, 4):
        assert settings["n_blocks"] % 2 == 1
        assert (checker.settle(settings).parameters or 0) <= 30000
    with pytest.raises(InvalidCandidateError, match="n_blocks: got 4"):
        checker.settle({"n_blocks": 4, "internal_channels": 4})


def test_constraints_that_nothing_keeps_are_told(tmp_path: Path) -> None:
    checker = _checker(tmp_path, "options: {lr: [0.1, 0.2]}\nconstraints: {max_parameters: 10}")
    told = r"1000 times, such as: max_parameters: a network of .* is above 10"
    with pytest.raises(ConfigError, match=told):
        propose_random(checker, 0, [])
    with pytest.raises(ConfigError, match="no cell of the grid is valid"):
        grid(checker)


def test_networks_are_brought_to_equal_sizes(tmp_path: Path) -> None:
    text = """
options: {block: [tfc, tfc_tdf], modulation: [film, gpocm]}
constraints: {match_parameters: 1.5e5, width: internal_channels}
"""
    candidates = grid(_checker(tmp_path, text))
    assert len(candidates) == 4
    assert len({one.settings["internal_channels"] for one in candidates}) > 2
    for one in candidates:
        assert one.parameters == pytest.approx(1.5e5, rel=0.05)
        assert one.config.model.internal_channels == one.settings["internal_channels"]


def test_a_named_network_keeps_the_other_settings_of_the_base() -> None:
    space = read_space("paper_table1")
    found = with_settings(BASE, space, {"model": "CUNET_TFC_FiLM_TDF"}).model
    assert (found.block, found.modulation, found.n_fft) == ("tfc_tdf", "film", 512)


def test_optuna_learns_and_repeats_itself(tmp_path: Path) -> None:
    pytest.importorskip("optuna")
    text = """
options:
  lr: {log: [0.0001, 1]}
  modulation: [film, gpocm]
  pocm_norm: {choices: [None, batch_norm], when: {modulation: gpocm}}
"""
    checker = _checker(tmp_path, text)

    def run() -> list[Trial]:
        trials: list[Trial] = []
        for number in range(24):
            candidate = propose_optuna(checker, 3, [("sdr", True)], trials)
            assert candidate is not None
            film = candidate.settings["modulation"] == "film"
            score = -abs(np.log10(candidate.settings["lr"]) + 2) - 4 * film
            status = "failed" if number == 4 else "stopped" if number % 5 == 3 else "done"
            trials.append(_trial(number, candidate.settings, float(score), status=status))
        return trials

    trials = run()
    assert [one.settings for one in trials] == [one.settings for one in run()]
    early, late = ([one.figure("sdr") or 0.0 for one in part] for part in (trials[:8], trials[-8:]))
    assert np.mean(late) > np.mean(early) + 0.5
    candidate = propose_optuna(checker, 3, [("sdr", True), ("parameters", False)], trials)
    assert candidate is not None


def test_whole_trials_rank_before_those_cut_short() -> None:
    trials = [
        _trial(0, {}, 1.0), _trial(1, {}, 9.0, status="stopped"), _trial(2, {}, 2.0),
        _trial(3, {}, status="failed"), _trial(4, {}),
    ]  # fmt: skip
    assert [one.number for one in ranked(trials, "sdr")] == [2, 0, 1]


def test_the_front_holds_what_nothing_beats() -> None:
    sizes = [(1.0, 100), (2.0, 300), (1.5, 300), (0.5, 200), (2.0, 300)]
    trials = [_trial(n, {}, sdr, parameters=size) for n, (sdr, size) in enumerate(sizes)]
    assert [one.number for one in front(trials, ("sdr", "parameters"))] == [0, 1, 4]


def test_importance_finds_the_option_that_matters() -> None:
    source = random.Random(1)
    trials = []
    for number in range(40):
        lr, dk = source.uniform(0, 1), source.choice([4, 8])
        trials.append(_trial(number, {"lr": lr, "dk": dk}, 3 * lr + source.gauss(0, 0.2)))
    found = {one.name: one for one in importances(trials, "sdr")}
    assert next(iter(found)) == "lr"
    # Four groups of a straight line hold 15/16 of its variance; the noise takes some of it.
    assert 0.7 < found["lr"].share < 15 / 16
    assert found["lr"].p < 1e-5
    assert found["dk"].share < 0.15
    assert importances(trials[:7], "sdr") == []


@pytest.mark.parametrize(
    ("nodes", "train", "search", "wanted", "places"),
    [
        ([{"CPU": 1.0}], {}, {}, 7, (1, 1.0, 0.0)),
        ([{"CPU": 2.0}], {}, {}, 7, (2, 1.0, 0.0)),
        ([{"CPU": 16.0}], {}, {}, 4, (4, 4.0, 0.0)),
        ([{"CPU": 16.0}], {}, {"max_concurrent_trials": 2}, None, (2, 8.0, 0.0)),
        ([{"CPU": 1.0}] * 3, {}, {}, 9, (3, 1.0, 0.0)),
        ([{"CPU": 8.0}], {"resources_per_worker": "CPU=3"}, {}, 9, (2, 3.0, 0.0)),
        ([{"CPU": 8.0, "GPU": 1.0}], {}, {"trial_gpus": 0.25}, 9, (4, 2.0, 0.25)),
        ([{"CPU": 8.0, "GPU": 2.0}], {"gpus": 1}, {}, 9, (2, 4.0, 1.0)),
        ([{"CPU": 1.0}], {"world_size": 2, "batch_size": 4}, {}, 3, (1, 0.49, 0.0)),
        ([{"CPU": 2.0}], {"world_size": 2, "batch_size": 4}, {}, 3, (1, 0.99, 0.0)),
        ([{"CPU": 1.0}] * 3, {"world_size": 2, "batch_size": 4}, {}, 3, (1, 0.99, 0.0)),
        ([{"CPU": 8.0}], {"world_size": 2, "batch_size": 4}, {}, 3, (3, 1.0, 0.0)),
    ],
)
def test_places_fit_the_cluster(
    nodes: list[dict[str, float]], train: dict[str, Any], search: dict[str, Any],
    wanted: int | None, places: tuple[int, float, float],
) -> None:  # fmt: skip
    config = RunConfig(train=TrainConfig(**train), search=SearchConfig(**search))
    found = share_places(config, nodes, wanted)
    assert (found.trials, found.cpus, found.gpus) == places


def test_a_trial_that_fits_nowhere_is_told(monkeypatch: pytest.MonkeyPatch) -> None:
    config = RunConfig(train=TrainConfig(gpus=1))
    nodes = [{"CPU": 2.0}]
    monkeypatch.setattr("pipeline.cluster.nodes.resources_of_nodes", lambda: nodes)
    with pytest.raises(ConfigError, match=r"gpus: a trial needs 1 x .* has 0 of 1 GPU;"):
        lack_of_a_trial(config, nodes).look()


def test_where_nodes_may_come_trials_wait_for_as_many_places_as_are_asked_for() -> None:
    nodes = [{"CPU": 2.0}]
    cluster, search = ClusterConfig(address="auto"), SearchConfig(max_concurrent_trials=5)
    config = RunConfig(search=search, cluster=cluster)
    assert share_places(config, nodes, None) == Places(trials=5, cpus=1.0, gpus=0.0)
    assert share_places(config, nodes, 3).trials == 3
    all_that_fit = config.model_copy(update={"search": SearchConfig()})
    assert share_places(all_that_fit, nodes, None).trials == 2
    never = config.model_copy(update={"cluster": ClusterConfig()})
    assert share_places(never, nodes, None).trials == 2


def test_conditions_see_what_the_base_and_the_named_network_say() -> None:
    one = Dimension("dk", "choices", (4, 8), when={"block": ("tfc_lasaft",)})
    named = Dimension("model", "choices", ("CUNET_TFC_FiLM", "CUNET_TFC_FiLM_LaSAFT"))
    checker = Checker(BASE, Space("x", (named, one), Constraints()))
    seen = {
        draw(checker, random.Random(n))["model"]: draw(checker, random.Random(n)) for n in range(9)
    }
    assert "dk" not in seen["CUNET_TFC_FiLM"]
    assert "dk" in seen["CUNET_TFC_FiLM_LaSAFT"]
