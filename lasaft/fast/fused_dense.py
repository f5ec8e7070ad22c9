"""Fast form of DenseConvolutions: one convolution over a stack of all that a layer sees.

Layer l of a dense block sees the outputs of the layers before it, newest first, and the block's
inputs (for a decoder: the upsampled features and the skip):

    y_l = activation(norm(conv_l([y_(l-1), ..., y_0, x, skip])))

Here all of it lies in one stack [batch, place, bin, frame, channel], oldest first, to which each
layer adds a place: nothing is concatenated, and the sum over the places is taken inside one
convolution. Two layers at a time see what is there before both, in one convolution of twice the
outputs, which fill the vector units of a CPU better; the second then adds what the first brings.
What a skip that all conditions share adds is computed once (:meth:`FusedDense.begin`). For the
layout of features see :mod:`lasaft.fast`.
"""

from __future__ import annotations

import torch
from torch import Tensor, nn

from lasaft.fast.fused_conv import activate, fold_norm
from lasaft.fast.onednn import convolve
from lasaft.network.blocks import ConvNorm, DenseConvolutions

# A decoder's skip: the features [batch, channel, bin, frame], or what they add to each group of
# layers: [batch, layer x growth, bin, frame].
SkipState = Tensor | list[Tensor]


class FusedDense(nn.Module):
    """Every layer as a convolution over places; see the module.

    For the group of layers that starts with layer l, the buffer ``wide{l}`` [layer x growth,
    channel, place, bin, frame] is their kernels for what is there before both, with ``bias{l}``
    [layer x growth]; ``inner{l}`` is the second layer's kernel for the first.
    """

    def __init__(self, dense: DenseConvolutions, dtype: torch.dtype) -> None:
        super().__init__()
        self.growth, self.inputs, self.count = dense.growth, len(dense.inputs), len(dense.layers)
        kernels, biases = [], []
        for layer in dense.layers:
            assert isinstance(layer, ConvNorm)
            self.activation = layer.activation
            weight, bias = fold_norm(layer.conv, layer.norm)
            # Newest first becomes oldest first.
            kernels.append(weight.unflatten(1, (-1, self.growth)).flip(1).transpose(1, 2))
            biases.append(bias)
        # The odd one first: it sees least.
        starts = range(-(self.count % 2), self.count, 2)
        self.groups = [range(max(start, 0), start + 2) for start in starts]
        for group in self.groups:
            places = self.inputs + group.start
            buffers = {
                "wide": torch.cat([kernels[layer][:, :, :places] for layer in group]),
                "bias": torch.cat([biases[layer] for layer in group]),
                "inner": kernels[group[-1]][:, :, places:],
            }
            for name, buffer in buffers.items():
                self.register_buffer(f"{name}{group.start}", buffer.to(dtype).contiguous())

    def begin(self, skip: Tensor) -> SkipState:
        """Return what ``skip`` [batch, channel, bin, frame] and the biases add to each group."""
        return [self._wide(group, skip.unsqueeze(2), 0, None) for group in self.groups]

    def forward(self, x: Tensor, skip: SkipState | None) -> Tensor:
        """Return the last layer's output [batch, growth, bin, frame]; None: there is no skip."""
        inputs = [skip, x] if isinstance(skip, Tensor) else [x]
        batch, _, *sizes = x.shape
        points = x.new_empty(batch, len(inputs) + self.count - 1, *sizes, self.growth)
        stack = points.permute(0, 4, 1, 2, 3)
        places = [*stack.unbind(2), torch.empty_like(x, memory_format=torch.channels_last)]
        for place, features in zip(places, inputs, strict=False):
            place.copy_(features)
        for number, group in enumerate(self.groups):
            seen = len(inputs) + group.start
            total = skip[number].clone() if isinstance(skip, list) else None
            total = self._wide(group, stack[:, :, :seen], self.inputs - len(inputs), total)
            one, *two = total.split(self.growth, dim=1)
            activate(one, self.activation, places[seen])
            for part in two:
                inner = getattr(self, f"inner{group.start}")
                y = convolve(
                    stack[:, :, seen : seen + 1], inner, None, places[seen + 1].copy_(part)
                )
                activate(y, self.activation, y)
        return places[-1]

    def _wide(self, group: range, x: Tensor, start: int, total: Tensor | None) -> Tensor:
        """Return what places ``x``, from ``start`` on, add to ``total``, or to the biases."""
        weight = getattr(self, f"wide{group.start}")[:, :, start : start + x.shape[2]]
        bias = getattr(self, f"bias{group.start}") if total is None else None
        return convolve(x, weight, bias, total)
