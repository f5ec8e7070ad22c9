"""Separates a song with the plain network, the network as it is, and its inference forms.

    python -m benchmarks.inference --variant CUNET_TFC_GPoCM_LaSAFT --seconds 30

Times are of one thread's work in one run, interleaved; the best of several rounds counts.
"""

from __future__ import annotations

import argparse
import time
from collections.abc import Callable
from functools import partial

import torch
from torch import Tensor

from benchmarks.plain import plain_form
from lasaft.config import VARIANTS, ModelConfig
from lasaft.memory import keep_freed_memory
from lasaft.model import LaSAFT
from lasaft.separation import Separator
from lasaft.specialise import specialise


def source_by_source(model: LaSAFT, conditions: Tensor) -> Callable[[Tensor], Tensor]:
    """Run the whole network once for each source, as the reference does it."""

    def estimate(mixture: Tensor) -> Tensor:
        outputs = []
        for condition in conditions:
            output = model.estimate(mixture, condition.expand(len(mixture)))
            outputs.append(model.to_spectrogram(output, mixture))
        return torch.stack(outputs, dim=1)

    return estimate


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


def forms(model: LaSAFT) -> dict[str, Separator]:
    plain = plain_form(model)

    def form(network: LaSAFT, build: Callable) -> Separator:
        return Separator(network, overlap_ratio=0.0, build_estimator=build)

    return {
        "plain, source by source": form(plain, source_by_source),
        "network, source by source": form(model, source_by_source),
        "specialised, float32": form(model, specialise),
        "specialised, bfloat16": form(model, partial(specialise, dtype=torch.bfloat16)),
    }


def measure(separators: dict[str, Separator], wave: Tensor, rounds: int) -> None:
    seconds = dict.fromkeys(separators, float("inf"))
    stems: dict[str, Tensor] = {}
    for _ in range(rounds):
        for name, separator in separators.items():
            start = time.process_time()
            result = separator.separate(wave, separator.config.sample_rate)
            seconds[name] = min(seconds[name], time.process_time() - start)
            stems[name] = torch.stack(list(result.values()))
    first, truth = next(iter(stems.items()))
    print("| form | CPU s | times as fast | largest difference / scale | SNR dB |")
    print("|---|---|---|---|---|")
    for name, stem in stems.items():
        difference = stem - truth
        largest = float(difference.abs().max() / truth.abs().max())
        snr = 20 * float((truth.norm() / difference.norm().clamp_min(1e-30)).log10())
        equality = f"{largest:.1e} | {snr:.0f}" if name != first else "|"
        print(
            f"| {name} | {seconds[name]:.2f} | {seconds[first] / seconds[name]:.2f} | {equality} |"
        )


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0] if __doc__ else None)
    parser.add_argument("--variant", choices=VARIANTS, default="CUNET_TFC_GPoCM_LaSAFT")
    parser.add_argument("--seconds", type=float, default=2.7, help="of stereo music-like noise")
    parser.add_argument("--rounds", type=int, default=2)
    parser.add_argument("--threads", type=int, default=1)
    parser.add_argument("--keep_memory", action="store_true", help="for all forms alike")
    options = parser.parse_args()
    torch.set_num_threads(options.threads)
    if options.keep_memory:
        keep_freed_memory()
    wave = 0.1 * torch.randn(2, int(44100 * options.seconds)).cumsum(-1).sin()
    print(f"{options.variant}, {options.seconds:g} s, {options.threads} threads")
    measure(forms(random_model(options.variant)), wave, options.rounds)


if __name__ == "__main__":
    main()
