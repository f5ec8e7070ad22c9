"""The networks in their plain form, op by op as the papers write them, to time others against."""

from __future__ import annotations

import copy

import torch
from torch import Tensor, nn

from lasaft.network.blocks import DenseConvolutions
from lasaft.network.model import LaSAFT
from lasaft.network.modulations.gpocm import GPoCM
from lasaft.network.modulations.pocm import PoCM
from lasaft.network.unet import UNet


class _PlainDense(DenseConvolutions):
    """Concatenates, newest first, before every convolution."""

    def forward(self, *inputs: Tensor) -> Tensor:
        seen = torch.cat(inputs, dim=1)
        new = seen
        for number, layer in enumerate(self.layers):
            if number:
                seen = torch.cat((new, seen), dim=1)
            new = layer(seen)
        return new


class _PlainPoCM(PoCM):
    """Moves the channels last, multiplies, moves them back."""

    @staticmethod
    def mix(x: Tensor, weight: Tensor, offset: Tensor) -> Tensor:
        mix = torch.matmul(x.permute(0, 2, 3, 1), weight.mT[:, None])
        return mix.permute(0, 3, 1, 2) + offset[:, :, None, None]


class _PlainGPoCM(_PlainPoCM):
    gated = True


class _PlainUNet(UNet):
    """Keeps the channels where they come, before frames and bins."""

    def forward(self, spec: Tensor, wanted: Tensor) -> Tensor:
        condition = self.conditioner(wanted)
        x = self.first(spec)
        skips = []
        for encoder, down in zip(self.encoders, self.downs, strict=True):
            x = encoder((x,), condition)
            skips.append(x)
            x = down(x)
        x = self.middle((x,), condition)
        for up, decoder in zip(self.ups, self.decoders, strict=True):
            x = decoder((up(x), skips.pop()), condition)
        return self.activation(self.last(x))


_PLAIN: dict[type[nn.Module], type[nn.Module]] = {
    DenseConvolutions: _PlainDense,
    PoCM: _PlainPoCM,
    GPoCM: _PlainGPoCM,
    UNet: _PlainUNet,
}


def plain_form(model: LaSAFT) -> LaSAFT:
    """Return a copy of ``model`` with the same weights that computes in the plain form."""
    model = copy.deepcopy(model)
    for module in model.modules():
        module.__class__ = _PLAIN.get(type(module), type(module))
    return model
