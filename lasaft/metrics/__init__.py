"""Separation metrics, each defined once: BSS Eval, uSDR, SI-SDR, SI-SAR, logWMSE, bleedless."""

from __future__ import annotations

from lasaft.metrics.bss_eval import METRICS, Scores, bss_eval, bss_eval_tracks
from lasaft.metrics.frames import frame_sdr
from lasaft.metrics.heard import bleedless_fullness, log_wmse
from lasaft.metrics.museval_format import museval_json, read_museval_json
from lasaft.metrics.simple import nsdr, si_sar, si_sdr, usdr

__all__ = [
    "METRICS", "Scores", "bleedless_fullness", "bss_eval", "bss_eval_tracks", "frame_sdr",
    "log_wmse", "museval_json", "nsdr", "read_museval_json", "si_sar", "si_sdr", "usdr",
]  # fmt: skip
