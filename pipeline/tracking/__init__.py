"""Records of every stage in MLflow: told from a journal on disk by a thread that nobody waits for.

The journal is the truth. A server that is down or slow neither stops nor slows the work: what it
missed is told as soon as it answers, by this command or by the next one on the same folder.
"""

from pipeline.tracking.address import tracking_address, ui_command
from pipeline.tracking.tracker import Tracker

__all__ = ["Tracker", "tracking_address", "ui_command"]
