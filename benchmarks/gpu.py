"""Everything about one GPU in one run of at most eight minutes, without a network.

    python -m benchmarks.gpu
    python -m benchmarks.gpu --device cpu --tiny     the script itself, in half a minute

Every part runs in a process of its own with a bound on its time: equality with the reference's
stored outputs, a training step (eager, compiled, CUDA graphs), its kernels and the host's waits,
separation and validation, BSS Eval, trainings with the real loop, one that runs out of memory, a
driver that tells nothing. Where one part fails, the others still tell theirs, and the exit code is
1. Needs what ``lasaft`` needs: without PyArrow, MLflow or Ray, no training goes through them.
"""

from __future__ import annotations

import argparse
import importlib.util
import json
import math
import subprocess
import sys
import tempfile
import time
import types
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from datetime import date
from functools import partial
from pathlib import Path
from typing import Any

import torch
import torch._dynamo  # an optimiser's first step imports it: once here, not in each part


class _StandIn(types.ModuleType):
    """Stands for a package that the pipeline imports and no part here uses."""

    def __getattr__(self, name: str) -> type:
        if name.startswith("__"):
            raise AttributeError(name)
        return object


_NAMES = ("ray", "mlflow", "pyarrow", "yaml", "psutil")
_MISSING = [name for name in _NAMES if importlib.util.find_spec(name) is None]
sys.modules.update({name: _StandIn(name) for name in _MISSING})

from benchmarks.bounded import Row, within
from benchmarks.measure import Table, cpu_name, timed
from benchmarks.scoring_device import scoring
from lasaft.config import VARIANTS, ModelConfig
from lasaft.fast.specialise import specialise
from lasaft.network.losses import build_loss
from lasaft.network.model import LaSAFT
from lasaft.separation.separator import Separator, separate_spectrogram
from pipeline.config import RunConfig
from pipeline.data.windows.loader import Batch
from pipeline.training.loop.loss_network import loss_of
from pipeline.training.loop.randomness import repeatable
from pipeline.training.loop.ranks import Ranks
from pipeline.training.loop.step import READS_EVERY, Stepper
from pipeline.training.loop.system_metrics import Machine
from tests.helpers.parity import Fixture, fixture_names, relative_error
from tests.helpers.training import run_tiny, tiny_config, training_tensors

_LIMIT_SECONDS = 470.0
_NETWORK = "CUNET_TFC_GPoCM_LaSAFT"
# Sums in another order, and cuDNN's faster algorithms; TF32 alone would be some 1e-3.
_MOST_ERROR = 1e-4


@dataclass(frozen=True)
class Where:
    """The device, and how much is done on it."""

    device: torch.device
    tiny: bool

    @property
    def model(self) -> ModelConfig:
        """The network that is measured."""
        small: dict[str, Any] = {"n_fft": 256, "hop_length": 128, "internal_channels": 4}
        small |= {"n_blocks": 3, "n_internal_layers": 2, "num_frame": 128}
        return ModelConfig(**{**VARIANTS[_NETWORK], **(small if self.tiny else {})})

    @property
    def batches(self) -> tuple[int, ...]:
        """Windows of a step."""
        return (2, 4) if self.tiny else (8, 32)

    def seconds(self, work: Callable[[], object], times: int) -> float:
        """Return the mean seconds by the clock of ``work``, after a first time."""
        work()
        times = 1 if self.tiny else times
        return timed(lambda: [work() for _ in range(times)])["wall"] / times

    def peak_gb(self) -> str:
        """Return the most that tensors have taken of a GPU."""
        if self.device.type != "cuda":
            return ""
        return f", {torch.cuda.max_memory_allocated(self.device) / 1e9:.1f} GB"


def equality(where: Where) -> Iterator[Row]:
    """Compare networks, their fast form and a training step with the reference's numbers."""
    plain = fast = 0.0
    names = fixture_names("net_*")
    for name in names:
        fixture = Fixture(name)
        model, truth = fixture.model().to(where.device), fixture["out_spec"]
        condition = fixture["condition"].to(where.device)
        spec = fixture["input_spec"].to(where.device)
        with torch.no_grad():
            plain = max(plain, relative_error(model.network(spec, condition).cpu(), truth))
            wave = fixture.waves("wave").to(where.device)
            mixture = model.spectrogram.stft(wave)
            every = specialise(model, condition)(mixture)
            rows = torch.arange(len(condition))
            ours = every[rows, rows]
            wanted = model.to_spectrogram(model.estimate(mixture, condition), mixture)
            fast = max(fast, relative_error(ours, wanted))
    yield _within(f"{len(names)} networks against the reference", plain)
    yield _within("their fast form against the plain one", fast)
    fixture = Fixture("train_gpocm_lasaft")
    model = fixture.model().train().to(where.device)
    for module in model.modules():
        if isinstance(module, torch.nn.Dropout):
            module.p = 0.0
    mixture, target = (
        model.spectrogram.stft(fixture.waves(name).to(where.device))
        for name in ("mixture", "target")
    )
    estimate = model.estimate(mixture, fixture["condition"].to(where.device))
    loss = build_loss("spec_mse", model)(estimate, target, mixture)
    loss.backward()
    truth = fixture.meta["losses"]["spec_mse"]
    norm = float(
        torch.nn.utils.get_total_norm([p.grad for p in model.parameters() if p.grad is not None])
    )
    yield _within("loss of a step", abs(loss.item() / truth["value_fp64"] - 1))
    yield _within("norm of its gradient", abs(norm / truth["total_grad_norm"] - 1))


def _within(what: str, error: float) -> Row:
    assert error < _MOST_ERROR, f"{what}: differs by {error:.1e}, allowed: below {_MOST_ERROR:.0e}"
    return what, f"{error:.1e} apart", f"< {_MOST_ERROR:.0e}"


def _stepper(where: Where, windows: int, **train: Any) -> tuple[Stepper, Batch]:
    """Return a training's steps on the device, and a batch in the host's memory."""
    settings = {"batch_size": windows, "precision": "bf16"} | train
    config = RunConfig.model_validate({"model": where.model.model_dump(), "train": settings})
    torch.manual_seed(0)
    model = LaSAFT(config.model).to(where.device).train()
    loss = loss_of(config.train, config.train.train_loss, model)
    stepper = Stepper(model, loss, config.train, Ranks(0, 1, where.device))
    shape = (windows, config.model.spec_channels, config.model.num_frame, config.model.bins)
    tensors = torch.randn(shape), torch.randn(shape), torch.arange(windows) % 4
    pinned = where.device.type == "cuda"
    return stepper, Batch(*(each.pin_memory() if pinned else each for each in tensors))


def _steps(stepper: Stepper, batch: Batch) -> float:
    """Take as many steps as follow each other without a wait; return the last one's loss."""
    for _ in range(READS_EVERY):
        stepper.take(batch, 1e-4)
    *_, last = stepper.results()
    assert math.isfinite(last.loss), f"the loss is {last.loss}"
    return last.loss


def step_time(where: Where, compile: bool | str = False) -> Iterator[Row]:
    """Time a training step at two batch sizes."""
    for windows in where.batches:
        stepper, batch = _stepper(where, windows, compile=compile)
        began = time.perf_counter()
        first = _steps(stepper, batch)
        warm = time.perf_counter() - began
        spent = where.seconds(partial(_steps, stepper, batch), 6) / READS_EVERY
        goal = "15 ms (limits of an H200: 10.1 eager, 3.6 fused)" if windows == 8 else ""
        what = f"step of {windows} windows, compile {compile}, bf16"
        yield (
            what,
            f"{1e3 * spent:.2f} ms{where.peak_gb()}, first {warm:.0f} s, loss {first:.4f}",
            goal,
        )


def launches(where: Where) -> Iterator[Row]:
    """Count what a step launches and how often the host waits for it."""
    from torch.profiler import DeviceType, ProfilerActivity, profile

    stepper, batch = _stepper(where, where.batches[0])
    _steps(stepper, batch)
    activities = [ProfilerActivity.CPU, ProfilerActivity.CUDA]
    with profile(activities=activities[: 1 + (where.device.type == "cuda")]) as found:
        _steps(stepper, batch)
    events = found.events() or []
    kernels = [e.name for e in events if e.device_type == DeviceType.CUDA and "Mem" not in e.name]
    waits = [e.name for e in events if "Synchronize" in e.name]
    casts = [e.name for e in events if e.name == "aten::_to_copy"]
    for what, each in {"kernels": kernels, "casts": casts, "waits of the host": waits}.items():
        goal = f"{1 / READS_EVERY:g}, and those of the profiler" if each is waits else ""
        yield f"{what} a step", f"{len(each) / READS_EVERY:.1f}", goal


def separation(where: Where) -> Iterator[Row]:
    """Separate a song, and validate it."""
    config, length = where.model, 1.0 if where.tiny else 240.0
    model = LaSAFT(config).to(where.device).eval()
    wave = torch.rand(2, int(length * config.sample_rate)) - 0.5
    for precision in ("32", "bf16"):
        batch = 1 if where.device.type == "cpu" else 16
        separator = Separator(model, 0.0, batch, "bf16" if precision == "bf16" else "32")
        spent = where.seconds(lambda one=separator: one.separate(wave, config.sample_rate), 2)
        yield (
            f"separation, precision {precision}",
            f"{length / spent:.0f} times realtime",
            ">= 2000",
        )
    spec = model.spectrogram.stft(wave[None].to(where.device))[0]
    spent = where.seconds(lambda: separate_spectrogram(model, spec), 2)
    yield "validation", f"{length / spent:.0f} times realtime{where.peak_gb()}", ""


def _small(root: Path, name: str, **train: Any) -> RunConfig:
    return tiny_config(
        root / name, **{"optimizer": "sgd", "lr": 0.01, "steps_per_epoch": 7} | train
    )


def training(where: Where) -> Iterator[Row]:
    """Train with the real loop; stopped between, it ends alike."""
    ranks = Ranks(0, 1, where.device)
    with tempfile.TemporaryDirectory() as folder:
        options = {"precision": "bf16", "max_epochs": 3, "deterministic": True}
        options |= {"mid_epoch_seconds": 1e-9}
        whole, broken = (_small(Path(folder), name, **options) for name in ("whole", "broken"))
        spent = timed(lambda: run_tiny(whole, ranks=ranks))["wall"]
        try:
            run_tiny(broken, ranks=ranks, stop_at=11)
        except KeyboardInterrupt:
            run_tiny(broken, ranks=ranks)
        wrong = _differences(whole, broken)
        assert wrong == 0, f"a training that was interrupted differs by {wrong:.1e}"
        yield "training, 21 small steps, 3 validations", f"{spent:.1f} s", ""
        yield "the same, interrupted", "the same bits", "the same bits"


def through_ray(where: Where) -> Iterator[Row]:
    """Train on shards, through Ray where that is installed."""
    if _MISSING or where.tiny:
        reason = f"without {', '.join(_MISSING)}" if _MISSING else "takes longer than all the rest"
        yield "training on shards through Ray", f"left out: {reason}", ""
        return
    from tests.helpers.small_training import config_of, prepare, words_of

    with tempfile.TemporaryDirectory() as folder:
        prepare(Path(folder))
        gpus = {"world_size": 1, "gpus": 1} if where.device.type == "cuda" else {"world_size": 1}
        config = config_of(
            Path(folder), "run", max_epochs=1, pin_memory=bool(gpus.get("gpus")), **gpus
        )
        command = [sys.executable, "-m", "jobs.train", *words_of(config), "--json"]
        began = time.perf_counter()
        done = subprocess.run(command, capture_output=True, text=True, check=False)
        assert done.returncode == 0, done.stderr[-500:]
        spent = time.perf_counter() - began
        yield "training on shards through Ray, 100 steps", f"{spent:.0f} s with its start", ""


def out_of_memory(where: Where) -> Iterator[Row]:
    """Run out of memory in mid epoch; go on with less memory, to the same weights."""
    ranks = Ranks(0, 1, where.device)
    with tempfile.TemporaryDirectory() as folder:
        options = {"mid_epoch_seconds": 1e-9}
        whole, short = (_small(Path(folder), name, **options) for name in ("whole", "short"))
        run_tiny(whole, ranks=ranks)
        forward, calls = LaSAFT.estimate, 0

        def full(*arguments: Any) -> torch.Tensor:
            nonlocal calls
            calls += 1
            if calls == 12:  # in the second epoch
                if where.device.type == "cuda":
                    torch.empty(2**50, dtype=torch.uint8, device=where.device)
                raise torch.OutOfMemoryError("as a GPU would say it")
            return forward(*arguments)

        LaSAFT.estimate = full  # type: ignore[method-assign]
        try:
            run_tiny(short, ranks=ranks)
        except torch.OutOfMemoryError:
            LaSAFT.estimate = forward  # type: ignore[method-assign]
        assert calls == 12, "the training did not run out of memory"
        train = short.train.model_copy(update={"activation_checkpointing": True})
        run_tiny(short.model_copy(update={"train": train}), ranks=ranks)
        error = _differences(whole, short)
        yield _within("out of memory, gone on with activation_checkpointing", error)


def _differences(first: RunConfig, second: RunConfig) -> float:
    """Return the largest difference of two trainings' weights, statistics and moments."""
    ours, theirs = training_tensors(first), training_tensors(second)
    assert ours.keys() == theirs.keys()
    return max(float((ours[k].double() - theirs[k].double()).abs().max()) for k in ours)


def silent_driver(where: Where) -> Iterator[Row]:
    """Measure the machine where NVML answers with an error."""

    def refuse(*_: object) -> int:
        raise RuntimeError("Not Supported")

    torch.cuda.utilization = refuse
    values = Machine(where.device, every_seconds=0.0).measure()
    assert values is not None
    assert not any("gpu" in name and "utilization" in name for name in values)
    yield "a driver that tells nothing", f"{len(values)} other numbers measured", "no error"


# What is done, in which order, and the seconds that each part may take.
PARTS: dict[str, tuple[Callable[[Where], Iterator[Row]], float]] = {
    "equality": (equality, 50),
    "eager": (step_time, 50),
    "launches": (launches, 40),
    "separation": (separation, 60),
    "training": (training, 50),
    "scoring": (lambda where: scoring(where.device, where.tiny), 60),
    "memory": (out_of_memory, 40),
    "driver": (silent_driver, 20),
    "graphs": (lambda where: step_time(where, "graphs"), 110),
    "blocks": (lambda where: step_time(where, "blocks"), 90),
    "compiled": (lambda where: step_time(where, True), 90),
    "ray": (through_ray, 90),
}
# Compiling takes longer than all the rest, and a CPU has no graphs.
TINY = [name for name in PARTS if name not in ("graphs", "blocks", "compiled")]


def rows_of(name: str, where: Where) -> Iterator[Row]:
    """Yield a part's rows, with the settings of a training."""
    if where.device.type == "cpu":
        torch.set_num_threads(1)  # several would wait for each other where others work as well
    with repeatable(False):
        yield from PARTS[name][0](where)


def versions(device: str) -> str:
    """Return the date, the device, its driver and the versions in one line."""
    name = cpu_name()
    if device == "cuda":
        ask = "--query-gpu=name,driver_version,memory.total", "--format=csv,noheader"
        try:
            done = subprocess.run(("nvidia-smi", *ask), capture_output=True, text=True, check=True)
            name = done.stdout.splitlines()[0]
        except (OSError, subprocess.CalledProcessError):
            name = "a GPU whose driver does not say"
    cuda = f", CUDA {torch.version.cuda}, cuDNN {torch.backends.cudnn.version()}"
    return f"{date.today()}, {name}, torch {torch.__version__}{cuda if device == 'cuda' else ''}"


def main() -> None:
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("--device", choices=("cuda", "cpu"), default="cuda")
    parser.add_argument("--tiny", action="store_true", help="small networks, nothing compiled")
    parser.add_argument("--parts", nargs="+", choices=PARTS, help="these alone")
    parser.add_argument("--json", type=Path, help="a file for the same rows")
    options = parser.parse_args()
    # Asked in another process: one that has asked cannot be divided into parts any more.
    ask = "import sys, torch; sys.exit(not torch.cuda.is_available())"
    if (
        options.device == "cuda"
        and subprocess.run((sys.executable, "-c", ask), check=False).returncode
    ):
        parser.error("device: got cuda, but torch sees no GPU here")
    where, began = Where(torch.device(options.device), options.tiny), time.monotonic()
    print(f"{versions(options.device)}\n")
    table, faults, kept = Table("part", "what", "measured", "goal"), [], []
    for name in options.parts or (TINY if options.tiny else PARTS):
        left = _LIMIT_SECONDS - (time.monotonic() - began)
        bound = PARTS[name][1] * (1 if options.device == "cuda" else 3)
        rows, fault = within(min(bound, max(left, 1.0)), partial(rows_of, name, where))
        rows += [("failed", fault, "")] if fault else []
        faults += [name] if fault else []
        for row in rows:
            table.row(name, *row)
        kept += [[name, *row] for row in rows]
    print(f"\n{time.monotonic() - began:.0f} s; {', '.join(faults) or 'no part'} failed")
    if options.json is not None:
        options.json.write_text(json.dumps(kept, indent=1))
    sys.exit(1 if faults else 0)


if __name__ == "__main__":
    main()
