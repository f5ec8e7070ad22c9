"""Every loss of the README, with the sign that minimising needs."""

from __future__ import annotations

from collections.abc import Callable
from typing import Protocol, runtime_checkable

from jaxtyping import Float
from torch import Tensor
from torch.nn import functional

from lasaft.config import whole_name
from lasaft.errors import ConfigError
from lasaft.network.model import LaSAFT

# Added to energies, as the reference does it, so that silence has no infinite ratio.
_EPSILON = 1e-8


@runtime_checkable
class Loss(Protocol):
    """Compares an estimate with its target; smaller is better."""

    def __call__(
        self,
        estimate: Float[Tensor, "batch channel frame bin"],
        target_spec: Float[Tensor, "batch plane frame bin"],
        mixture_spec: Float[Tensor, "batch plane frame bin"],
    ) -> Float[Tensor, ""]:
        """Return the loss of an estimate in the network's domain.

        Args:
            estimate: what :meth:`LaSAFT.estimate` returned.
            target_spec: the true source, complex planes as channels.
            mixture_spec: the mixture; magnitude models take its phase.
        """
        ...


Windows = Float[Tensor, "batch channel window sample"]


def build_loss(
    name: str,
    model: LaSAFT,
    *,
    loss_raw_scale: float | None = None,
    loss_raw_mode: str | None = None,
    loss_spec_scale: float | None = None,
    loss_spec_mode: str | None = None,
) -> Loss:
    """Return the loss of this name for ``model``.

    ``spec_*`` compare spectrograms in the network's domain (complex planes or magnitudes); all
    others compare waveforms, some of them in windows of n_fft (or 44100) samples.

    Args:
        loss_raw_scale: weight of the waveform part of raw_and_spec.
        loss_raw_mode: raw_l1, raw_l2 or raw_mse (or l1, l2, mse): that part.
        loss_spec_scale: weight of the spectrogram part of raw_and_spec.
        loss_spec_mode: spec_l1, spec_l2 or spec_mse (or l1, l2, mse): that part.

    Raises:
        ConfigError: an unknown name, or raw_and_spec without its four options.
    """
    if name == "raw_and_spec":
        scales = {"loss_raw_scale": loss_raw_scale, "loss_spec_scale": loss_spec_scale}
        modes = {
            "loss_raw_mode": whole_name(loss_raw_mode, "raw"),
            "loss_spec_mode": whole_name(loss_spec_mode, "spec"),
        }
        return _sum_loss(model, scales, modes)
    if name in _SPEC:
        return _spec_loss(model, _SPEC[name])
    if name in _RAW or name in _WINDOWED:
        return _wave_loss(model, name)
    allowed = ", ".join([*_SPEC, *_RAW, "raw_and_spec", *_WINDOWED])
    raise ConfigError(f"loss: got {name!r}, allowed: {allowed}")


def _sum_loss(model: LaSAFT, scales: dict[str, float | None], modes: dict[str, str | None]) -> Loss:
    missing = [option for option, value in (scales | modes).items() if value is None]
    if missing:
        raise ConfigError([f"{option}: needed by the loss raw_and_spec" for option in missing])
    for option, allowed in (("loss_raw_mode", _RAW), ("loss_spec_mode", _SPEC)):
        if modes[option] not in allowed:
            raise ConfigError(f"{option}: got {modes[option]!r}, allowed: {', '.join(allowed)}")
    raw_scale, spec_scale = (float(scale or 0) for scale in scales.values())
    raw, spec = (build_loss(str(mode), model) for mode in modes.values())

    def loss(estimate: Tensor, target_spec: Tensor, mixture_spec: Tensor) -> Tensor:
        specs = (estimate, target_spec, mixture_spec)
        return raw_scale * raw(*specs) + spec_scale * spec(*specs)

    return loss


def _spec_loss(model: LaSAFT, compare: Callable[[Tensor, Tensor], Tensor]) -> Loss:
    def loss(estimate: Tensor, target_spec: Tensor, mixture_spec: Tensor) -> Tensor:
        return compare(estimate.float(), model.network_input(target_spec.float()))

    return loss


def _wave_loss(model: LaSAFT, name: str) -> Loss:
    def loss(estimate: Tensor, target_spec: Tensor, mixture_spec: Tensor) -> Tensor:
        transform = model.spectrogram
        samples = transform.hop_length * (target_spec.shape[2] - 1)
        spec = model.to_spectrogram(estimate.float(), mixture_spec.float())
        return waveform_loss(
            name,
            transform.istft(spec, samples),
            transform.istft(target_spec.float(), samples),
            window_length=transform.n_fft,
            hop_length=transform.hop_length,
        )

    return loss


def waveform_loss(
    name: str,
    estimate: Float[Tensor, "batch channel sample"],
    target: Float[Tensor, "batch channel sample"],
    *,
    window_length: int,
    hop_length: int,
) -> Float[Tensor, ""]:
    """Return a loss between waveforms.

    Args:
        name: any name but spec_* and raw_and_spec.
        window_length: samples of a window; names that end in 44100 have their own.
        hop_length: samples from one window to the next.
    """
    if name in _RAW:
        return _RAW[name](estimate, target)
    if name.endswith("_44100"):
        window_length, hop_length = 44100, 22050
    windows = [_windows(wave, window_length, hop_length) for wave in (estimate, target)]
    return _WINDOWED[name](*windows)


def _windows(wave: Tensor, length: int, hop: int) -> Windows:
    """Cut into overlapping windows, with zeros before and after.

    An odd number of zeros loses one, and with it the last window: the reference's slip, kept so
    that losses are comparable.
    """
    samples = wave.shape[-1]
    padding = (hop * (samples // hop) + length - samples) // 2
    return functional.pad(wave, (padding, padding)).unfold(-1, length, hop)


def _split(estimate: Windows, target: Windows) -> tuple[Tensor, Tensor]:
    """Split into a part that scales the target and the rest, the distortion."""
    product = (estimate * target).sum(-1, keepdim=True) + _EPSILON
    scale = product / (target.square().sum(-1, keepdim=True) + _EPSILON)
    scaled = scale * target
    return scaled, estimate - scaled


def _energies(estimate: Windows, target: Windows) -> tuple[Tensor, Tensor]:
    """Return the energies of distortion and scaled target [batch, channel, window]."""
    scaled, distortion = _split(estimate, target)
    return distortion.square().sum(-1) + _EPSILON, scaled.square().sum(-1) + _EPSILON


def _distortion(estimate: Windows, target: Windows) -> Tensor:
    return _split(estimate, target)[1].norm(dim=-1).sum(-1).mean()


def _sdr_like(estimate: Windows, target: Windows) -> Tensor:
    noise, signal = _energies(estimate, target)
    return (noise - signal).sum(-1).mean()


def _dsr(estimate: Windows, target: Windows) -> Tensor:
    noise, signal = _energies(estimate, target)
    return (noise / signal).mean()


def _ldsr(estimate: Windows, target: Windows) -> Tensor:
    noise, signal = _energies(estimate, target)
    return (noise.log() - signal.log()).mean()


def _nsdr(estimate: Windows, target: Windows) -> Tensor:
    noise, signal = _energies(estimate, target)
    return -(signal / noise).mean()


def _ncs(estimate: Windows, target: Windows) -> Tensor:
    return -functional.cosine_similarity(estimate, target, dim=-1).mean()


def _nlcs(estimate: Windows, target: Windows) -> Tensor:
    similarity = functional.cosine_similarity(estimate, target, dim=-1)
    # Rounding can bring it below -1.
    return -(similarity.clamp_min(-1) + 1 + _EPSILON).log().mean()


_SPEC: dict[str, Callable[[Tensor, Tensor], Tensor]] = {
    "spec_l1": functional.l1_loss,
    "spec_l2": functional.mse_loss,
    "spec_mse": functional.mse_loss,
}
_RAW: dict[str, Callable[[Tensor, Tensor], Tensor]] = {
    "raw_l1": functional.l1_loss,
    "raw_l2": functional.mse_loss,
    "raw_mse": functional.mse_loss,
}
_WINDOWED: dict[str, Callable[[Windows, Windows], Tensor]] = {
    "sdr_like": _sdr_like,
    # The reference's sdr grows as the estimate gets better; to minimise it is to make it worse.
    # Ours is its negative, which is nsdr.
    "sdr": _nsdr,
    "dsr": _dsr,
    "nsdr": _nsdr,
    "nsdr_44100": _nsdr,
    "ldsr": _ldsr,
    "distortion": _distortion,
    "ncs": _ncs,
    "ncs_44100": _ncs,
    "nlcs": _nlcs,
}
