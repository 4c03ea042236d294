"""The page about a folder of shards: report.html with two pictures, and stats.json."""

from __future__ import annotations

from collections import Counter
from collections.abc import Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np
from PIL import Image

from sdscratch.data.grid import captioned_grid
from sdscratch.files import write_atomically, write_json
from sdscratch.pages import render_page
from sdscratch.prepare.stats.stats import Stats

if TYPE_CHECKING:
    from matplotlib.figure import Figure

CONTEXT = 77  # tokens that CLIP reads
CONCEPTS = 30
COLUMNS = 8
LONGEST_WORD = 24  # characters that are shown: the panel has to stay wider than its labels


def write_page(out: Path, title: str, stats: Stats, pictures: Sequence[Image.Image], captions: Sequence[str]) -> Path:
    """Write report.html, overview.png, contact.png (where there are pictures) and stats.json into `out`. Returns the page."""
    figure = draw_overview(stats)
    write_atomically(out / "overview.png", lambda file: figure.savefig(file, format="png", dpi=110))
    if pictures:
        sheet = captioned_grid(pictures, captions, COLUMNS)
        write_atomically(out / "contact.png", lambda file: sheet.save(file, "PNG"))
    numbers = summary(stats)
    write_json(out / "stats.json", numbers)
    shown = {"numbers": numbers, "has_pictures": bool(pictures), "context": CONTEXT}
    page = render_page("prepare/stats/page.html", title=title, **shown)
    write_atomically(out / "report.html", lambda file: file.write(page))
    return out / "report.html"


def summary(stats: Stats) -> dict[str, Any]:
    """The numbers of the page, as plain JSON."""
    sides = Counter[int]()
    for (width, height), times in stats.sizes.items():
        sides[min(width, height)] += times
    numbers = {
        "samples": stats.samples,
        "unreadable": dict(stats.bad.most_common()),
        "captions": stats.words.total(),
        "samples without caption": stats.captions[0],
        "shorter side": _quantiles(sides),
        "words in a caption": _quantiles(stats.words),
        "concepts": dict(stats.concepts.most_common(CONCEPTS)),
        "sources": dict(stats.sources.most_common()),
        "licences": dict(stats.licences.most_common()),
    }
    if stats.tokens:
        numbers |= {"tokens in a caption": _quantiles(stats.tokens), "captions cut off": stats.truncated(CONTEXT)}
    if stats.moments.samples:
        numbers |= {"latents": {"mean": stats.moments.mean.tolist(), "std": stats.moments.std}}
    return numbers


def draw_overview(stats: Stats) -> Figure:
    """Four panels: aspect, shorter side, caption length, concept words."""
    from matplotlib.figure import Figure

    figure = Figure(figsize=(11, 7.5), layout="constrained")
    (aspect, side), (length, words) = figure.subplots(2, 2)
    known = {size: times for size, times in stats.sizes.items() if min(size) > 0}
    if known:
        weights = list(known.values())
        aspects = np.array([width / height for width, height in known])
        edges = 2.0 ** np.linspace(-2, 2, 41)
        aspect.hist(aspects.clip(edges[0], edges[-1]), bins=edges.tolist(), weights=weights)
        aspect.set_xscale("log", base=2)
        aspect.set_xticks([0.25, 0.5, 1, 2, 4], ["1:4", "1:2", "1:1", "2:1", "4:1"])
        side.hist([min(size) for size in known], bins=40, weights=weights)
    for panel, label in ((aspect, "width : height"), (side, "shorter side in pixels")):
        panel.set_xlabel(label)
        panel.set_ylabel("samples")
    counts, unit = (stats.tokens, "tokens") if stats.tokens else (stats.words, "words")
    if counts:
        longest = CONTEXT + 23
        clipped = [min(n, longest) for n in counts]
        length.hist(clipped, bins=range(0, longest + 2, 2), weights=list(counts.values()))
        if stats.tokens:
            length.axvline(CONTEXT, color="C3", linewidth=1)
            length.text(
                CONTEXT, 1, f" {stats.truncated(CONTEXT):.1%} cut off", transform=length.get_xaxis_transform(), va="top"
            )
    length.set_xlabel(f"{unit} in a caption")
    length.set_ylabel("captions")
    top = stats.concepts.most_common(CONCEPTS)[::-1]
    words.barh([word[:LONGEST_WORD] for word, _ in top], [100 * times / max(1, stats.samples) for _, times in top])
    words.tick_params(axis="y", labelsize=7)
    words.set_xlabel("% of samples with the word")
    return figure


def _quantiles(counts: Counter[int]) -> dict[str, float]:
    """Least, the quarters, and most; {} of nothing."""
    if not counts:
        return {}
    values = np.repeat(sorted(counts), [counts[value] for value in sorted(counts)])
    names = ("least", "quarter", "median", "three quarters", "most")
    return dict(zip(names, np.quantile(values, (0, 0.25, 0.5, 0.75, 1)).tolist(), strict=True))
