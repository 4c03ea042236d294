"""What a network may be asked to predict, and the way from its answer back to clean latents.

Every noising process here is noisy_latents = signal * latents + noise_level * noise. Variance-preserving schedules have
signal^2 + noise_level^2 = 1, flow matching has signal + noise_level = 1; noise_level / signal is Karras' sigma.
"""

from __future__ import annotations

from typing import Generic, Literal, NamedTuple, TypeVar, get_args

import torch
from torch import Tensor

PredictionType = Literal["epsilon", "v_prediction", "flow_prediction"]
PREDICTION_TYPES: tuple[PredictionType, ...] = get_args(PredictionType)

Scale = TypeVar("Scale", Tensor, float)


class Scales(NamedTuple, Generic[Scale]):
    """How much latents and how much noise there is in noisy latents: tensors (B,) in training, floats in sampling."""

    signal: Scale
    noise_level: Scale


def mix(latents: Tensor, noise: Tensor, scales: Scales[Tensor]) -> Tensor:
    """Noisy latents, of the shape of `latents` (B, ...)."""
    return _per_sample(scales.signal, latents) * latents + _per_sample(scales.noise_level, latents) * noise


def target(prediction_type: PredictionType, latents: Tensor, noise: Tensor, scales: Scales[Tensor]) -> Tensor:
    """What the network should answer, of the shape of `latents` (B, ...).

    epsilon: the noise (Ho et al. 2020, eq. 14). v_prediction: signal * noise - noise_level * latents (Salimans and Ho
    2022, appendix D). flow_prediction: noise - latents, the slope of the straight path (Lipman et al. 2023).
    """
    match prediction_type:
        case "epsilon":
            return noise
        case "v_prediction":
            return _per_sample(scales.signal, noise) * noise - _per_sample(scales.noise_level, noise) * latents
        case "flow_prediction":
            return noise - latents


def denoised(prediction_type: PredictionType, output: Tensor, noisy_latents: Tensor, scales: Scales[float]) -> Tensor:
    """The clean latents that the network's `output` implies: the inverse of `target`, at one noise level for all."""
    match prediction_type:
        case "epsilon":
            return (noisy_latents - scales.noise_level * output) / scales.signal
        case "v_prediction":
            return scales.signal * noisy_latents - scales.noise_level * output
        case "flow_prediction":
            return noisy_latents - scales.noise_level * output


def min_snr_weights(prediction_type: PredictionType, scales: Scales[Tensor], gamma: float) -> Tensor:
    """Weights (B,) that turn the network's squared error into min(SNR, gamma) times that of the clean latents.

    Hang et al. 2023, section 3.4, with SNR = signal^2 / noise_level^2. An error in the output is one in the clean
    latents times noise_level (for epsilon: times 1 / sigma = noise_level / signal), so the weight is
    min(SNR, gamma) * noise_level^2 = min(signal^2, gamma * noise_level^2), which divides by nothing that may be zero.
    In the usual terms that is min(SNR, gamma) / SNR for epsilon and min(SNR, gamma) / (SNR + 1) for v_prediction.
    """
    weights = torch.minimum(scales.signal**2, gamma * scales.noise_level**2)
    return weights / scales.signal**2 if prediction_type == "epsilon" else weights


def _per_sample(values: Tensor, latents: Tensor) -> Tensor:
    """(B,) -> (B, 1, ..., 1), to multiply `latents` (B, ...)."""
    return values.view(-1, *[1] * (latents.ndim - 1))
