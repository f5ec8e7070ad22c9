"""Separates a song with the plain network, source by source, and with its inference forms.

    python -m benchmarks.inference --variant CUNET_TFC_GPoCM_LaSAFT --seconds 30
    python -m benchmarks.inference --variant all --seconds 5
    python -m benchmarks.inference --device cuda

Each form has a process of its own, since the fast one changes how its process keeps memory. On a
CPU they take turns, window by window, so that other work on the machine slows them alike, and what
counts is CPU time. On a GPU the whole song goes through one form after the other, and what counts
is time by the clock.
"""

from __future__ import annotations

import argparse
from collections.abc import Callable, Mapping
from concurrent.futures import ProcessPoolExecutor
from contextlib import ExitStack
from functools import cache, partial
from multiprocessing import get_context

import numpy as np
import torch
from torch import Tensor, nn

from benchmarks.measure import Figures, Table, timed
from benchmarks.plain import plain_form
from lasaft.config import VARIANTS, ModelConfig
from lasaft.fast.specialise import specialise
from lasaft.network.blocks import ConvNorm
from lasaft.network.frequency import LaSAFTTransform, LightSAFTTransform, ResidualTDF
from lasaft.network.model import LaSAFT
from lasaft.separation.separator import BuildEstimator, Separator

# Windows that go through the network at once.
_BATCH = {"cpu": 1, "cuda": 8}


def source_by_source(model: LaSAFT, conditions: Tensor) -> Callable[[Tensor], Tensor]:
    """Run the whole network once for each source, as the reference does it."""

    def estimate(mixture: Tensor) -> Tensor:
        outputs = (model.estimate(mixture, each.expand(len(mixture))) for each in conditions)
        return torch.stack([model.to_spectrogram(each, mixture) for each in outputs], dim=1)

    return estimate


def half_precision(model: LaSAFT, conditions: Tensor) -> Callable[[Tensor], Tensor]:
    """The same under float16 autocast."""
    estimate = source_by_source(model, conditions)

    def half(mixture: Tensor) -> Tensor:
        with torch.autocast(mixture.device.type, torch.float16):
            return estimate(mixture).float()

    return half


def compiled(model: LaSAFT, conditions: Tensor) -> Callable[[Tensor], Tensor]:
    """The inference form in bfloat16, compiled."""
    return torch.compile(specialise(model, conditions, torch.bfloat16))


def random_model(variant: str) -> LaSAFT:
    """A network with random weights, whose BatchNorm statistics fit some noise."""
    torch.manual_seed(0)
    config = ModelConfig(**VARIANTS[variant])
    model = LaSAFT(config).train()
    with torch.no_grad():
        spec = torch.randn(4, config.spec_channels, config.time_reduction * 2, config.bins)
        for _ in range(20):
            model.estimate(spec, torch.arange(4))
    return model.eval()


# What is compared, the measure of all first: whether it is the plain network, and what runs it.
FORMS: dict[str, dict[str, tuple[bool, BuildEstimator]]] = {
    "cpu": {
        "plain, source by source": (True, source_by_source),
        "specialised, float32": (False, specialise),
        "specialised, bfloat16": (False, partial(specialise, dtype=torch.bfloat16)),
    },
    "cuda": {
        "plain, source by source, float32": (True, source_by_source),
        "plain, source by source, float16 autocast": (True, half_precision),
        "specialised, float32": (False, specialise),
        "specialised, bfloat16, compiled": (False, compiled),
    },
}


@cache
def separator(variant: str, device: str, name: str) -> Separator:
    """Build a form, once in a process."""
    plain, build = FORMS[device][name]
    model = random_model(variant)
    network = plain_form(model) if plain else model
    return Separator(network.to(device), 0.0, _BATCH[device], build_estimator=build)


def separate(threads: int, form: tuple[str, str, str], wave: np.ndarray) -> tuple[Figures, list]:
    """Return what a form took for a piece of song, and the stems."""
    torch.set_num_threads(threads)
    one = separator(*form)
    stems: dict[str, Tensor] = {}
    spent = timed(lambda: stems.update(one.separate(wave, one.config.sample_rate)))
    return spent, [stem.numpy() for stem in stems.values()]


class Result:
    """What one form needed and made of the song."""

    def __init__(self) -> None:
        self.cpu = self.wall = 0.0  # seconds
        self.pieces: list[Tensor] = []

    def add(self, spent: Figures, stems: list) -> None:
        """Add a piece of the song."""
        self.wall += spent["wall"]
        self.cpu += spent["cpu"]
        self.pieces.append(torch.from_numpy(np.stack(stems)))


def measure(
    variant: str, options: argparse.Namespace, wave: Tensor, piece: int
) -> dict[str, Result]:
    """Separate ``wave`` in pieces of so many samples, all forms in turn."""
    results = {name: Result() for name in FORMS[options.device]}
    with ExitStack() as stack:
        pool = partial(ProcessPoolExecutor, 1, get_context("spawn"))
        pools = [stack.enter_context(pool()) for _ in results]
        # The first piece is done once before: that builds the form and warms it up.
        for count, part in enumerate((wave[:, :piece], *wave.split(piece, dim=1))):
            for own, name in zip(pools, results, strict=True):
                form = (variant, options.device, name)
                done = own.submit(separate, options.threads, form, part.numpy()).result()
                if count:
                    results[name].add(*done)
    return results


def show(results: Mapping[str, Result], seconds: float, floor: float | None) -> None:
    """Print a table; ``floor`` is the time that moving the least possible memory takes."""
    last = [] if floor is None else ["share of the bandwidth floor"]
    times = ("CPU s", "a second of audio", "wall s", "times as fast")
    rows = Table("form", *times, "largest difference / scale", "SNR dB", *last)
    first = next(iter(results.values()))
    truth = torch.cat(first.pieces, dim=-1)
    for name, result in results.items():
        difference = torch.cat(result.pieces, dim=-1) - truth
        largest = float(difference.abs().max() / truth.abs().max())
        snr = 20 * float((truth.norm() / difference.norm().clamp_min(1e-30)).log10())
        equality = ["", ""] if result is first else [f"{largest:.1e}", f"{snr:.0f}"]
        speed = first.cpu / result.cpu if floor is None else first.wall / result.wall
        figures = (result.cpu, result.cpu / seconds, result.wall, speed)
        cells = [f"{value:.2f}" for value in figures]
        share = [] if floor is None else [f"{floor / result.wall:.2f}"]
        rows.row(name, *cells, *equality, *share)


def traffic_bytes(model: LaSAFT) -> int:
    """Bytes that one window of one source must move in 16 bit.

    Every convolution and frequency transform reads its input and writes its output once; all else
    happens in between. Nothing is shared between sources.
    """
    model, moved = plain_form(model).cpu(), 0
    kinds = (ConvNorm, ResidualTDF, LaSAFTTransform, LightSAFTTransform)

    def count(module: nn.Module, inputs: tuple, output: Tensor) -> None:
        nonlocal moved
        moved += 2 * (inputs[0].numel() + output.numel())

    for module in model.modules():
        if isinstance(module, kinds) or module is model.network.last:
            module.register_forward_hook(count)
    config = model.config
    with torch.no_grad():
        spec = torch.zeros(1, config.spec_channels, config.num_frame, config.bins)
        model.estimate(spec, torch.zeros(1, dtype=torch.int64))
    return moved


def bytes_per_second() -> float:
    """How fast the GPU copies memory, reading and writing counted."""
    source = torch.empty(2**30, dtype=torch.uint8, device="cuda")
    target = torch.empty_like(source)
    return 2 * len(source) / min(timed(lambda: target.copy_(source))["wall"] for _ in range(10))


def benchmark(variant: str, options: argparse.Namespace) -> None:
    model = random_model(variant)
    config = model.config
    window = (config.num_frame - 1 - 2 * config.trim_frames) * config.hop_length
    samples = int(config.sample_rate * options.seconds)
    windows = -(-samples // window)
    floor = None
    if options.device == "cuda":
        floor = traffic_bytes(model) * windows * len(config.sources) / bytes_per_second()
    generator = torch.Generator().manual_seed(0)
    wave = 0.1 * torch.randn(config.audio_channels, samples, generator=generator).cumsum(-1).sin()
    piece = window if options.device == "cpu" else samples
    print(f"\n{variant}, {options.seconds:g} s, {options.device}, {options.threads} threads\n")
    show(measure(variant, options, wave, piece), options.seconds, floor)


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0] if __doc__ else None)
    parser.add_argument("--variant", choices=("all", *VARIANTS), default="CUNET_TFC_GPoCM_LaSAFT")
    parser.add_argument("--seconds", type=float, default=30, help="of stereo music-like noise")
    parser.add_argument("--threads", type=int, default=1)
    parser.add_argument("--device", choices=("cpu", "cuda"), default="cpu")
    options = parser.parse_args()
    if options.device == "cuda" and not torch.cuda.is_available():
        parser.error("device: got cuda, but torch sees no GPU here")
    torch.set_num_threads(options.threads)
    for variant in VARIANTS if options.variant == "all" else (options.variant,):
        benchmark(variant, options)


if __name__ == "__main__":
    main()
