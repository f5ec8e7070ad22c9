"""A moving average of the weights: what is validated and saved instead of the newest ones."""

from __future__ import annotations

import torch

from lasaft.network.model import LaSAFT


class WeightAverage:
    """The exponential moving average of a network, BatchNorm's running statistics with it.

    The weights of the average and the statistics that are averaged alike belong together: a
    network's newest statistics are those of its newest weights. In the beginning the average is
    a shorter one, as its first values would otherwise stay in it for long.

    Args:
        model: the network in training; it is not changed.
        decay: share of the old average after a step, below 1.
    """

    def __init__(self, model: LaSAFT, decay: float) -> None:
        self.decay = decay
        self.updates = 0
        device = next(model.parameters()).device
        self.model = LaSAFT(model.config).to(device).eval().requires_grad_(False)
        self.model.load_state_dict(model.state_dict())
        ours, theirs = self.model.state_dict(), model.state_dict()
        averaged = [name for name, value in ours.items() if value.is_floating_point()]
        counted = [name for name, value in ours.items() if not value.is_floating_point()]
        # References to the networks' own tensors, which are changed in place.
        self._pairs = [ours[name] for name in averaged], [theirs[name] for name in averaged]
        self._counts = [(ours[name], theirs[name]) for name in counted]

    @torch.no_grad()
    def update(self) -> None:
        """Take the network's newest weights in."""
        self.updates += 1
        decay = min(self.decay, (1 + self.updates) / (10 + self.updates))
        torch._foreach_lerp_(*self._pairs, 1 - decay)  # pyright: ignore[reportPrivateImportUsage]
        for ours, theirs in self._counts:
            ours.copy_(theirs)
