"""Files of strangers, given to whatever reads them: nothing runs, nothing is written elsewhere.

The readers' own tests have more: pickles in test_authors_safety, presets, spaces and split files in
test_presets, test_search_space and test_own_data, score files in test_score_files, stamps in
test_steps.
"""

from __future__ import annotations

import pickle
import struct
from pathlib import Path
from typing import Any

import pytest
import torch

from lasaft.checkpoint import load_checkpoint, save_checkpoint
from lasaft.config import ModelConfig
from lasaft.errors import LasaftError
from lasaft.network.model import LaSAFT
from pipeline.config import from_json
from pipeline.data.shards.manifest import manifest_text, read_manifest
from pipeline.training.loop.state_file import load_state
from tests.helpers.shards import make_shards, small_config
from tests.helpers.training import TINY_MODEL
from tests.helpers.wavs import write_track


class _Bomb:
    """Makes a folder when it is unpickled."""

    def __init__(self, mark: Path) -> None:
        self.mark = str(mark)

    def __reduce__(self) -> tuple[Any, ...]:
        import os

        return os.mkdir, (self.mark,)


def _header(size: int, text: bytes) -> bytes:
    return struct.pack("<Q", size) + text


@pytest.fixture
def checkpoint(tmp_path: Path) -> Path:
    torch.manual_seed(0)
    model = LaSAFT(ModelConfig.model_validate(TINY_MODEL, strict=False))
    save_checkpoint(tmp_path / "checkpoint", model.state_dict(), model.config, {})
    return tmp_path / "checkpoint"


def _pickled(mark: Path) -> bytes:
    return pickle.dumps(_Bomb(mark))


def _torch_saved(mark: Path) -> bytes:
    file = mark.with_name("saved.pt")
    torch.save({"weights": _Bomb(mark)}, file)
    return file.read_bytes()


@pytest.mark.parametrize(
    "content",
    [
        _pickled,
        _torch_saved,
        lambda mark: _header(2**62, b"{}"),  # a header that fits in no memory
        lambda mark: _header(2, b"[]"),
        lambda mark: _header(
            60, b'{"a":{"dtype":"F32","shape":[9000000000],"data_offsets":[0,4]}}'[:60]
        ),
    ],
)
def test_weights_and_states_that_are_no_tensors_run_nothing(
    checkpoint: Path, tmp_path: Path, content: Any
) -> None:
    mark, state = tmp_path / "mark", tmp_path / "state.safetensors"
    data = content(mark)
    (checkpoint / "weights.safetensors").write_bytes(data)
    state.write_bytes(data)
    with pytest.raises(LasaftError):
        load_checkpoint(checkpoint)
    with pytest.raises(LasaftError):
        load_state(state)
    assert not mark.exists()


@pytest.mark.parametrize(
    "text",
    [
        "[" * 100_000,
        '{"model": ' * 50_000,
        '{"model": {"__class__": "os.system"}}',
        '{"output_dir": ["/etc"]}',
        '{"train": {"seed": 1e400}}',
        "\x00\x00",
    ],
)
def test_json_of_strangers_is_one_clear_error(checkpoint: Path, text: str) -> None:
    with pytest.raises(LasaftError):
        from_json(text)
    (checkpoint / "config.json").write_text(text)
    with pytest.raises(LasaftError):
        load_checkpoint(checkpoint)


@pytest.mark.parametrize(
    "path", ["../../stolen.arrow", "/etc/passwd", "train/../../x", "train\\..\\x"]
)
def test_a_manifest_with_a_right_hash_cannot_lead_out_of_its_folder(
    tmp_path: Path, path: str
) -> None:
    config = small_config(tmp_path / "songs", tmp_path / "out")
    write_track(tmp_path / "songs" / "train" / "a")
    make_shards(config)
    folder = tmp_path / "out" / "shards"
    manifest = read_manifest(folder)
    track = manifest.tracks[0]
    shard = track.shards[0].model_copy(update={"path": path})
    changed = manifest.model_copy(
        update={"tracks": (track.model_copy(update={"shards": (shard,)}),)}
    )
    (folder / "manifest.json").write_text(manifest_text(changed))
    with pytest.raises(LasaftError, match="leaves the shard folder"):
        read_manifest(folder)
