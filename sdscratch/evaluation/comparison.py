"""Which numbers of several runs may be compared, and which only look as if they could."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any

WEIGHTING = ("objective.min_snr_gamma", "objective.timestep_distribution")
TARGET = ("objective._target_", "objective.prediction_type", "objective.noise_schedule", "vae.fingerprint", "vae.path")
HELD_OUT = (
    "dataset.val_path",
    "dataset.holdout",
    "dataset.val_samples",
    "dataset.resolution",
    "dataset.path",
    "dataset.sources",
    "dataset.replay.sources",
)


def caveats(runs: Sequence[Mapping[str, Any]]) -> list[str]:
    """What to mind when losses of runs are put side by side; nothing where all of them compare.

    runs: the settings of each, by dotted key.
    """
    found = []
    if keys := _differing(runs, WEIGHTING):
        found.append(
            f"train/loss does not compare: these runs weight it differently ({_values(runs, keys)}). The same weights of a "
            "network have another one; val/loss is unweighted and does compare"
        )
    if keys := _differing(runs, TARGET):
        found.append(
            f"val/loss does not compare either: these networks are asked for different things ({_values(runs, keys)}). Compare "
            "their pictures"
        )
    if keys := _differing(runs, HELD_OUT):
        found.append(f"val/loss is measured on different held-out samples, or shares of them ({_values(runs, keys)})")
    return found


def same_question(one: Mapping[str, Any], other: Mapping[str, Any]) -> bool:
    """Whether the network of one run can be measured by the loss of the other."""
    return not _differing([one, other], TARGET)


def _differing(runs: Sequence[Mapping[str, Any]], names: Sequence[str]) -> list[str]:
    """The keys, among `names` and what lies below them, whose values are not the same in all runs."""
    keys = {key for run in runs for key in run if any(key == name or key.startswith(f"{name}.") for name in names)}
    return sorted(key for key in keys if len({repr(run.get(key)) for run in runs}) > 1)


def _values(runs: Sequence[Mapping[str, Any]], keys: Sequence[str]) -> str:
    """`objective.min_snr_gamma: 1, 3, 5`"""
    said = {key: dict.fromkeys(str(run.get(key)) for run in runs) for key in keys}
    return "; ".join(f"{key}: {', '.join(values)}" for key, values in said.items())
