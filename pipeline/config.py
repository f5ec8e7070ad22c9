"""The settings of a whole run: one strict, frozen tree that reaches every worker."""

from __future__ import annotations

from collections.abc import Iterable
from pathlib import Path
from typing import Annotated, Any, Literal, Self

from pydantic import Field, ValidationError, ValidationInfo, field_validator, model_validator

from lasaft.config import ModelConfig, Settings, whole_name
from lasaft.errors import ConfigError
from pipeline.addresses import check_place
from pipeline.checks import check_run_id, run_problems, train_problems
from pipeline.options import options_of, problems_of
from pipeline.process_counts import check_world_size, parse_resources, world_sizes
from pipeline.search_config import SearchConfig

LossName = Literal[
    "spec_l1", "spec_l2", "spec_mse", "raw_l1", "raw_l2", "raw_mse", "raw_and_spec",
    "sdr_like", "sdr", "dsr", "nsdr", "nsdr_44100", "ldsr", "distortion",
    "ncs", "ncs_44100", "nlcs",
]  # fmt: skip
Probability = Annotated[float, Field(ge=0, le=1)]


def _refuse(problems: Iterable[str]) -> None:
    lines = list(problems)
    if lines:
        raise ValueError("\n".join(lines))


class DataConfig(Settings):
    """Where songs come from, how they are kept as shards, and how windows are drawn."""

    musdb_root: Path | None = Field(
        default=None, description="MUSDB18, or own tracks (wav, flac, .stem.mp4)"
    )
    musdb_is_wav: bool | None = Field(
        default=None, description="folders of wav or flac, no .stem.mp4 (None: look)"
    )
    shards_dir: Path | str | None = Field(
        default=None, description="shard folder or address (None: <output_dir>/shards)"
    )
    cache_dir: Path | None = Field(
        default=None, description="a node's copies of remote shards (None: ~/.cache/lasaft/shards)"
    )
    cache_gb: float = Field(default=100.0, gt=0, description="most GB of such copies on a node")
    filed_mode: bool = Field(default=True, description="keep the shards for later runs")
    max_frames_per_shard: int = Field(
        default=16384, ge=256, description="STFT frames in one shard file, made by one task"
    )
    dev_mode: bool = Field(default=False, description="a small subset: one track a split")

    synthetic_train: int = Field(
        default=0, ge=0, le=9999, description="synthetic songs for training"
    )
    synthetic_valid: int = Field(
        default=0, ge=0, le=9999, description="synthetic songs for validation"
    )
    synthetic_test: int = Field(
        default=0, ge=0, le=9999, description="synthetic songs for the test"
    )
    synthetic_seconds: float = Field(default=30.0, ge=2, le=3600, description="length of a song")
    synthetic_seed: int = Field(default=0, ge=0, description="seed of the songs")

    draw: Literal["iid", "coverage"] = Field(
        default="iid",
        description="windows drawn independently, or so that an epoch covers every frame",
    )
    remix_probability: Probability = Field(
        default=1.0, description="chance that each source of a mixture has a place of its own"
    )
    gain_probability: Probability = Field(
        default=0.0, description="chance of a random gain a source"
    )
    gain_db: float = Field(
        default=6.0, ge=0, le=40, description="largest random gain, up or down, in dB"
    )
    polarity_probability: Probability = Field(
        default=0.0, description="chance of a sign flip a source"
    )
    channel_swap_probability: Probability = Field(
        default=0.0, description="chance that left and right of a source change places"
    )
    mixup_probability: Probability = Field(
        default=0.0, description="chance that a source is a blend of two windows of it"
    )
    mixup_share: float = Field(
        default=0.5, ge=0, le=1, description="largest share of the second window in a blend"
    )
    val_mixture: Literal["stored", "sum"] = Field(
        default="stored", description="validate on the songs' own mixtures, or the sources' sums"
    )

    @field_validator("shards_dir", mode="plain")
    @classmethod
    def _is_a_place(cls, value: object) -> Path | str | None:
        return check_place("shards_dir", value)


class TrainConfig(Settings):
    """One training: batches, optimiser, schedule, stopping, what is kept."""

    target_names: tuple[str, ...] | None = Field(
        default=None, description="train on these sources only (None: all)"
    )
    batch_size: int = Field(
        default=8, ge=1, description="windows a step, over all processes together"
    )
    steps_per_epoch: int | None = Field(
        default=None,
        ge=1,
        le=1_000_000,
        description="steps an epoch (None: one pass over the training frames)",
    )
    min_epochs: int = Field(default=1, ge=1, description="no early stop before this many epochs")
    max_epochs: int = Field(default=1000, ge=1, description="the last epoch")
    time_limit_hours: float | None = Field(
        default=None, gt=0, description="training ends after so many hours (all calls together)"
    )
    patience: int = Field(
        default=40, ge=1, description="epochs without a better val_loss before a stop"
    )
    train_loss: LossName = Field(default="spec_mse", description="loss that is minimised")
    val_loss: LossName = Field(default="raw_l1", description="loss that selects the model")
    loss_raw_scale: float | None = Field(default=None, gt=0, description="raw_and_spec: raw weight")
    loss_raw_mode: Literal["raw_l1", "raw_l2", "raw_mse"] | None = Field(
        default=None, description="raw_and_spec: raw part (l1 is raw_l1)"
    )
    loss_spec_scale: float | None = Field(
        default=None, gt=0, description="raw_and_spec: spec weight"
    )
    loss_spec_mode: Literal["spec_l1", "spec_l2", "spec_mse"] | None = Field(
        default=None, description="raw_and_spec: spec part (l1 is spec_l1)"
    )
    optimizer: Literal["adam", "adamw", "adagrad", "sgd", "rmsprop"] = Field(
        default="adam", description="optimiser"
    )
    lr: float = Field(default=1e-3, gt=0, le=10, description="learning rate")
    auto_lr_schedule: bool = Field(
        default=False, description="halve lr after 50 epochs on a plateau"
    )
    lr_schedule: Literal["constant", "cosine"] = Field(
        default="constant", description="lr over the steps up to max_epochs"
    )
    warmup_steps: int = Field(default=0, ge=0, description="steps of linear warm-up")
    gradient_clip_val: float | None = Field(default=None, gt=0, description="largest gradient norm")
    accumulate_grad_batches: int = Field(
        default=1, ge=1, description="micro-batches a step, a process"
    )
    ema_decay: float | None = Field(
        default=None, gt=0, le=0.99999, description="validate and save a moving average of weights"
    )
    precision: Literal["16", "bf16", "32"] = Field(
        default="32", description="bits of the arithmetic"
    )
    compile: bool = Field(default=False, description="let torch compile the network")
    activation_checkpointing: bool = Field(
        default=False, description="less memory, more time: run each block again in backward"
    )
    deterministic: bool = Field(
        default=False, description="on GPUs too, equal runs give equal bits; some are slower"
    )
    seed: int = Field(default=2020, ge=0, le=2**32 - 1, description="seed of weights and draws")

    save_top_k: int = Field(default=5, ge=1, description="how many best epochs to keep")
    save_weights_only: bool = Field(
        default=False, description="drop the training state once training has ended"
    )
    mid_epoch_seconds: float = Field(
        default=300.0, gt=0, description="save the training state at least this often"
    )
    resume_from_checkpoint: Path | None = Field(
        default=None, description="start from these weights (a checkpoint, or a .ckpt file)"
    )
    sample_every_epochs: int = Field(
        default=10, ge=0, description="epochs from one audio excerpt to the next (0: none)"
    )

    world_size: int | str = Field(
        default=1, description="DDP processes (MIN:MAX: as many as there is room for)"
    )
    gpus: int | None = Field(
        default=None, ge=0, description="that many DDP processes, one on each GPU"
    )
    resources_per_worker: str | None = Field(
        default=None,
        description="what each process holds, such as CPU=2,GPU=1 (None: a share of the CPUs)",
    )
    distributed_backend: Literal["ddp"] = Field(
        default="ddp", description="the way of many processes"
    )
    sync_batchnorm: bool = Field(
        default=False, description="BatchNorm statistics over all processes"
    )
    max_failures: int = Field(
        default=3, ge=0, le=1000, description="how often training starts again after a crash"
    )
    num_workers: int = Field(default=1, ge=1, le=64, description="reader threads a process")
    pin_memory: bool = Field(default=False, description="page-locked batches (GPU only)")

    @property
    def world_sizes(self) -> tuple[int, ...]:
        """The numbers of DDP processes that may train, fewest first: ``gpus``, or ``world_size``.

        Of a range those remain among which a batch divides evenly.
        """
        return world_sizes(self)

    @property
    def processes(self) -> int:
        """How many DDP processes train at most."""
        return self.world_sizes[-1]

    @property
    def resources(self) -> dict[str, float]:
        """What ``resources_per_worker`` names; empty where it is left to the cluster."""
        return parse_resources(self.resources_per_worker or "")

    @property
    def synchronised(self) -> bool:
        """Whether normalisation spans more than one process."""
        return self.sync_batchnorm and self.processes > 1

    @field_validator("loss_raw_mode", "loss_spec_mode", mode="before")
    @classmethod
    def _may_leave_the_domain_out(cls, value: Any, info: ValidationInfo) -> Any:
        return whole_name(value, "raw" if info.field_name == "loss_raw_mode" else "spec")

    @field_validator("world_size")
    @classmethod
    def _is_a_number_of_processes(cls, value: int | str) -> int | str:
        return check_world_size(value)

    @field_validator("resources_per_worker")
    @classmethod
    def _names_resources(cls, value: str | None) -> str | None:
        parse_resources(value or "")
        return value

    @model_validator(mode="after")
    def _options_fit_together(self) -> Self:
        _refuse(train_problems(self))
        return self


class EvaluateConfig(Settings):
    """Separation and scoring of whole tracks."""

    checkpoint: Path | None = Field(
        default=None, description="checkpoint folder (None: <output_dir>/checkpoint)"
    )
    split: Literal["train", "valid", "test"] = Field(default="test", description="which tracks")
    overlap_ratio: float = Field(
        default=0.5, ge=0, le=0.5, description="overlap of separation chunks"
    )
    save_estimates: Literal["none", "wav", "flac", "mp3"] = Field(
        default="none", description="keep the separated songs"
    )
    verify: int = Field(default=0, ge=0, description="tracks scored again with museval itself")
    oracles: bool = Field(
        default=False, description="score ideal ratio and binary masks too: upper bounds"
    )
    estimates_dir: Path | None = Field(
        default=None, description="score <split>/<track>/<source>.wav here, not a checkpoint"
    )
    scores_dir: Path | None = Field(
        default=None,
        description="put another system's museval files <split>/<track>.json here on the board",
    )
    scenario: Literal["sources", "vocals_accompaniment"] = Field(
        default="sources",
        description="sources against each other, or vocals against accompaniment as well",
    )
    report_audio: int = Field(
        default=1, ge=0, le=20, description="songs with players in the report"
    )


class TrackingConfig(Settings):
    """Names of the run, and where MLflow records it."""

    log: bool = Field(default=True, description="record in MLflow")
    tracking_uri: str | None = Field(
        default=None,
        description="MLflow address (None: $MLFLOW_TRACKING_URI or <output_dir>/mlflow.db)",
    )
    experiment_name: str = Field(default="lasaft", min_length=1, description="MLflow experiment")
    run_id: str | None = Field(
        default=None, description="name of the run (None: the date and time)"
    )

    @field_validator("run_id")
    @classmethod
    def _names_a_folder(cls, value: str | None) -> str | None:
        return check_run_id(value)


class ClusterConfig(Settings):
    """The Ray cluster that does the work."""

    address: str | None = Field(
        default=None, description="Ray address (None: $RAY_ADDRESS, or a cluster on this machine)"
    )
    num_cpus: int | None = Field(
        default=None, ge=1, description="CPUs of a local cluster (None: all)"
    )
    task_memory: float = Field(
        default=1.5, gt=0, description="GB of memory set aside for each task"
    )


class RunConfig(Settings):
    """Everything about one run."""

    output_dir: Path = Field(default=Path("runs/lasaft"), description="everything the run makes")
    model: ModelConfig = ModelConfig()
    data: DataConfig = DataConfig()
    train: TrainConfig = TrainConfig()
    search: SearchConfig = SearchConfig()
    evaluate: EvaluateConfig = EvaluateConfig()
    tracking: TrackingConfig = TrackingConfig()
    cluster: ClusterConfig = ClusterConfig()

    @model_validator(mode="after")
    def _groups_fit_together(self) -> Self:
        _refuse(run_problems(self))
        return self


def to_json(config: RunConfig) -> str:
    """Return the whole configuration as indented JSON, which :func:`from_json` reads."""
    return config.model_dump_json(indent=2) + "\n"


def from_json(text: str | bytes, origin: str = "config") -> RunConfig:
    """Return the configuration in ``text``, validated again.

    Raises:
        ConfigError: every problem, each with the option, the value and what is allowed.
    """
    try:
        return RunConfig.model_validate_json(text)
    except ValidationError as error:
        problems = problems_of(error, options_of(RunConfig))
        raise ConfigError([f"{origin}: {problem}" for problem in problems]) from error
