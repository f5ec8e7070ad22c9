"""The settings of a run, and what follows from them."""

from pipeline.config.data import DataConfig
from pipeline.config.evaluate import EvaluateConfig
from pipeline.config.run import (
    ClusterConfig,
    RunConfig,
    TrackingConfig,
    from_json,
    to_json,
    without_secrets,
)
from pipeline.config.search import SearchConfig
from pipeline.config.train import LossName, TrainConfig

__all__ = [
    "ClusterConfig",
    "DataConfig",
    "EvaluateConfig",
    "LossName",
    "RunConfig",
    "SearchConfig",
    "TrackingConfig",
    "TrainConfig",
    "from_json",
    "to_json",
    "without_secrets",
]
