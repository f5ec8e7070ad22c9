"""The settings of a training: batches, losses, optimiser, stopping, processes."""

from __future__ import annotations

import re
from collections.abc import Iterator
from itertools import chain
from pathlib import Path
from typing import Annotated, Any, Literal, Self

from pydantic import Field, ValidationInfo, field_validator, model_validator

from lasaft.config import Settings, option, whole_name
from lasaft.errors import ConfigError, Problem, no_effect, refuse

LossName = Literal[
    "spec_l1", "spec_l2", "spec_mse", "raw_l1", "raw_l2", "raw_mse", "raw_and_spec",
    "sdr_like", "sdr", "dsr", "nsdr", "nsdr_44100", "ldsr", "distortion",
    "ncs", "ncs_44100", "nlcs",
]  # fmt: skip
RAW_AND_SPEC = ("loss_raw_scale", "loss_raw_mode", "loss_spec_scale", "loss_spec_mode")
# For each optimiser, the options that it takes and not every one does.
OPTIMIZER_OPTIONS: dict[str, tuple[str, ...]] = {
    "adam": ("betas",),
    "adamw": ("betas",),
    "adagrad": (),
    "sgd": ("momentum",),
    "rmsprop": ("momentum",),
}
PLATEAU_PATIENCE = 50  # the reference's: after more epochs without a better loss, lr is halved
# What decides how many processes train: of a range, the numbers among which a batch divides.
PROCESS_COUNT = ("gpus", "world_size", "batch_size", "accumulate_grad_batches")
_Decay = Annotated[float, Field(ge=0, le=0.99999)]
_RANGE = re.compile(r"([1-9][0-9]{0,5}):([1-9][0-9]{0,5})")
_RESOURCE = re.compile(r"([A-Za-z][\w.-]*)=([0-9]{1,18}(?:\.[0-9]{1,4})?)")


class TrainConfig(Settings):
    """One training: batches, optimiser, schedule, stopping, what is kept."""

    target_names: tuple[str, ...] | None = option(
        None, "train on these sources only (None: all)", role="task"
    )
    batch_size: int = option(8, "windows a step, over all processes together", ge=1)
    steps_per_epoch: int | None = option(
        None,
        "steps an epoch (None: one pass over the training frames)",
        ge=1,
        le=1_000_000,
        role="task",
    )
    min_epochs: int = option(1, "no early stop before this many epochs", ge=1, role="ending")
    max_epochs: int = option(1000, "the last epoch", ge=1, role="ending")
    time_limit_hours: float | None = option(
        None, "training ends after so many hours (all calls together)", gt=0, role="limit"
    )
    patience: int = option(
        40, "epochs without a better val_loss before a stop", ge=1, role="ending"
    )
    min_delta: float = option(
        0.0, "by how much val_loss must fall to count for patience", ge=0, role="ending"
    )
    train_loss: LossName = option("spec_mse", "loss that is minimised")
    val_loss: LossName = option("raw_l1", "loss that selects the model", role="task")
    loss_raw_scale: float | None = option(None, "raw_and_spec: raw weight", gt=0)
    loss_raw_mode: Literal["raw_l1", "raw_l2", "raw_mse"] | None = option(
        None, "raw_and_spec: raw part (l1 is raw_l1)"
    )
    loss_spec_scale: float | None = option(None, "raw_and_spec: spec weight", gt=0)
    loss_spec_mode: Literal["spec_l1", "spec_l2", "spec_mse"] | None = option(
        None, "raw_and_spec: spec part (l1 is spec_l1)"
    )
    optimizer: Literal["adam", "adamw", "adagrad", "sgd", "rmsprop"] = option("adam", "optimiser")
    lr: float = option(1e-3, "learning rate", gt=0, le=10)
    weight_decay: float | None = option(
        None,
        "pull of weights to 0, not of norms, biases, embeddings (None: torch's; adamw 0.01 of all)",
        ge=0,
        le=1,
    )
    momentum: _Decay = option(0.0, "momentum of sgd and rmsprop")
    betas: tuple[_Decay, _Decay] = option(
        (0.9, 0.999), "decay of adam's and adamw's means of the gradient and of its square"
    )
    auto_lr_schedule: bool = option(False, f"halve lr after {PLATEAU_PATIENCE} epochs on a plateau")
    lr_schedule: Literal["constant", "cosine"] = option(
        "constant", "lr over the steps up to max_epochs"
    )
    warmup_steps: int = option(0, "steps of linear warm-up", ge=0)
    gradient_clip_val: float | None = option(None, "largest gradient norm", gt=0)
    accumulate_grad_batches: int = option(1, "micro-batches a step, a process", ge=1)
    ema_decay: float | None = option(
        None, "validate and save a moving average of weights", gt=0, le=0.99999
    )
    precision: Literal["16", "bf16", "32"] = option("32", "bits of the arithmetic")
    compile: Literal[False, True, "blocks", "graphs"] = option(
        False, "let torch compile the network (graphs: with CUDA graphs) or its blocks", role="way"
    )
    activation_checkpointing: bool = option(
        False, "less memory, more time: run each block again in backward", role="way"
    )
    deterministic: bool = option(
        False, "on GPUs too, equal runs give equal bits; some are slower", role="way"
    )
    seed: int = option(2020, "seed of weights and draws", ge=0, le=2**32 - 1, role="seed")

    save_top_k: int = option(5, "how many best epochs to keep", ge=1, role="way")
    save_weights_only: bool = option(
        False, "drop the training state once training has ended", role="way"
    )
    mid_epoch_seconds: float = option(
        300.0, "save the training state at least this often", gt=0, role="way"
    )
    resume_from_checkpoint: Path | None = option(
        None, "start from these weights (a checkpoint, or a .ckpt file)", role="task"
    )
    sample_every_epochs: int = option(
        10, "epochs from one audio excerpt to the next (0: none)", ge=0, role="way"
    )

    world_size: int | str = option(
        1, "DDP processes (MIN:MAX: as many as there is room for)", role="way"
    )
    gpus: int | None = option(None, "that many DDP processes, one on each GPU", ge=0, role="way")
    resources_per_worker: str | None = option(
        None, "what each process holds: CPU=2,GPU=1 (None: a share of CPUs)", role="way"
    )
    distributed_backend: Literal["ddp"] = option("ddp", "the way of many processes", role="way")
    sync_batchnorm: bool = option(False, "BatchNorm over all processes; one rounds as many do")
    validation: Literal["inline", "beside"] = option(
        "inline", "training waits for it, or decides an epoch later", role="task"
    )
    validation_resources: str | None = option(
        None, "what validation beside training holds (None: as a process does)", role="way"
    )
    max_failures: int = option(
        3, "how often training starts again after a crash", ge=0, le=1000, role="way"
    )
    num_workers: int = option(1, "reader threads a process", ge=1, le=64, role="way")
    pin_memory: bool = option(False, "page-locked batches (GPU only)", role="way")

    @property
    def world_sizes(self) -> tuple[int, int]:
        """The fewest and the most DDP processes that may train: ``gpus``, or ``world_size``.

        A range ends where each process has one window of a micro-batch.
        """
        low, high = parse_range(self.gpus or self.world_size)
        return low, max(low, min(high, self.batch_size // self.accumulate_grad_batches))

    @property
    def processes(self) -> int:
        """How many DDP processes train at most."""
        return self.world_sizes[-1]

    @property
    def resources(self) -> dict[str, float]:
        """What ``resources_per_worker`` names; empty where it is left to the cluster."""
        return parse_resources(self.resources_per_worker or "", "resources_per_worker")

    @property
    def validator(self) -> dict[str, float]:
        """What validation beside training holds by ``validation_resources``; empty if nothing."""
        text = self.validation_resources if self.validation == "beside" else None
        return parse_resources(text or "", "validation_resources")

    @property
    def extra_processes(self) -> int:
        """How many processes more hold what each of those that train does: one may validate."""
        return int(self.validation == "beside" and not self.validator)

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

    @field_validator("resources_per_worker", "validation_resources")
    @classmethod
    def _names_resources(cls, value: str | None, info: ValidationInfo) -> str | None:
        parse_resources(value or "", info.field_name or "")
        return value

    @model_validator(mode="after")
    def _options_fit_together(self) -> Self:
        refuse(_problems(self))
        return self


def _problems(train: TrainConfig) -> Iterator[Problem]:
    """Yield what does not fit together within one training's options."""
    losses = [name for name in ("train_loss", "val_loss") if getattr(train, name) == "raw_and_spec"]
    for name in RAW_AND_SPEC if losses else ():
        if getattr(train, name) is None:
            allowed = "a value, because the loss raw_and_spec needs it"
            yield Problem(name, "None", allowed, others=tuple(losses))
    if train.min_epochs > train.max_epochs:
        allowed = f"at most max_epochs ({train.max_epochs})"
        yield Problem("min_epochs", train.min_epochs, allowed, others=("max_epochs",))
    if train.auto_lr_schedule and train.lr_schedule != "constant":
        allowed = f"only with lr_schedule constant, which is {train.lr_schedule}"
        yield Problem("auto_lr_schedule", "True", allowed, others=("lr_schedule",))
    if train.compile and train.activation_checkpointing:
        allowed = "only without compile, which decides by itself what to compute again"
        yield Problem("activation_checkpointing", "True", allowed, others=("compile",))
    parts, fewest = train.accumulate_grad_batches, train.world_sizes[0]
    if train.batch_size < fewest * parts:
        allowed = (
            f"at least {fewest * parts}, a window for each process in each micro-batch (processes "
            f"{fewest} x accumulate_grad_batches {parts})"
        )
        yield Problem("batch_size", train.batch_size, allowed, others=PROCESS_COUNT)
    elif train.batch_size % parts:
        allowed = f"a multiple of accumulate_grad_batches ({parts})"
        others = ("accumulate_grad_batches",)
        yield Problem("batch_size", train.batch_size, allowed, others=others)


def train_without_effect(train: TrainConfig) -> dict[str, Problem]:
    """Return the options of a training that do nothing with the others, each with the reason."""
    idle: dict[str, Problem] = {}
    if "raw_and_spec" not in (train.train_loss, train.val_loss):
        because = "neither train_loss nor val_loss is raw_and_spec"
        idle |= no_effect(RAW_AND_SPEC, because, "train_loss", "val_loss")
    for name in {*chain.from_iterable(OPTIMIZER_OPTIONS.values())}:
        users = [user for user, names in OPTIMIZER_OPTIONS.items() if name in names]
        if train.optimizer not in users:
            because = f"optimizer {train.optimizer} does not use it ({', '.join(users)} do)"
            idle |= no_effect([name], because, "optimizer")
    if train.validation == "inline":
        idle |= no_effect(["validation_resources"], "validation is inline", "validation")
    # The first epoch is the best one so far; lr is halved when more than so many have followed,
    # and that is of use to the epoch after them.
    if max(train.patience, train.min_epochs - 1) <= PLATEAU_PATIENCE + 1:
        because = (
            f"patience {train.patience} ends training before lr is halved, which is after "
            f"{PLATEAU_PATIENCE + 1} epochs without a better val_loss"
        )
        idle |= no_effect(["auto_lr_schedule"], because, "patience", "min_epochs")
    return idle


def parse_range(world_size: int | str) -> tuple[int, int]:
    """Return the least and the most processes; ``world_size`` has been checked.

    >>> parse_range(2), parse_range("1:4")
    ((2, 2), (1, 4))
    """
    if isinstance(world_size, int):
        return world_size, world_size
    low, _, high = world_size.partition(":")
    return int(low), int(high)


def check_world_size(world_size: int | str) -> int | str:
    """Return ``world_size`` if it is a number of processes, or a range of them.

    Raises:
        ConfigError: it is neither.
    """
    if isinstance(world_size, int):
        fits = 1 <= world_size <= 10**6
    else:
        found = _RANGE.fullmatch(world_size)
        fits = found is not None and int(found[1]) <= int(found[2])
    if fits:
        return world_size
    allowed = "a whole number of at least 1, or MIN:MAX with MIN at most MAX, such as 1:4"
    raise ConfigError(Problem("world_size", repr(world_size), allowed))


def parse_resources(text: str, option: str) -> dict[str, float]:
    """Return the amounts in a text such as ``CPU=2,GPU=1``, which are names that Ray knows.

    Raises:
        ConfigError: it is not of that form, or an amount is 0; names the ``option``.

    >>> parse_resources("CPU=2, GPU=1", "resources_per_worker")
    {'CPU': 2.0, 'GPU': 1.0}
    """
    amounts: dict[str, float] = {}
    for part in text.split(",") if text.strip() else []:
        found = _RESOURCE.fullmatch(part.strip())
        if found is None or not float(found[2]) or found[1] in amounts:
            allowed = (
                "names of Ray's resources, each once with an amount above 0, such as CPU=2,GPU=1"
            )
            raise ConfigError(Problem(option, repr(text), allowed))
        amounts[found[1]] = float(found[2])
    if amounts.get("GPU", 1) != 1:
        allowed = "GPU=1 or no GPU, because each process works on one device"
        raise ConfigError(Problem(option, repr(text), allowed))
    return amounts
