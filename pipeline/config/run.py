"""The settings of a whole run: one strict, frozen tree that reaches every worker."""

from __future__ import annotations

import json
import re
from collections.abc import Iterator, Mapping
from dataclasses import replace
from pathlib import Path
from typing import Self

from pydantic import ValidationError, field_validator, model_validator

from lasaft.card import Licences
from lasaft.config import ModelConfig, Settings, option
from lasaft.errors import ConfigError, Problem, no_effect, refuse
from lasaft.idle_options import without_effect as model_without_effect
from lasaft.options import options_of, problems_of
from pipeline.config.addresses import check_place, shown
from pipeline.config.data import SONG_FORM, SYNTHETIC_COUNTS, DataConfig
from pipeline.config.evaluate import EvaluateConfig
from pipeline.config.search import SearchConfig, search_without_effect
from pipeline.config.train import PROCESS_COUNT, TrainConfig, train_without_effect

# What decides whether the control network normalises over the windows of a step.
_NORM_OVER_WINDOWS = (
    "modulation", "condition_to", "n_blocks", "pocm_norm", "control_type", "control_n_layer",
)  # fmt: skip
# With this many control layers it has BatchNorm over them.
_CONTROL_LAYERS_WITH_NORM = 3


class TrackingConfig(Licences):
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
        None,
        "Ray address, auto, or local: this machine (None: $RAY_ADDRESS or local)",
        role="place",
    )
    num_cpus: int | None = option(None, "CPUs of a local cluster (None: all)", ge=1, role="way")
    dashboard: bool = option(
        False, "of a local cluster, Ray's dashboard on this machine's port 8265", role="way"
    )
    task_memory: float = option(1.5, "GB of memory set aside for each task", gt=0, role="way")
    wait_for_nodes_minutes: float = option(
        15.0, "how long to wait for nodes that an autoscaler may bring (0: not)", ge=0, role="way"
    )


class RunConfig(Settings):
    """Everything about one run."""

    output_dir: Path | str = option(
        Path("runs/lasaft"), "folder or address of everything the run makes", role="place"
    )
    add: tuple[str, ...] | None = option(
        None, "other runs, folders or addresses, whose scores go on the board too", role="place"
    )
    model: ModelConfig = ModelConfig()
    data: DataConfig = DataConfig()
    train: TrainConfig = TrainConfig()
    search: SearchConfig = SearchConfig()
    evaluate: EvaluateConfig = EvaluateConfig()
    tracking: TrackingConfig = TrackingConfig()
    cluster: ClusterConfig = ClusterConfig()

    @field_validator("output_dir", mode="plain")
    @classmethod
    def _is_a_place(cls, value: object) -> Path | str:
        return check_place("output_dir", value)

    @field_validator("add")
    @classmethod
    def _are_places(cls, value: tuple[str, ...] | None) -> tuple[str, ...] | None:
        for place in value or ():
            check_place("add", place)
        return value

    @model_validator(mode="after")
    def _groups_fit_together(self) -> Self:
        refuse(run_problems(self))
        return self


def to_json(config: RunConfig) -> str:
    """Return the whole configuration as indented JSON, which :func:`from_json` reads."""
    return config.model_dump_json(indent=2) + "\n"


def without_secrets(config: RunConfig) -> RunConfig:
    """Return the configuration as it is written to files: without the password of an address."""
    store, head = config.tracking.tracking_uri, config.cluster.address
    tracking = config.tracking.model_copy(
        update={"tracking_uri": store and shown(store, alone=True)}
    )
    cluster = config.cluster.model_copy(update={"address": head and shown(head, alone=True)})
    return config.model_copy(update={"tracking": tracking, "cluster": cluster})


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
        raise ConfigError([replace(problem, where=origin) for problem in problems]) from error


def _without_removed(text: str | bytes) -> str | bytes:
    try:
        tree = json.loads(text)
        del tree["search"]["perturb_epochs"]
    except (ValueError, TypeError, KeyError, RecursionError):
        return text
    return json.dumps(tree)


def run_problems(run: RunConfig) -> Iterator[Problem]:
    """Yield what does not fit together between the groups of options."""
    sources, train, search = run.model.sources, run.train, run.search
    targets = train.target_names
    if targets is not None:
        for name in [name for name in targets if name not in sources]:
            yield Problem("target_names", repr(name), ", ".join(sources), others=("sources",))
        if not targets or len(set(targets)) < len(targets):
            yield Problem("target_names", str(list(targets)), "one source or more, each once")
    sizes, most = run.data.set_sizes, len(targets or sources)
    if sizes is not None and (not sum(sizes) or len(sizes) > most):
        allowed = f"1 to {most} chances (of sets of 1 to {most} of the targets), not all 0"
        yield Problem("set_sizes", str(list(sizes)), allowed, others=("sources", "target_names"))
    if run.data.phases > run.model.hop_length:
        allowed = f"at most hop_length ({run.model.hop_length})"
        yield Problem("phases", run.data.phases, allowed, others=("hop_length",))
    if search.trial_gpus is not None and train.processes > 1:
        allowed = "only with one process a trial"
        yield Problem("trial_gpus", search.trial_gpus, allowed, others=PROCESS_COUNT)
    gpus = train.gpus or train.resources.get("GPU") or search.trial_gpus
    if search.max_gpu_hours is not None and not gpus:
        allowed = "only where trials have GPUs (gpus 1, or trial_gpus 0.5)"
        others = ("gpus", "resources_per_worker", "trial_gpus")
        yield Problem("max_gpu_hours", search.max_gpu_hours, allowed, others=others)
    share = train.processes * train.accumulate_grad_batches
    if train.batch_size < 2 * share and _has_norm_over_windows(run) and not train.synchronised:
        allowed = (
            f"at least 2 windows for each process and micro-batch ({2 * share} in all), because "
            "the control network normalises over them (control_n_layer of 3 or more, or pocm_norm "
            "batch_norm)"
        )
        others = (*PROCESS_COUNT, "sync_batchnorm", *_NORM_OVER_WINDOWS)
        yield Problem("batch_size", train.batch_size, allowed, others=others)


def _has_norm_over_windows(run: RunConfig) -> bool:
    model = run.model
    if not any(model.modulated_blocks):
        return False
    deep = model.control_n_layer >= _CONTROL_LAYERS_WITH_NORM
    return model.normed_numbers or (model.control_type == "dense" and deep)


def synthetic_songs(run: RunConfig) -> int:
    """Return how many synthetic songs the run makes: none where it has songs of its own."""
    if run.data.musdb_root is not None:
        return 0
    return sum(getattr(run.data, name) for name in SYNTHETIC_COUNTS)


def split_problems(run: RunConfig, songs: Mapping[str, int]) -> Iterator[Problem]:
    """Yield what a run from songs to scores lacks, given how many songs each split has."""
    needed = {"train": "training"}
    if run.search.space is not None:
        needed["valid"] = "a search, which compares trials by it,"
    if run.evaluate.scores_dir is None:
        needed.setdefault(run.evaluate.split, f"evaluation (split {run.evaluate.split})")
    made = bool(synthetic_songs(run))
    for split, stage in needed.items():
        if not songs.get(split):
            there = ", ".join(f"{count} {name}" for name, count in songs.items())
            others = ("split", "space", "musdb_root", *SYNTHETIC_COUNTS)
            yield Problem(
                f"synthetic_{split}" if made else "musdb_root",
                reason=f"there is no {split} song for {stage} ({there})",
                allowed=f"one {split} song or more",
                others=others,
            )


def without_effect(run: RunConfig) -> dict[str, Problem]:
    """Return the options that do nothing with the others chosen, each with the reason."""
    data, train = run.data, run.train
    idle = model_without_effect(run.model) | train_without_effect(train)
    idle |= search_without_effect(run.search)
    if not run.model.takes_sets:
        because = f"control_vector_type is {run.model.control_vector_type}"
        idle |= no_effect(["set_sizes"], because, "control_vector_type")
    idle |= _songs_without_effect(run)
    places = {name: getattr(data, name) for name in ("musdb_root", "shards_dir")}
    places |= {name: getattr(run.evaluate, name) for name in ("checkpoint", "estimates_dir")}
    if not any(isinstance(place, str) for place in (run.output_dir, *places.values())):
        because = "nothing that is read lies at an address: files are read in place"
        idle |= no_effect(("cache_dir", "cache_gb"), because, "output_dir", *places)
    for size, name in {"gain_db": "gain_probability", "mixup_share": "mixup_probability"}.items():
        if not getattr(data, name):
            idle |= no_effect([size], f"{name} is 0", name)
    if train.gpus:
        because = f"gpus {train.gpus} says how many processes there are"
        idle |= no_effect(["world_size"], f"{because} (gpus None: world_size does)", "gpus")
        because = f"gpus {train.gpus} says how many GPUs a trial has"
        if run.search.trial_gpus is not None:
            idle |= no_effect(["trial_gpus"], because, "gpus")
    idle |= _evaluate_without_effect(run.evaluate)
    if not run.tracking.log:
        idle |= no_effect(("tracking_uri", "experiment_name"), "log is False", "log")
    if run.cluster.address not in (None, "local"):
        idle |= no_effect(
            ["num_cpus", "dashboard"], "address names a cluster that has its own", "address"
        )
    return idle


def _songs_without_effect(run: RunConfig) -> dict[str, Problem]:
    made, others = ("synthetic_seconds", "synthetic_seed"), ("musdb_root", *SYNTHETIC_COUNTS)
    if run.data.musdb_root is not None:
        because = "musdb_root is given, so no songs are made"
        idle = no_effect((*SYNTHETIC_COUNTS, *made), because, "musdb_root")
    elif synthetic_songs(run):
        idle = no_effect(SONG_FORM, "the songs are synthetic", *others)
    else:
        because = "no synthetic songs are asked for (synthetic_train ...)"
        idle = no_effect(made, because, *others)
    if run.data.layout not in (None, "songs"):
        idle |= no_effect(["musdb_is_wav"], f"layout is {run.data.layout}", "layout")
    return idle


def _evaluate_without_effect(evaluate: EvaluateConfig) -> dict[str, Problem]:
    idle: dict[str, Problem] = {}
    scoring = ("checkpoint", "overlap_ratio", "save_estimates")
    if evaluate.estimates_dir is not None:
        idle |= no_effect(scoring, "estimates_dir holds finished estimates", "estimates_dir")
    if evaluate.separator is None:
        idle |= no_effect(["separator_minutes"], "separator is None", "separator")
    else:
        because = "separator makes the estimates"
        idle |= no_effect(("checkpoint", "overlap_ratio", "estimates_dir"), because, "separator")
    names, because = ("scores_kind", "scores_data"), "scores_dir is None"
    if evaluate.scores_dir is not None:
        names = ("estimates_dir", "separator", "verify", "oracles", "scenario", "sums", "rescore")
        names = (*scoring, *names, "score_device", "report_audio")
        because = "scores_dir holds finished scores"
    idle |= no_effect(names, because, "scores_dir")
    return idle


def check_run_id(run_id: str | None) -> str | None:
    """Return ``run_id`` if it can be the name of a folder.

    Raises:
        ConfigError: it cannot.
    """
    if run_id is None or (re.fullmatch(r"\w[\w .+=-]{0,99}", run_id) and run_id[-1] not in ". "):
        return run_id
    allowed = "a folder name of up to 100 letters, digits and _ - + = ."
    raise ConfigError(Problem("run_id", repr(run_id), allowed))
