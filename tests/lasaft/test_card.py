"""The card of weights: made of what is known, stated later, carried to the stems."""

from __future__ import annotations

import json
from contextlib import nullcontext
from pathlib import Path

import pytest
import torch

from lasaft.card import CARD_FIELDS, CARDS, Licences, card_of, read_cards, write_cards
from lasaft.checkpoint import load_checkpoint, save_checkpoint
from lasaft.cli import main
from lasaft.errors import CheckpointError
from tests.helpers.audio import noise, tiny_model, write
from tests.helpers.lightning import lightning_content
from tests.helpers.parity import Fixture

pytestmark = pytest.mark.usefixtures("empty_working_folder")

_TRAINED = {
    "data_hash": "d" * 64,
    "git_commit": "abc",
    "seconds": 5400.0,
    "joules": 1.8e6,
    "energy_of": "GPUs",
    "config": {
        "data": {"musdb_root": "/data/musdb18hq", "synthetic_train": 0},
        "train": {"seed": 2020},
        "tracking": {"weights_license": "CC-BY-NC-4.0", "data_license": None},
    },
}


@pytest.fixture
def checkpoint(tmp_path: Path) -> Path:
    model = tiny_model()
    save_checkpoint(tmp_path / "c", model.state_dict(), model.config, _TRAINED)
    return tmp_path / "c"


def test_a_card_says_what_is_known_and_that_the_rest_is_not() -> None:
    assert card_of(_TRAINED, "e" * 64) == {
        "checkpoint": "e" * 64,
        "weights_license": "CC-BY-NC-4.0",
        "training_data": "musdb18hq",
        "training_data_hash": "d" * 64,
        "training_data_license": "not stated",
        "code_commit": "abc",
        "seed": "2020",
        "training_hours": "1.5",
        "training_energy": "0.5 kWh (GPUs)",
        "made_from": "not stated",
    }
    # As versions before 0.3, and hostile files, have it.
    for old in ({}, {"config": None, "file": [], "card": 3}, {"config": {"data": "x", "train": 1}}):
        unknown = dict.fromkeys(CARD_FIELDS, "not stated") | {"training_energy": "not measured"}
        assert card_of(old, None) == unknown
    for start, origin in ((None, "random weights"), ("/runs/a/checkpoint", "a/checkpoint")):
        train = {"train": {"resume_from_checkpoint": start}}
        assert card_of({"config": train}, None)["made_from"] == origin
    data = {"musdb_root": None, "synthetic_train": 2}
    assert card_of({"config": {"data": data}}, None)["training_data"] == "synthetic songs"
    data = {"shards_dir": "/runs/own/shards"}
    assert card_of({"config": {"data": data}}, None)["training_data"] == "own/shards"


def test_a_licence_is_stated_later_and_the_weights_stay(
    checkpoint: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    before = load_checkpoint(checkpoint)
    words = ["card", str(checkpoint)]
    assert main([*words, "--weights-license", "MIT OR Apache-2.0", "--data_license", "a b"]) == 2
    assert "data_license: got 'a b', allowed: an SPDX expression" in capsys.readouterr().err
    assert load_checkpoint(checkpoint).provenance == before.provenance
    assert main([*words, "--data_license", "LicenseRef-MUSDB18"]) == 0
    assert main([*words, "--weights_license", "MIT"]) == 0
    out = capsys.readouterr().out
    assert [line.split("  ")[0] for line in out.splitlines()[:2]] == ["card", "checkpoint"]
    assert main([*words, "--json"]) == 0
    (card,) = json.loads(capsys.readouterr().out)
    assert (card["weights_license"], card["training_data_license"]) == ("MIT", "LicenseRef-MUSDB18")
    after = load_checkpoint(checkpoint)
    assert after.hash == before.hash == card["checkpoint"]


def test_an_import_carries_what_the_file_says(tmp_path: Path) -> None:
    content = lightning_content(Fixture("net_film_decoder"))
    content["license"] = "MIT"
    content["hyper_parameters"]["seed"] = 7
    torch.save(content, tmp_path / "a.ckpt")
    assert main(["import-checkpoint", str(tmp_path / "a.ckpt"), str(tmp_path / "c")]) == 0
    made = load_checkpoint(tmp_path / "c")
    card = card_of(made.provenance, made.hash)
    assert (card["weights_license"], card["seed"], card["made_from"]) == ("MIT", "7", "a.ckpt")


def test_stems_carry_the_card_of_their_weights(
    tmp_path: Path, checkpoint: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    song, out = write(tmp_path / "song.wav", noise(2, 2000)), tmp_path / "out"
    words = ["separate", str(song), "--checkpoint", str(checkpoint), "--output_dir", str(out)]
    assert main([*words, "--targets", "bass,drums"]) == 0
    (card,) = read_cards(out / "song")
    made = load_checkpoint(checkpoint)
    assert card == card_of(made.provenance, made.hash) | {"files": ["bass.wav", "drums.wav"]}
    write_cards(out / "song", card_of({}, "other"), ["drums.wav", "vocals.wav"])
    write_cards(out / "song", card_of({}, "other"), ["other.wav"])
    found = {card["checkpoint"]: card["files"] for card in read_cards(out / "song")}
    assert found == {
        made.hash: ["bass.wav"],
        "other": ["drums.wav", "other.wav", "vocals.wav"],
    }
    capsys.readouterr()
    assert main(["card", str(out / "song")]) == 0
    assert "drums.wav, other.wav, vocals.wav" in capsys.readouterr().out
    assert main(["card", str(out / "song"), "--weights_license", "MIT"]) == 2
    for damage in ("", "{}", '{"format": 1, "cards": [{}]}', '{"format": 1, "cards": [3]}'):
        (out / "song" / CARDS).write_text(damage)
        with pytest.raises(CheckpointError, match=r"card\.json: is damaged"):
            read_cards(out / "song")
    # Before any work.
    (checkpoint / "weights.safetensors").unlink()
    assert main(words) == 1
    assert "card.json: is damaged, or not of lasaft" in capsys.readouterr().err


@pytest.mark.parametrize(
    ("text", "fits"),
    [
        ("MIT", True), ("GPL-3.0-or-later WITH Classpath-exception-2.0", True),
        ("(MIT OR ISC) AND CC0-1.0", True), ("Apache 2.0", False), ("", False),
        ("MIT\nBSD", False), ("MIT OR", False), ("x" * 300, False),
    ],
)  # fmt: skip
def test_a_licence_is_an_spdx_expression(text: str, fits: bool) -> None:
    with nullcontext() if fits else pytest.raises(ValueError, match="an SPDX expression"):
        assert Licences(weights_license=text).weights_license == text
