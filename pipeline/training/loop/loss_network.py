"""The network as a step runs it: with its loss behind it, compiled or with blocks run twice."""

from __future__ import annotations

import os
import shutil
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager, nullcontext

import torch
from torch import Tensor, nn
from torch.nn.parallel import DistributedDataParallel
from torch.utils.checkpoint import checkpoint

from lasaft.errors import ConfigError
from lasaft.network.losses import build_loss
from lasaft.network.model import LaSAFT
from pipeline.config import TrainConfig
from pipeline.training.loop.ranks import Ranks
from pipeline.training.loop.synchronised_layers import share_dropout

_AUTOCAST = {"16": torch.float16, "bf16": torch.bfloat16, "32": None}

LossFunction = Callable[[Tensor, Tensor, Tensor], Tensor]


class LossNetwork(nn.Module):
    """The network with its loss behind it: what DistributedDataParallel wraps.

    Args:
        loss: (estimate in the network's domain, target, mixture) -> scalar, in float32.
        precision: ``16`` and ``bf16`` run the network under autocast, the loss never.
    """

    def __init__(self, model: LaSAFT, loss: LossFunction, precision: str) -> None:
        super().__init__()
        self.model = model
        # In a list: a loss that is a module must not register the network a second time.
        self._loss = [loss]
        self._dtype = _AUTOCAST[precision]

    def forward(self, mixture: Tensor, target: Tensor, condition: Tensor) -> Tensor:
        """Return the loss of one micro-batch, a scalar."""
        with torch.autocast(mixture.device.type, self._dtype, enabled=self._dtype is not None):
            estimate = self.model.estimate(mixture, condition)
        return self._loss[0](estimate.float(), target, mixture)


def build_network(
    model: LaSAFT, loss: LossFunction, config: TrainConfig, ranks: Ranks
) -> nn.Module:
    """Return what a step calls: (mixture, target, condition) -> loss.

    Names of parameters and buffers stay what they are; validation and saving see nothing of it.

    Raises:
        ConfigError: ``compile`` without a compiler.
    """
    share_dropout(model, config.batch_size // config.accumulate_grad_batches, ranks)
    network = model.network
    blocks = (*network.encoders, network.middle, *network.decoders)
    if config.compile:
        require_compiler(config.compile)
        # In place: a wrapped module would rename every parameter.
        if config.compile == "blocks":
            _compile_each(blocks)
        else:
            network.compile(mode="reduce-overhead" if config.compile == "graphs" else None)
    if config.activation_checkpointing:
        for block in blocks:
            _run_again_in_backward(block)
    whole = LossNetwork(model, loss, config.precision)
    if ranks.world == 1:
        return whole
    # find_unused_parameters: a loss may not reach every parameter. It also fixes the order of the
    # reduction from the first step on, without which a resumed run of three or more processes
    # could differ in the last bit.
    # Running statistics are shared before they are used (validation), not in every step.
    buffers = [name for name, _ in whole.named_buffers()]
    # DistributedDataParallel's option for that was renamed between the versions of torch.
    DistributedDataParallel._set_params_and_buffers_to_ignore_for_model(whole, buffers)
    return DistributedDataParallel(whole, find_unused_parameters=True, gradient_as_bucket_view=True)


def _compile_each(blocks: Sequence[nn.Module]) -> None:
    """Compile block by block: less to compile at once, and for each block its own sizes."""
    from torch._dynamo import config

    # All blocks are one function to torch, which would give up after a few sizes of it.
    config.recompile_limit = max(config.recompile_limit, 2 * len(blocks))
    for block in blocks:
        block.compile(dynamic=False)


def require_compiler(value: object) -> None:
    """Refuse ``compile`` where torch would find no C++ compiler in the first step.

    Raises:
        ConfigError: says what is missing.
    """
    names = [name for name in (os.environ.get("CXX"), "g++", "clang++") if name]
    if not any(shutil.which(name) for name in names):
        raise ConfigError(
            f"compile: got {value}, but there is no C++ compiler on this machine (looked for "
            f"{', '.join(names)}); install one (Debian: apt-get install g++), or leave compile out"
        )


@contextmanager
def compiling(value: object) -> Iterator[None]:
    """Turn a failure of torch's compiler into one clear error; ``value``: of ``compile``.

    Raises:
        ConfigError: torch cannot compile the network here.
    """
    from torch._dynamo.exc import TorchDynamoException

    try:
        yield
    except TorchDynamoException as error:
        first = next((line for line in str(error).splitlines() if line.strip()), "")
        raise ConfigError(
            f"compile: got {value}, but torch cannot compile this network here ({first:.200}); "
            "leave compile out"
        ) from error


def _run_again_in_backward(block: nn.Module) -> None:
    """Let ``block`` keep its inputs alone for the backward pass, which runs it a second time."""
    norms = [part for part in block.modules() if isinstance(part, nn.modules.batchnorm._BatchNorm)]
    plain = block.forward

    def forward(*inputs: object) -> Tensor:
        return checkpoint(
            plain,
            *inputs,
            use_reentrant=False,
            context_fn=lambda: (nullcontext(), _own_statistics_kept(norms)),
        )

    block.forward = forward


@contextmanager
def _own_statistics_kept(norms: list[nn.modules.batchnorm._BatchNorm]) -> Iterator[None]:
    """Let BatchNorms update copies: the first run has updated their running statistics already."""
    kept = [dict(norm.named_buffers(recurse=False)) for norm in norms]
    for norm, buffers in zip(norms, kept, strict=True):
        for name, value in buffers.items():
            setattr(norm, name, value.clone())
    try:
        yield
    finally:
        for norm, buffers in zip(norms, kept, strict=True):
            for name, value in buffers.items():
                setattr(norm, name, value)


def loss_of(train: TrainConfig, name: str, model: LaSAFT) -> LossFunction:
    """Return the loss called ``name`` with the settings of ``train``."""
    if name != "raw_and_spec":
        return build_loss(name, model)
    return build_loss(
        name,
        model,
        loss_raw_scale=train.loss_raw_scale,
        loss_raw_mode=train.loss_raw_mode,
        loss_spec_scale=train.loss_spec_scale,
        loss_spec_mode=train.loss_spec_mode,
    )
