"""cluster.yaml, as it is and with the comment signs of one of its blocks taken away."""

from __future__ import annotations

import re

from tests.helpers import ROOT

CLUSTER = ROOT / "cluster.yaml"


def cluster_text(block: str = "") -> str:
    """Return the file's text.

    Args:
        block: the first words of the block that counts; none: the file as it is.
    """
    text, *blocks = re.split(r"^# ---- ", CLUSTER.read_text(), flags=re.MULTILINE)
    if not block:
        return text
    (chosen,) = (each for each in blocks if each.startswith(block))
    return text + re.sub(r"^# ?", "", chosen.partition("\n")[2], flags=re.MULTILINE)
