"""The same weights, samples, noise and timesteps, under other gammas. Needs runs/quickstart; run it where `runs` lies.

python experiments/2026-11-26-gamma-loss/run.py
"""

import json
import sys
from dataclasses import replace
from pathlib import Path

import torch
from matplotlib.figure import Figure

from sdscratch.cli import main
from sdscratch.commands.assembly import make_stage
from sdscratch.config import build, load_config, settings
from sdscratch.diffusion import Losses
from sdscratch.evaluation.comparison import caveats
from sdscratch.run_folder import RunFolder

HERE = Path(__file__).parent
RUN = RunFolder("runs/gamma_loss")
CHANGED_AT, CHANGED_TO = 600, 2.0
GAMMAS = (None, 20.0, 10.0, 5.0, 3.0, 2.5, 2.0, 1.0)


def train(*words: str) -> None:
    """Short runs on one thread; every checkpoint stays."""
    kept = ("callbacks.checkpoints.keep_last=9", "callbacks.checkpoints.keep_best=0", "threads=1")
    words = ("train", "experiment=shapes_epsilon", "name=gamma_loss", "resume_from=auto", *kept, *words)
    if code := main(words):
        sys.exit(code)


def measure() -> list[dict]:
    """A row per checkpoint and gamma: mean losses over 512 held-out samples at evenly spread timesteps."""
    cfg = load_config(RUN.recipe_file)
    cfg.dataset.val_samples = 512
    datamodule = build(cfg.dataset)
    stage = make_stage(cfg, datamodule, RUN)
    batches = list(datamodule.val_dataloader(whole=True))
    rows = []
    for checkpoint in RUN.checkpoints():
        if checkpoint.step > CHANGED_AT:
            continue
        stage.network.load_state_dict(checkpoint.load()["ema"]["weights"])
        parts = []
        for batch in batches:
            states = stage.encoders.text(batch["captions"])
            asked = (batch["latents"], batch["noise"], batch["timesteps"], states)
            parts.append(stage.objective(stage.network, *asked).unweighted)
        unweighted = torch.cat(parts)
        timesteps = torch.cat([batch["timesteps"] for batch in batches])
        for gamma in GAMMAS:
            losses = Losses(unweighted, replace(stage.objective, min_snr_gamma=gamma).weights(timesteps))
            means = {name: getattr(losses, name).mean().item() for name in ("weighted", "unweighted", "weights")}
            rows.append({"step": checkpoint.step, "gamma": gamma, **means})
    return rows


def draw(rows: list[dict], log: list[dict]) -> Figure:
    """Left: one dot per gamma and checkpoint. Right: the training log across a change of gamma."""
    figure = Figure(figsize=(10, 4), layout="constrained")
    left, right = figure.subplots(1, 2)
    names = ["none" if gamma is None else f"{gamma:g}" for gamma in GAMMAS]
    for number, step in enumerate(sorted({row["step"] for row in rows})):
        mine = [row for row in rows if row["step"] == step]
        left.plot(names, [r["weighted"] for r in mine], "o-", color=f"C{number}", label=f"step {step}, weighted")
        left.plot(names, [r["unweighted"] for r in mine], "--", color=f"C{number}", label=f"step {step}, unweighted")
    left.set_xlabel("min_snr_gamma under which the same weights are measured")
    left.set_ylabel("held-out loss (ema)")
    left.set_title("The number falls with gamma; the network is the same", fontsize=10)
    left.legend(fontsize=8)
    for name, label in (("train/loss", "train/loss (weighted)"), ("train/loss_unweighted", "train/loss_unweighted")):
        points = [(row["step"], row[name]) for row in log if name in row and row["step"] > 200]
        right.plot(*zip(*points, strict=True), label=label)
    points = [(row["step"], row["val/loss"]) for row in log if "val/loss" in row and row["step"] > 200]
    right.plot(*zip(*points, strict=True), "k.--", label="val/loss (ema, unweighted)")
    right.axvline(CHANGED_AT, color="grey", linewidth=1)
    right.annotate(
        f"gamma 5 to {CHANGED_TO:g} ", (CHANGED_AT, 0.98), xycoords=("data", "axes fraction"), ha="right", va="top"
    )
    right.set_xlabel("step")
    right.set_ylabel("loss")
    right.set_title("One run's log across a change of gamma", fontsize=10)
    right.legend(fontsize=8)
    for panel in (left, right):
        panel.set_ylim(bottom=0)
        panel.grid(alpha=0.3)
    return figure


if RUN.state().get("step", 0) < CHANGED_AT:
    train()
if RUN.state()["step"] == CHANGED_AT:  # the last rate goes on, so that little but gamma changes
    constant = ("optimizer.lr=3.0e-5", "lr_schedule.warmup_steps=0", "lr_schedule.final=1.0")
    train(f"max_steps={CHANGED_AT + 100}", f"objective.min_snr_gamma={CHANGED_TO}", *constant)
with torch.no_grad():
    rows = measure()
log = RUN.read_metrics()
now = settings(load_config(RUN.recipe_file))
said = caveats([now | {"objective.min_snr_gamma": gamma} for gamma in (5.0, CHANGED_TO)])
around = [row for row in log if row["step"] > CHANGED_AT - 100]
(HERE / "numbers.json").write_text(json.dumps({"held_out": rows, "log": around, "warning": said}, indent=1) + "\n")
draw(rows, log).savefig(HERE / "gamma.png", dpi=110)
for row in rows:
    print(row)
print(*said, sep="\n")
