"""What benchmarks have found, as JSON, as a page of Markdown and as a picture."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import asdict, dataclass, field, replace
from functools import partial
from pathlib import Path
from typing import Any

from matplotlib.figure import Figure

from sdscratch.bench.timing import Comparison, Verdict
from sdscratch.files import write_atomically, write_json

JSON, PAGE, PICTURE = "bench.json", "bench.md", "bench.png"


@dataclass(frozen=True)
class Fact:
    """A number beside which nobody ran. goal: what it should be at most, or at least, where more is better; floor: what it
    has to be.
    """

    title: str
    value: float
    unit: str
    goal: float | None = None
    floor: float | None = None
    more_is_better: bool = False

    @property
    def ratio(self) -> float:
        """How many times as good as its floor."""
        assert self.floor is not None
        return self.value / self.floor if self.more_is_better else self.floor / max(self.value, 1e-9)

    @property
    def verdict(self) -> Verdict | None:
        """Of what has a floor."""
        if self.floor is None:
            return None
        return "ok" if self.ratio >= 1 else "slower"

    @property
    def shortfall(self) -> str:
        """What to say of it where it is slower."""
        expected = f"at {'least' if self.more_is_better else 'most'} {self.floor}"
        return f"{self.title}: {self.value:.4g} {self.unit}".rstrip() + f", expected {expected}"


@dataclass
class Findings:
    """comparisons: of which the first is the one that counts. not_measured: what this machine has no means for."""

    comparisons: list[Comparison] = field(default_factory=list)
    facts: list[Fact] = field(default_factory=list)
    not_measured: list[str] = field(default_factory=list)

    def titled(self, title: str) -> Findings:
        """The same, each under this title too."""
        return Findings(
            [replace(c, title=f"{c.title}, {title}") for c in self.comparisons],
            [replace(fact, title=f"{fact.title}, {title}") for fact in self.facts],
            [f"{what}, {title}" for what in self.not_measured],
        )

    def add(self, other: Findings) -> None:
        """Those of another benchmark."""
        self.comparisons += other.comparisons
        self.facts += other.facts
        self.not_measured += other.not_measured


def write_report(folder: Path, command: str, about: dict[str, Any], findings: Findings) -> None:
    """bench.json, bench.md and bench.png. Raises CannotWriteError."""
    compared = [{**asdict(c), "verdict": c.verdict} for c in findings.comparisons]
    write_json(
        folder / JSON,
        {
            "format": 1,
            "command": command,
            "about": about,
            "comparisons": compared,
            "facts": [{**asdict(fact), "verdict": fact.verdict} for fact in findings.facts],
            "not_measured": findings.not_measured,
        },
    )
    write_atomically(folder / PAGE, lambda file: file.write(page(command, about, findings).encode()))
    if findings.comparisons:
        figure = draw(findings.comparisons)
        write_atomically(folder / PICTURE, partial(figure.savefig, format="png", dpi=110))


def page(command: str, about: dict[str, Any], findings: Findings) -> str:
    """Markdown."""
    machine = about["machine"]
    lines = [
        "# Measured speed",
        f"`{command}` on {machine['device']}, torch {machine['torch']}, {machine['threads']} threads, {about['precision']}.",
        "",
    ]
    if findings.comparisons:
        lines += [
            "| | times as fast as | ratio | round by round, 10 % to 90 % | the peer to itself | floor | goal | verdict |",
            "|---|---|---|---|---|---|---|---|",
            *map(_row, findings.comparisons),
            "",
            f"![]({PICTURE})",
            "",
        ]
    if findings.facts:
        lines += ["| | | floor | goal | verdict |", "|---|---|---|---|---|", *map(_fact_row, findings.facts), ""]
    lines += [f"Not measured: {what}." for what in findings.not_measured]
    return "\n".join(lines).rstrip() + "\n"


def _row(c: Comparison) -> str:
    cells = [c.title, c.peer, f"**{c.ratio:.3f}**", f"{c.p10:.3f} to {c.p90:.3f}", f"{c.null:.3f}"]
    return f"| {' | '.join([*cells, _or_dash(c.floor), _or_dash(c.goal), c.verdict])} |"


def _fact_row(f: Fact) -> str:
    sign = "at least" if f.more_is_better else "at most"
    bounds = ["-" if bound is None else f"{sign} {bound:g}" for bound in (f.floor, f.goal)]
    return f"| {' | '.join([f.title, f'{f.value:.4g} {f.unit}'.strip(), *bounds, f.verdict or '-'])} |"


def _or_dash(number: float | None) -> str:
    return "-" if number is None else f"{number:g}"


def draw(comparisons: Sequence[Comparison]) -> Figure:
    """A bar per contender, as long as its turn."""
    figure = Figure(figsize=(7, 0.6 + 1.1 * len(comparisons)), layout="constrained")
    for axes, c in zip(figure.subplots(len(comparisons), 1, squeeze=False).flat, comparisons, strict=True):
        colours = ["tab:blue" if name == c.ours else "tab:grey" for name in c.seconds]
        axes.barh(list(c.seconds), list(c.seconds.values()), color=colours)
        axes.invert_yaxis()
        axes.set_title(f"{c.title}: {c.ratio:.2f} times as fast as {c.peer} ({c.verdict}), in seconds", fontsize=8)
        axes.tick_params(labelsize=7)
    return figure
