"""Where rows went: how many came in, how many fell to each rule, how many are left. As JSON, Markdown and a picture."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import TYPE_CHECKING, Any

from sdscratch.files import read_json, write_atomically, write_json

if TYPE_CHECKING:
    from matplotlib.figure import Figure

FUNNEL = "funnel.json"


@dataclass(frozen=True)
class Funnel:
    """The account of one filtering.

    made_by: what determines the result, as plain JSON. rows: read. dropped: to each rule, in the sequence in which they
    were applied. kept: rows + those of no rule. output: name, size and sha256 of the file that holds them.
    skipped: rule -> column -> rows of files that have no such column. unreadable: files that were left out, and why.
    """

    made_by: dict[str, Any]
    rows: int
    dropped: dict[str, int]
    kept: int
    output: dict[str, Any]
    skipped: dict[str, dict[str, int]] = field(default_factory=dict)
    unreadable: dict[str, str] = field(default_factory=dict)

    def __post_init__(self) -> None:
        if self.rows != self.kept + sum(self.dropped.values()):
            raise AssertionError(f"{self.rows} rows in, {self.kept} kept, but dropped were {self.dropped}")

    @classmethod
    def read(cls, folder: Path) -> Funnel | None:
        """That of a folder, or None where there is none yet."""
        fields = read_json(folder / FUNNEL)
        return cls(**fields) if fields else None

    def write(self, folder: Path) -> None:
        """funnel.md and funnel.png, and last of all funnel.json: with it the folder is a finished one."""
        write_atomically(folder / "funnel.md", lambda file: file.write(self.markdown().encode()))
        write_atomically(folder / "funnel.png", lambda file: self._drawn().savefig(file, format="png"))
        write_json(folder / FUNNEL, vars(self))

    def markdown(self) -> str:
        """A table for people, and what was not as it should be."""
        lines = ["| rule | dropped | of those that came to it | left |", "| --- | ---: | ---: | ---: |"]
        lines.append(f"| rows in | | | {self.rows:,} |")
        left = self.rows
        for name, count in self.dropped.items():
            share = f"{count / left:.2%}" if left else ""
            left -= count
            lines.append(f"| {self._label(name)} | {count:,} | {share} | {left:,} |")
        lines.append(f"| **kept** | | | **{self.kept:,}** |")
        notes = [
            f"- {rule} was not applied to {rows:,} rows: their files have no column {column}"
            for rule, columns in self.skipped.items()
            for column, rows in columns.items()
        ]
        notes += [f"- left out: {name}: {why}" for name, why in self.unreadable.items()]
        return "\n".join([*lines, *(["", *notes] if notes else []), ""])

    def _label(self, rule: str) -> str:
        """The rule with its value."""
        value = self.made_by.get("rules", {}).get(rule)
        return rule if value is None or isinstance(value, bool) else f"{rule} = {value}"

    def _drawn(self) -> Figure:
        """A bar for what is left after each rule, its loss beside it."""
        from matplotlib.figure import Figure  # only when there is something to draw: it takes its time

        names, left, losses = ["rows in"], [self.rows], [0]
        for name, count in self.dropped.items():
            names.append(self._label(name))
            left.append(left[-1] - count)
            losses.append(count)
        figure = Figure(figsize=(9, 1.2 + 0.32 * len(names)), layout="constrained")
        axes = figure.subplots()
        places = range(len(names))
        axes.barh(places, left, color="tab:blue")
        axes.barh(places, losses, left=left, color="tab:red", alpha=0.35)
        for place, (rest, loss) in enumerate(zip(left, losses, strict=True)):
            text = f"{rest:,}" + (f"  (-{loss:,})" if loss else "")
            axes.annotate(
                text, (rest + loss, place), xytext=(4, 0), textcoords="offset points", va="center", fontsize=8
            )
        axes.set_yticks(places, names)
        axes.invert_yaxis()
        axes.set_xlim(0, 1.3 * max(self.rows, 1))
        axes.set_xlabel("rows left after each rule, and in red those that fell to it")
        axes.spines[["top", "right"]].set_visible(False)
        return figure


def summed(parts: list[Mapping[str, int]]) -> dict[str, int]:
    """Counts by name, added up, in the sequence of their first appearance."""
    total: dict[str, int] = {}
    for part in parts:
        for name, count in part.items():
            total[name] = total.get(name, 0) + count
    return total
