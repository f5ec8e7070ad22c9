"""The validation of an epoch: at once, or beside the next epoch, whose end then takes it in."""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from dataclasses import asdict, dataclass, field
from typing import Any, Protocol

from torch import Tensor

from lasaft.network.model import LaSAFT
from pipeline.config import RunConfig
from pipeline.data.windows.loader import ValidationTrack
from pipeline.training.loop.checkpoints import Keeper
from pipeline.training.loop.decisions import Ended
from pipeline.training.loop.epoch_excerpts import Excerpts
from pipeline.training.loop.loss_network import loss_of
from pipeline.training.loop.outlet import Outlet
from pipeline.training.loop.process_data import TrainingData
from pipeline.training.loop.ranks import Ranks
from pipeline.training.loop.reporter import Reporter
from pipeline.training.loop.state_file import copy_of
from pipeline.training.loop.validation import Validation, validate

# The processes that wait for the first one hear from it so often.
_WAIT_SECONDS = 1.0


@dataclass(frozen=True)
class Found:
    """What a validation found, and the files of its excerpts by their names."""

    validation: Validation
    excerpts: dict[str, bytes] = field(default_factory=dict)


@dataclass(frozen=True)
class Validated:
    """An epoch that can be decided on; ``weights`` are its own where training has gone on."""

    ended: Ended
    found: Found
    weights: Mapping[str, Tensor] = field(default_factory=dict)


class Answer(Protocol):
    """A validation that somebody else does."""

    def wait(self, seconds: float) -> bool:
        """Return whether it has ended, after so many seconds at most."""
        ...

    def get(self) -> Found | str:
        """Return what it found, or why there is no answer.

        Raises:
            LasaftError: as :func:`examine`.
        """
        ...


def examine(
    config: RunConfig,
    model: LaSAFT,
    tracks: Iterator[tuple[int, ValidationTrack]],
    ranks: Ranks,
    epoch: int,
) -> Found:
    """Validate the network of ``epoch``, with excerpts where they are due.

    Args:
        model, tracks, ranks: as :func:`validate` takes them.

    Raises:
        DataError: a shard is damaged.
    """
    train, every = config.train, config.train.sample_every_epochs
    sampled = every > 0 and (epoch + 1) % every == 0
    excerpts = Excerpts(config.model.sample_rate) if sampled else None
    loss = loss_of(train, train.val_loss, model)
    targets = train.target_names or config.model.sources
    found = validate(model, loss, tracks, targets, ranks, listen=excerpts)
    return Found(found, {} if excerpts is None else excerpts.files(f"epoch {epoch + 1}"))


def network_of(config: RunConfig, weights: Mapping[str, Tensor], ranks: Ranks) -> LaSAFT:
    """Return a network with these weights, to be validated on the device of ``ranks``."""
    model = LaSAFT(config.model).to(ranks.device)
    model.load_state_dict(weights)
    return model.eval().requires_grad_(False)


class Beside:
    """Validates one epoch while the next one is trained; all processes call its methods alike.

    When an answer counts is decided by the epoch and never by the clock. Where nobody else
    validates, or whoever did has died, the processes that train do it themselves, in the end.

    Args:
        keeper: keeps the weights that are validated, and saves them with each state.
        outlet: knows who else can validate.
        report: hears of one who died.
    """

    def __init__(
        self,
        config: RunConfig,
        data: TrainingData,
        ranks: Ranks,
        *,
        keeper: Keeper,
        outlet: Outlet,
        report: Reporter,
    ) -> None:
        self._config, self._data, self._ranks = config, data, ranks
        self._keeper, self._outlet, self._report = keeper, outlet, report
        self._ended: Ended | None = None
        self._answer: Answer | None = None

    def begin(self, ended: Ended, model: LaSAFT) -> None:
        """Begin to validate an epoch with the weights that ``model`` has now."""
        self._ranks.share_buffers(model)
        self._keeper.aside = copy_of(model)
        self._ask(ended)

    def take(self) -> Validated | None:
        """Return the epoch that was begun, once it is validated; None if there is none."""
        if self._ended is None:
            return None
        ended, weights = self._ended, self._keeper.aside
        found = self._answered()
        if found is None:
            model = network_of(self._config, weights, self._ranks)
            tracks = self._data.validation_tracks()
            found = examine(self._config, model, tracks, self._ranks, ended.epoch)
        self._ended, self._answer, self._keeper.aside = None, None, {}
        return Validated(ended, found, weights)

    def state(self) -> dict[str, Any]:
        """Return a JSON-like form for :meth:`restore`; the keeper saves the weights."""
        return {} if self._ended is None else {"pending": asdict(self._ended)}

    def restore(self, state: Mapping[str, Any]) -> None:
        """Begin again what had been begun; the keeper has the weights."""
        if "pending" in state:
            self._ask(Ended(**state["pending"]))

    def _ask(self, ended: Ended) -> None:
        self._ended = ended
        if self._ranks.is_first:
            self._answer = self._outlet.ask(self._keeper.aside, ended.epoch)

    def _answered(self) -> Found | None:
        """Wait for the answer; return None where nobody has one."""
        answer = self._answer
        while not self._ranks.agree(answer is None or answer.wait(_WAIT_SECONDS)):
            self._outlet.check()
        found = None if answer is None else answer.get()
        if isinstance(found, str):
            self._report.note(
                "validation",
                f"the process that validates beside the training died ({found}): the training "
                "does its work until it is there again",
            )
            found = None
        return self._ranks.agree(found)
