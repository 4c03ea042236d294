"""`sdscratch sweep-table SWEEP`: its runs, best first, on the terminal and as table.csv, table.json and table.png."""

from __future__ import annotations

import csv
import io
from pathlib import Path
from typing import Any

from rich.console import Console
from rich.table import Table

from sdscratch.config import load_config, settings
from sdscratch.console import warn
from sdscratch.errors import ConfigError
from sdscratch.evaluation.comparison import caveats
from sdscratch.evaluation.sweep_results import Result, draw, results_of
from sdscratch.files import write_atomically, write_json


def run(sweep: str, words: list[str]) -> None:
    """Read what the runs have left, print and draw it; warn of numbers that only look as if they compared."""
    if words:
        raise ConfigError(f"sweep-table takes a sweep and nothing more, but {' '.join(words)} was given")
    folder = Path(sweep)
    results = results_of(folder)
    rows = [result.row for result in results]
    columns = list(dict.fromkeys(name for row in rows for name in row))
    Console(width=None if Console().is_terminal else 200).print(_table(results, columns))
    for caveat in caveats([settings(load_config(r.run.recipe_file)) for r in results if r.run.recipe_file.is_file()]):
        warn(caveat)
    text = io.StringIO()
    writer = csv.DictWriter(text, columns, restval="", lineterminator="\n")
    writer.writeheader()
    writer.writerows(rows)
    write_atomically(folder / "table.csv", lambda file: file.write(text.getvalue().encode()))
    write_json(folder / "table.json", {"metric": results[0].metric, "weights": "ema", "runs": rows})
    draw(results, folder / "table.png")
    print(f"{folder / 'table.png'}, table.csv and table.json beside it")


def _table(results: list[Result], columns: list[str]) -> Table:
    table = Table(title=f"{len(results)} runs, by {results[0].metric} of the EMA network (unweighted, lower is better)")
    for name in columns:
        table.add_column("train/loss (weighted)" if name == "train/loss" else name, overflow="fold")
    for result in results:
        row = {**result.row, "run": result.run.path.name}
        swept = {name: "null" if value is None else _said(value) for name, value in result.swept.items()}
        cells = [swept.get(name) or _said(row.get(name)) for name in columns]
        table.add_row(*cells, style="bold" if result is results[0] else "")
    return table


def _said(value: Any) -> str:
    if value is None:
        return "-"
    return f"{value:.6g}" if isinstance(value, float) else str(value)
