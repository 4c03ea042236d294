"""Diffusion and flow matching as arithmetic on tensors and callables, knowing neither models nor data."""

from sdscratch.diffusion.denoiser import Denoiser
from sdscratch.diffusion.guidance import guided, guided_within
from sdscratch.diffusion.noise_schedule import FlowSchedule, Grid, NoiseSchedule
from sdscratch.diffusion.objective import DiffusionObjective, FlowMatching, Losses, Network, Objective
from sdscratch.diffusion.prediction import PredictionType, Scales
from sdscratch.diffusion.samplers import (
    SAMPLERS,
    Denoise,
    Draw,
    Sampler,
    ddim,
    ddpm,
    dpmpp_2m,
    euler,
    get_sampler,
    heun,
)
from sdscratch.diffusion.timesteps import LogitNormal, TimestepDistribution, Uniform
from sdscratch.diffusion.validation import ValidationLoss

__all__ = [
    "SAMPLERS",
    "Denoise",
    "Denoiser",
    "DiffusionObjective",
    "Draw",
    "FlowMatching",
    "FlowSchedule",
    "Grid",
    "LogitNormal",
    "Losses",
    "Network",
    "NoiseSchedule",
    "Objective",
    "PredictionType",
    "Sampler",
    "Scales",
    "TimestepDistribution",
    "Uniform",
    "ValidationLoss",
    "ddim",
    "ddpm",
    "dpmpp_2m",
    "euler",
    "get_sampler",
    "guided",
    "guided_within",
    "heun",
]
