"""The settings of a whole run: one strict, frozen tree that reaches every worker."""

from __future__ import annotations

import json
import re
from collections.abc import Iterator
from pathlib import Path
from typing import Self

from pydantic import ValidationError, field_validator, model_validator

from lasaft.config import MUSDB18_SOURCES, ModelConfig, Settings, option
from lasaft.config import without_effect as model_without_effect
from lasaft.errors import ConfigError
from pipeline.config.data import SYNTHETIC_COUNTS, DataConfig
from pipeline.config.evaluate import EvaluateConfig
from pipeline.config.options import options_of, problems_of, refuse
from pipeline.config.search import SearchConfig, search_without_effect
from pipeline.config.train import RAW_AND_SPEC, TrainConfig

# With this many control layers the control network has BatchNorm over the windows of a step.
_CONTROL_LAYERS_WITH_NORM = 3


class TrackingConfig(Settings):
    """Names of the run, and where MLflow records it."""

    log: bool = option(True, "record in MLflow", role="way")
    tracking_uri: str | None = option(
        None, "MLflow address (None: $MLFLOW_TRACKING_URI or <output_dir>/mlflow.db)", role="place"
    )
    experiment_name: str = option("lasaft", "MLflow experiment", min_length=1, role="place")
    run_id: str | None = option(None, "name of the run (None: the date and time)")

    @field_validator("run_id")
    @classmethod
    def _names_a_folder(cls, value: str | None) -> str | None:
        return check_run_id(value)


class ClusterConfig(Settings):
    """The Ray cluster that does the work."""

    address: str | None = option(
        None, "Ray address (None: $RAY_ADDRESS, or a cluster on this machine)", role="place"
    )
    num_cpus: int | None = option(None, "CPUs of a local cluster (None: all)", ge=1, role="way")
    task_memory: float = option(1.5, "GB of memory set aside for each task", gt=0, role="way")


class RunConfig(Settings):
    """Everything about one run."""

    output_dir: Path = option(Path("runs/lasaft"), "everything the run makes", role="place")
    model: ModelConfig = ModelConfig()
    data: DataConfig = DataConfig()
    train: TrainConfig = TrainConfig()
    search: SearchConfig = SearchConfig()
    evaluate: EvaluateConfig = EvaluateConfig()
    tracking: TrackingConfig = TrackingConfig()
    cluster: ClusterConfig = ClusterConfig()

    @model_validator(mode="after")
    def _groups_fit_together(self) -> Self:
        refuse(run_problems(self))
        return self


def to_json(config: RunConfig) -> str:
    """Return the whole configuration as indented JSON, which :func:`from_json` reads."""
    return config.model_dump_json(indent=2) + "\n"


def from_json(text: str | bytes, origin: str = "config") -> RunConfig:
    """Return the configuration in ``text``, validated again.

    What an earlier version wrote may have an option that is gone: it is left out.

    Raises:
        ConfigError: every problem, each with the option, the value and what is allowed.
    """
    try:
        return RunConfig.model_validate_json(_without_removed(text))
    except ValidationError as error:
        problems = problems_of(error, options_of(RunConfig))
        raise ConfigError([f"{origin}: {problem}" for problem in problems]) from error


def _without_removed(text: str | bytes) -> str | bytes:
    try:
        tree = json.loads(text)
        del tree["search"]["perturb_epochs"]
    except (ValueError, TypeError, KeyError, RecursionError):
        return text
    return json.dumps(tree)


def run_problems(run: RunConfig) -> Iterator[str]:
    """Yield what does not fit together between the groups of options."""
    sources = run.model.sources
    targets = run.train.target_names
    if targets is not None:
        for name in [name for name in targets if name not in sources]:
            yield f"target_names: got {name!r}, allowed: {', '.join(sources)}"
        if not targets or len(set(targets)) < len(targets):
            yield f"target_names: got {list(targets)}, allowed: one source or more, each once"
    if synthetic_songs(run) and sorted(sources) != sorted(MUSDB18_SOURCES):
        yield (
            f"sources: got {', '.join(sources)}, allowed with synthetic songs: "
            f"{', '.join(MUSDB18_SOURCES)}"
        )
    gpus = run.train.gpus or run.train.resources.get("GPU") or run.search.trial_gpus
    if run.search.trial_gpus is not None and run.train.processes > 1:
        yield f"trial_gpus: got {run.search.trial_gpus}, allowed: only with one process a trial"
    if run.search.max_gpu_hours is not None and not gpus:
        yield (
            f"max_gpu_hours: got {run.search.max_gpu_hours}, allowed: only where trials have GPUs "
            "(gpus 1, or trial_gpus 0.5)"
        )
    share = run.train.processes * run.train.accumulate_grad_batches
    lonely = run.train.batch_size < 2 * share
    if lonely and _has_norm_over_windows(run) and not run.train.synchronised:
        yield (
            f"batch_size: got {run.train.batch_size}, allowed: at least 2 windows for each process "
            f"and micro-batch ({2 * share} in all), because the control network normalises over "
            "them (control_n_layer of 3 or more, or pocm_norm batch_norm)"
        )


def _has_norm_over_windows(run: RunConfig) -> bool:
    model = run.model
    if not any(model.modulated_blocks):
        return False
    return model.normed_numbers or model.control_n_layer >= _CONTROL_LAYERS_WITH_NORM


def synthetic_songs(run: RunConfig) -> int:
    """Return how many synthetic songs the run makes: none where it has songs of its own."""
    if run.data.musdb_root is not None:
        return 0
    return sum(getattr(run.data, name) for name in SYNTHETIC_COUNTS)


def without_effect(run: RunConfig) -> dict[str, str]:
    """Return the options that do nothing with the others chosen, each with the reason."""
    data, train = run.data, run.train
    reasons = model_without_effect(run.model) | search_without_effect(run.search)
    if data.musdb_root is not None:
        names = (*SYNTHETIC_COUNTS, "synthetic_seconds", "synthetic_seed")
        reasons |= dict.fromkeys(names, "musdb_root is given, so no songs are made")
    elif not synthetic_songs(run):
        names = ("synthetic_seconds", "synthetic_seed")
        reasons |= dict.fromkeys(names, "no synthetic songs are asked for (synthetic_train ...)")
    if not isinstance(data.shards_dir, str):
        names = ("cache_dir", "cache_gb")
        reasons |= dict.fromkeys(names, "shards_dir is no address: its files are read in place")
    sizes = {"gain_db": "gain_probability", "mixup_share": "mixup_probability"}
    reasons |= {size: f"{name} is 0" for size, name in sizes.items() if not getattr(data, name)}
    if "raw_and_spec" not in (train.train_loss, train.val_loss):
        reasons |= dict.fromkeys(RAW_AND_SPEC, "neither train_loss nor val_loss is raw_and_spec")
    if train.gpus:
        reasons["world_size"] = (
            f"gpus {train.gpus} says how many processes there are (gpus None: world_size does)"
        )
    if run.search.trial_gpus is not None and train.gpus:
        reasons["trial_gpus"] = f"gpus {train.gpus} says how many GPUs a trial has"
    if run.evaluate.estimates_dir is not None:
        names = ("checkpoint", "overlap_ratio", "save_estimates")
        reasons |= dict.fromkeys(names, "estimates_dir holds finished estimates")
    if run.evaluate.scores_dir is not None:
        names = (
            "checkpoint", "overlap_ratio", "save_estimates", "estimates_dir", "verify", "oracles",
            "scenario", "report_audio",
        )  # fmt: skip
        reasons |= dict.fromkeys(names, "scores_dir holds finished scores")
    if not run.tracking.log:
        reasons |= dict.fromkeys(("tracking_uri", "experiment_name"), "log is False")
    if run.cluster.address is not None:
        reasons["num_cpus"] = "address names a cluster that has its own"
    return reasons


def check_run_id(run_id: str | None) -> str | None:
    """Return ``run_id`` if it can be the name of a folder.

    Raises:
        ValueError: it cannot.
    """
    if run_id is None or (re.fullmatch(r"\w[\w .+=-]{0,99}", run_id) and run_id[-1] not in ". "):
        return run_id
    raise ValueError(
        f"run_id: got {run_id!r}, allowed: a folder name of up to 100 letters, digits and _ - + = ."
    )
