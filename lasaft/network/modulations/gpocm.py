"""Multiplies each point by a gate between 0 and 1 that PoCM makes of its channels (GPoCM).

Source: arXiv 2010.11631, section 2.4.
"""

from __future__ import annotations

from lasaft.network.modulations.pocm import PoCM

LABEL = "GPoCM"
OPTIONS = ("pocm_type", "pocm_norm")


class GPoCM(PoCM):
    """x * sigmoid(PoCM(x))."""

    gated = True
