"""Separation metrics, each defined once: BSS Eval (museval's numbers), uSDR/nSDR, SI-SDR."""

from __future__ import annotations

from lasaft.metrics.bss_eval import METRICS, Scores, bss_eval
from lasaft.metrics.frames import frame_sdr
from lasaft.metrics.museval_format import museval_json, read_museval_json
from lasaft.metrics.simple import nsdr, si_sdr, usdr

__all__ = [
    "METRICS", "Scores", "bss_eval", "frame_sdr", "museval_json", "nsdr", "read_museval_json",
    "si_sdr", "usdr",
]  # fmt: skip
