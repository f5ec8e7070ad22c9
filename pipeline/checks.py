"""The rules that join options: what does not fit together, and what has no effect."""

from __future__ import annotations

import re
from collections.abc import Iterator
from typing import TYPE_CHECKING

from lasaft.config import MUSDB18_SOURCES
from lasaft.effects import without_effect as model_without_effect
from pipeline.search_config import search_without_effect

if TYPE_CHECKING:
    from pipeline.config import RunConfig, TrainConfig

RAW_AND_SPEC = ("loss_raw_scale", "loss_raw_mode", "loss_spec_scale", "loss_spec_mode")
SYNTHETIC_COUNTS = ("synthetic_train", "synthetic_valid", "synthetic_test")
# With this many control layers the control network has BatchNorm over the windows of a step.
_CONTROL_LAYERS_WITH_NORM = 3


def train_problems(train: TrainConfig) -> Iterator[str]:
    """Yield what does not fit together within one training's options."""
    if "raw_and_spec" in (train.train_loss, train.val_loss):
        for name in RAW_AND_SPEC:
            if getattr(train, name) is None:
                yield f"{name}: got None, allowed: a value, because the loss raw_and_spec needs it"
    if train.min_epochs > train.max_epochs:
        yield (
            f"min_epochs: got {train.min_epochs}, allowed: at most max_epochs ({train.max_epochs})"
        )
    if train.auto_lr_schedule and train.lr_schedule != "constant":
        yield (
            f"auto_lr_schedule: got True, allowed: only with lr_schedule constant, "
            f"which is {train.lr_schedule}"
        )
    if train.compile and train.activation_checkpointing:
        yield (
            "activation_checkpointing: got True, allowed: only without compile, which decides by "
            "itself what to compute again"
        )
    share = train.processes * train.accumulate_grad_batches
    if train.batch_size % share and isinstance(train.world_size, str) and not train.gpus:
        yield (
            f"world_size: got {train.world_size}, allowed: a range with a number of processes "
            f"among which a batch divides (batch_size {train.batch_size}, accumulate_grad_batches "
            f"{train.accumulate_grad_batches})"
        )
    elif train.batch_size % share:
        yield (
            f"batch_size: got {train.batch_size}, allowed: a multiple of {share} (processes "
            f"{train.processes} x accumulate_grad_batches {train.accumulate_grad_batches})"
        )


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
    lonely = run.train.batch_size == share
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
    generated = model.modulation in ("pocm", "gpocm") and model.pocm_norm is not None
    return generated or model.control_n_layer >= _CONTROL_LAYERS_WITH_NORM


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
