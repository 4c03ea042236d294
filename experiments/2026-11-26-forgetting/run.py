"""Three backgrounds, learnt one after the other, without and with replay; a fourth is only measured. A second call goes on.

python experiments/2026-11-26-forgetting/run.py     (needs runs/quickstart; run it where `runs` lies)
"""

import json
import sys
from pathlib import Path
from typing import Any

from matplotlib.figure import Figure
from prepare import BACKGROUNDS, prompts_for, write_sources

from sdscratch import TextToImage
from sdscratch.cli import main
from sdscratch.data.grid import captioned_grid
from sdscratch.evaluation.shapes_judge import score
from sdscratch.run_folder import RunFolder

HERE = Path(__file__).parent
DATA = Path("data/forgetting")
ARMS = {"forget_without": 0.0, "forget_replay": 0.3}  # name of the curriculum: replayed share of every batch
TITLES = {"forget_without": "no replay", "forget_replay": "replay 30 %"}
LEARNT = BACKGROUNDS[:3]
FIRST, *LATER = PHASES = [f"b{number}_{name}" for number, name in enumerate(LEARNT, 1)]
PROMPTS = 32  # of each background, for the judge

Rows = dict[str, dict[str, dict[str, float]]]  # arm: after which phase: background: number


def call(*arguments: str) -> None:
    if code := main(arguments):
        sys.exit(code)


def train() -> None:
    write_sources(Path("runs/quickstart/latents/train"), DATA / "latents")
    plain, replaying = ARMS
    curriculum(plain, PHASES, [])
    start = [f"overrides.{LATER[0]}=[init_from=runs/{plain}/{FIRST},dataset.replay.share={ARMS[replaying]}]"]
    more = [f"overrides.{phase}=[dataset.replay.share={ARMS[replaying]}]" for phase in LATER[1:]]
    curriculum(replaying, LATER, start + more)


def curriculum(arm: str, phases: list[str], more: list[str]) -> None:
    chosen = (f"phases=[{','.join(phases)}]", f"paths.data={DATA}", "train=[threads=1]")
    call("curriculum", "--config-dir", str(HERE / "conf"), f"name={arm}", *chosen, *more)


def run_of(arm: str, phase: str) -> str:
    """Both arms begin with the same first phase."""
    return f"runs/{next(iter(ARMS)) if phase == FIRST else arm}/{phase}"


def measured(arm: str, phase: str) -> list[dict[str, Any]]:
    return [row for row in RunFolder(run_of(arm, phase)).read_metrics() if "val/loss" in row]


def losses() -> Rows:
    """Of the averaged network, on the held-out pictures of every background."""
    return {
        arm: {p: {name: measured(arm, p)[-1][f"val/loss/{name}"] for name in BACKGROUNDS} for p in PHASES}
        for arm in ARMS
    }


def judged() -> dict[str, dict[str, dict[str, dict[str, float]]]]:
    """The shapes judge's fractions, by arm, phase and the background that was asked for."""
    found: dict[str, Any] = {arm: {} for arm in ARMS}
    for arm in ARMS:
        for phase in PHASES:
            pipe = TextToImage.from_pretrained(run_of(arm, phase), device="cpu")
            found[arm][phase] = {}
            for name in BACKGROUNDS:
                texts, scenes = zip(*prompts_for(name, PROMPTS), strict=True)
                pictures = pipe(texts, seed=0, batch_size=PROMPTS)
                found[arm][phase][name] = score(pictures, scenes)
                if phase == PHASES[-1]:
                    found[arm].setdefault("pictures", []).extend(zip(pictures[:4], texts[:4], strict=True))
    return found


def draw_losses(rows: Rows) -> Figure:
    """A panel per arm; a cell per phase and background."""
    highest = max(value for arm in rows.values() for row in arm.values() for value in row.values())
    figure = Figure(figsize=(9, 3.4), layout="constrained")
    panels = figure.subplots(1, len(ARMS), sharey=True)
    for panel, arm in zip(panels, ARMS, strict=True):
        values = [[rows[arm][phase][name] for name in BACKGROUNDS] for phase in PHASES]
        image = panel.imshow(values, cmap="YlOrRd", vmin=0, vmax=highest, aspect="auto")
        for y, line in enumerate(values):
            for x, value in enumerate(line):
                weight = "bold" if x == y else "normal"  # what this phase has just learnt
                colour = "white" if value > 0.6 * highest else "black"
                panel.text(x, y, f"{value:.3f}", ha="center", va="center", weight=weight, color=colour)
        panel.set_xticks(range(len(BACKGROUNDS)), BACKGROUNDS)
        panel.set_yticks(range(len(PHASES)), [f"after {name}" for name in LEARNT])
        panel.set_xlabel("on the background")
        panel.set_title(TITLES[arm], fontsize=10)
    figure.colorbar(image, ax=list(panels))
    figure.suptitle("held-out loss of the averaged network; bold: what the phase has just learnt", fontsize=11)
    return figure


def draw_curves() -> Figure:
    """A panel per background, a line per arm, over the steps of the whole chain."""
    figure = Figure(figsize=(10, 3.2), layout="constrained")
    panels = figure.subplots(1, len(BACKGROUNDS), sharey=True)
    for number, arm in enumerate(ARMS):
        before, points = 0, []
        for phase in PHASES:
            rows = measured(arm, phase)
            points += [(before + row["step"], row) for row in rows]
            before += rows[-1]["step"]
            for panel in panels:
                panel.axvline(before, color="lightgrey", linewidth=0.8)
        for panel, name in zip(panels, BACKGROUNDS, strict=True):
            xs, ys = zip(*[(step, row[f"val/loss/{name}"]) for step, row in points], strict=True)
            panel.plot(xs, ys, ".-", color=f"C{number}", label=TITLES[arm])
    for panel, name in zip(panels, BACKGROUNDS, strict=True):
        panel.set_title(name, fontsize=10)
        panel.set_xlabel("optimizer steps")
        panel.set_ylim(bottom=0)
        panel.grid(alpha=0.3)
    panels[0].set_ylabel("held-out loss (ema, unweighted)")
    panels[0].legend(fontsize=8)
    return figure


train()
matrix, verdicts = losses(), judged()
for arm in ARMS:
    pictures, texts = zip(*verdicts[arm].pop("pictures"), strict=True)
    title = f"{TITLES[arm]}: after the last phase, EMA weights"
    captioned_grid(list(pictures), list(texts), columns=4, title=title).save(HERE / f"{arm}.png")
numbers = {"replay_share": ARMS, "held_out_loss": matrix, "judge": verdicts}
(HERE / "numbers.json").write_text(json.dumps(numbers, indent=1) + "\n")
draw_losses(matrix).savefig(HERE / "losses.png", dpi=110)
draw_curves().savefig(HERE / "curves.png", dpi=110)
for name, rows in numbers.items():
    print(name, json.dumps(rows))
