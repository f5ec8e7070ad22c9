"""What a training tells: the journal, the line that a person sees, what a person should know."""

from __future__ import annotations

import os
from typing import Any

from pipeline.config import RunConfig
from pipeline.config.folders import RunFolder
from pipeline.training.loop.decisions import Ended, Standing
from pipeline.training.loop.energy import Energy
from pipeline.training.loop.health import OF_THE_MACHINE, Health
from pipeline.training.loop.journal import History, make_record
from pipeline.training.loop.process_data import TrainingData
from pipeline.training.loop.ranks import Ranks
from pipeline.training.loop.system_metrics import Machine
from pipeline.training.loop.timing import Meter

# A record for so many steps: enough for a smooth curve, few enough for a million steps.
STEPS_PER_RECORD = 10
SAMPLES = "samples"


class Reporter:
    """Writes down what happens; on all processes but the first it is silent.

    Args:
        data: how long an epoch is, and where windows come from.
        at: where the training is; the trainer moves it.
    """

    def __init__(
        self, config: RunConfig, folder: RunFolder, ranks: Ranks, data: TrainingData, at: Standing
    ) -> None:
        self._config, self._folder, self._ranks = config, folder, ranks
        self._data, self._at = data, at
        self.meter = Meter()
        self.health = Health(self.note, data, ranks, config.train)
        self.notes: list[tuple[str, str]] = []
        self._machine = Machine(ranks.device)
        self.energy = Energy(ranks.device)
        self._history: History | None = None

    def open(self, position: int) -> bool:
        """Begin, or go on after so many bytes of the journal; return whether it has them all."""
        missing = 0
        if self._ranks.is_first:
            self._history = History(self._folder.metrics, position)
            missing = self._history.missing
        if missing:
            self.note(
                "journal",
                f"{self._folder.metrics} has lost {missing} bytes since it was saved: records of "
                "earlier steps are missing; training itself goes on exactly",
            )
        self.health.start()
        return not missing

    def state(self) -> dict[str, Any]:
        """Return what was said and seen, in a JSON-like form for :meth:`restore`."""
        return {
            "notes": list(self.notes), "health": self.health.state(), "energy": self.energy.state(),
        }  # fmt: skip

    def restore(self, state: dict[str, Any]) -> None:
        """Go on from ``state``; what is true of a machine is found anew."""
        kept = [(kind, text) for kind, text in state["notes"]]
        self.notes = [(kind, text) for kind, text in kept if kind not in OF_THE_MACHINE]
        self.health.restore(state["health"])
        self.energy.restore(state.get("energy"))

    def position(self) -> int:
        """Return the length of the journal in bytes."""
        return self._history.position() if self._history is not None else 0

    def sync(self) -> None:
        """Return when the journal has reached the disk; any thread may ask for it."""
        if self._history is not None:
            self._history.sync()

    def close(self) -> None:
        """End the journal."""
        if self._history is not None:
            self._history.close()

    def record(
        self,
        kind: str,
        values: dict[str, float],
        *,
        ended: Ended | None = None,
        text: str | None = None,
        files: str | None = None,
    ) -> None:
        """Add a record to the journal: of now, or of the end of an epoch."""
        if self._history is None:
            return
        at, seconds = (self._at, self.meter.seconds) if ended is None else (ended, ended.seconds)
        self._history.append(
            make_record(
                kind, step=at.step, epoch=at.epoch, seconds=seconds,
                values=values, text=text, files=files,
            )
        )  # fmt: skip

    def note(self, kind: str, text: str) -> None:
        """Tell a person ``text``: in the journal always, on the screen once for each ``kind``."""
        if kind == "bad step" or kind not in {known for known, _ in self.notes}:
            self.record("health", {}, text=text)
        if self._ranks.is_first and kind not in {known for known, _ in self.notes}:
            self.notes.append((kind, text))

    def steps(self, loss: float, rate: float, gradient_norm: float) -> None:
        """Record the last :data:`STEPS_PER_RECORD` steps."""
        self.record(
            "step", {"train/loss": loss, "train/lr": rate, "train/gradient_norm": gradient_norm}
        )
        self.health.waiting(self.meter.step_seconds, self.meter.wait_share)
        self.energy.look()
        measured = self._machine.measure() if self._ranks.is_first else None
        if measured is not None:
            self.record("system", measured)

    def speed(self, validation_seconds: float) -> None:
        """Record where the time went."""
        self.record("speed", {
            "speed/steps_per_second": self._steps_per_second(),
            "speed/music_seconds_per_second": self._music(),
            "speed/data_wait_share": self.meter.wait_share,
            "speed/validation_seconds": validation_seconds,
            "speed/save_seconds": self.meter.save_seconds,
            "speed/save_share": self.meter.save_share,
        })  # fmt: skip

    def standing(self, phase: str, rate: float) -> dict[str, Any]:
        """Return where the training is, for whoever watches; ``phase``: train, validate, epoch."""
        return {
            "process": f"{os.uname().nodename} {os.getpid()}",
            "phase": phase, "epoch": self._at.epoch, "step": self._at.step,
            "seconds": self.meter.seconds,
            "steps_per_epoch": self._data.steps_per_epoch, "loss": self._at.whole.value, "lr": rate,
            "steps_per_second": self._steps_per_second(),
            "music_seconds_per_second": self._music(),
            "data_wait_share": self.meter.wait_share,
            "notes": [text for _, text in self.notes],
        }  # fmt: skip

    def _steps_per_second(self) -> float:
        seconds = self.meter.step_seconds
        return self._at.step / seconds if seconds else 0.0

    def _music(self) -> float:
        """Return how many seconds of music a second of training hears."""
        model = self._config.model
        window = model.num_frame * model.hop_length / model.sample_rate
        return self._steps_per_second() * self._config.train.batch_size * window
