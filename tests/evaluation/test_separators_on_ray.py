"""Networks in actors on GPUs: the same scores, and honest where CUDA cannot be used."""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import ray
import torch

from lasaft.checkpoint import load_checkpoint, save_checkpoint
from lasaft.config import ModelConfig
from lasaft.errors import StageError
from lasaft.network.model import LaSAFT
from pipeline.cluster.connection import prepare_environment
from pipeline.config import ClusterConfig, DataConfig, EvaluateConfig, RunConfig, TrackingConfig
from pipeline.evaluation.estimates import Network, separate
from pipeline.evaluation.evaluate import evaluate
from pipeline.evaluation.score_files import read_scores
from pipeline.evaluation.separators import separators
from tests.helpers.songs import make_musdb

NETWORK = ModelConfig(
    n_fft=512, hop_length=256, num_frame=32, n_blocks=3, internal_channels=4,
    n_internal_layers=1, num_tdfs=2, dk=4,
)  # fmt: skip

pytestmark = pytest.mark.skipif(torch.cuda.is_available(), reason="fakes a GPU for Ray")


@pytest.fixture(scope="module", autouse=True)
def cluster_that_lists_a_gpu() -> Iterator[None]:
    prepare_environment(ClusterConfig())
    ray.init(address="local", num_cpus=2, num_gpus=1, include_dashboard=False, log_to_driver=False)
    yield
    ray.shutdown()


@pytest.fixture(scope="module")
def checkpoint(tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("net") / "checkpoint"
    torch.manual_seed(0)
    save_checkpoint(folder, LaSAFT(NETWORK).state_dict(), NETWORK, {})
    return folder


def _network(checkpoint: Path) -> Network:
    return Network(checkpoint, load_checkpoint(checkpoint).hash, 0.5)


def _config(checkpoint: Path, root: Path, songs: int, **evaluation: Any) -> RunConfig:
    return RunConfig(
        output_dir=root / "run",
        data=DataConfig(
            musdb_root=make_musdb(root / "songs", train=0, valid=0, test=songs, seconds=2.0)
        ),
        evaluate=EvaluateConfig(checkpoint=checkpoint, **evaluation),
        tracking=TrackingConfig(run_id="net", log=False),
        cluster=ClusterConfig(task_memory=0.2),
    )


def test_scores_are_those_of_tasks_without_a_gpu_and_the_missing_cuda_is_said(
    checkpoint: Path, tmp_path: Path, capfd: pytest.CaptureFixture[str]
) -> None:
    config = _config(checkpoint, tmp_path, songs=2, save_estimates="wav")
    result = evaluate(config)
    assert "lists 1 GPU" in (said := capfd.readouterr().err)
    assert "torch finds no CUDA" in said
    kept = str(tmp_path / "run" / "estimates" / "net")
    again = evaluate(
        config.model_copy(
            update={
                "evaluate": EvaluateConfig(estimates_dir=Path(kept)),
                "tracking": TrackingConfig(run_id="kept", log=False),
            }
        )
    )
    assert again.lead.scores == result.lead.scores
    for track in result.lead.tracks:
        assert read_scores(tmp_path / "run" / "scores" / "net" / track.file).sources


def test_a_dead_actor_starts_again_with_its_network(checkpoint: Path) -> None:
    network = _network(checkpoint)
    mixture = np.random.default_rng(0).standard_normal((2, 20000)).astype(np.float32)
    truth = separate(network, mixture, 44100, ("vocals",))["vocals"]
    with separators(network) as (actor,):
        ray.get(actor.device.remote())
        ray.kill(actor, no_restart=False)
        found: Any = ray.get(actor.separate.remote(mixture, 44100, ("vocals",)))
    np.testing.assert_allclose(
        found["vocals"], truth, atol=1e-6
    )  # other threads, another order of sums


def test_a_checkpoint_that_changed_is_refused_by_the_actor(checkpoint: Path) -> None:
    network = Network(checkpoint, "00" * 32, 0.5)
    with separators(network) as (actor,), pytest.raises(StageError, match="checkpoint changed"):
        ray.get(actor.separate.remote(np.zeros((2, 9000), np.float32), 44100, ("vocals",)))


def test_scores_on_a_gpu_that_torch_cannot_use_are_refused_with_their_option(
    checkpoint: Path, tmp_path: Path
) -> None:
    config = _config(checkpoint, tmp_path, songs=1, score_device="cuda")
    with pytest.raises(StageError, match="score_device: got cuda, but torch finds no CUDA"):
        evaluate(config)
