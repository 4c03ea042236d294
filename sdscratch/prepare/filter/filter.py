"""Metadata rows -> the rows that rules keep, and why the others fell. Of any size: nothing is held in memory whole.

First each file by itself, on as many workers as there are: what the rules of single rows leave of it goes to OUT/parts.
Then all of them together: duplicates, the sample, and the sorting by key, by which the result is the same bytes whatever the
files are called and however many threads there are. Killed, it goes on with the files that were not finished.
"""

from __future__ import annotations

import shutil
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass
from functools import partial
from hashlib import sha256
from pathlib import Path
from typing import Any, Literal

import duckdb
import numpy as np
import pyarrow as pa

from sdscratch.errors import ConfigError, DataError, check_choice
from sdscratch.files import LOCK, FolderLock, read_json, remove_halves, sha256_of, write_json
from sdscratch.prepare.engine import Engine, map_shards
from sdscratch.prepare.filter.funnel import Funnel, summed
from sdscratch.prepare.filter.metadata import (
    ALIASES,
    IDENTITIES,
    IDENTITY,
    Columns,
    columns_of,
    fingerprint,
    metadata_files,
    normalised,
    reader,
)
from sdscratch.prepare.filter.rules import FOLDED, Rule, Rules
from sdscratch.prepare.filter.tables import GROUP, batches, connection, reading, write_rows
from sdscratch.prepare.sql import identifier

ROWS = "rows.parquet"
PARTS = "parts"
MADE_BY = "made_by.json"
FELL, POSITION, CONTENT, CAPTION = "__fell", "__position", "__content", "__caption"  # columns on the way


@dataclass(frozen=True)
class Part:
    """One file of metadata, and what becomes of it.

    name: its path below the source. missing: rules that it has no columns for -> the first such column.
    """

    number: int
    name: str
    path: Path
    columns: Columns
    rules: tuple[Rule, ...]
    missing: dict[str, str]


@dataclass(frozen=True)
class Filter:
    """How metadata is filtered.

    on_missing: where a file has no column for a rule, stop before anything is begun ("fail"), or keep its rows whatever the
    rule says ("skip"), and say so in the funnel. on_bad: files that cannot be read stop everything ("fail"), or are left
    out ("quarantine"). memory: what each worker, and the sorting at the end, may take, as "3GB"; what is beyond it goes
    to disk beside the output. progress: called with files done and all.
    """

    rules: Rules
    on_missing: Literal["fail", "skip"] = "fail"
    on_bad: Literal["fail", "quarantine"] = "fail"
    memory: str = "3GB"
    engine: Engine = "local"
    workers: int = 0
    progress: Callable[[int, int], None] = lambda done, total: None

    def __post_init__(self) -> None:
        check_choice("on_missing", self.on_missing, ("fail", "skip"))
        check_choice("on_bad", self.on_bad, ("fail", "quarantine"))
        try:
            duckdb.connect(config={"memory_limit": self.memory}).close()
        except duckdb.Error as error:
            raise ConfigError(f"memory={self.memory!r} is no size: expected one such as 3GB") from error

    def write(self, source: Path, out: Path) -> Funnel:
        """Filter the metadata file or folder `source` into the folder `out`; what it holds already is left alone.

        Raises DataError for what cannot be read, lacks columns, or keeps no row, and for an `out` of something else.
        """
        files = sorted((fingerprint(file), file) for file in metadata_files(source, but_not_in=out))
        made_by = {
            "by": "filter",
            "rules": self.rules.settings(),
            "on_missing": self.on_missing,
            "on_bad": self.on_bad,
            "files": len(files),
            "source_fingerprint": sha256("".join(mark for mark, _ in files).encode()).hexdigest(),
        }
        at_it = (out / LOCK, out / PARTS)  # there while somebody is, or was killed at the very end
        if (there := _finished(out, made_by)) is not None and not any(path.exists() for path in at_it):
            return there
        parts, bad = self._planned({_name(file, source): file for _, file in files})
        with FolderLock(out, "set another out=").held():
            remove_halves(out)
            if (there := _finished(out, made_by)) is not None:  # by whoever had the lock until now
                shutil.rmtree(out / PARTS, ignore_errors=True)
                return there
            work = _working_folder(out / PARTS, made_by)
            todo = [part for part in parts if not _account(work, part).exists()]
            judged = map_shards(
                partial(judge, work=work, memory=self.memory, workers=self.workers, on_bad=self.on_bad),
                todo,
                self.engine,
                self.workers,
            )
            self.progress(len(parts) - len(todo), len(parts))
            for done, _ in enumerate(judged, len(parts) - len(todo) + 1):
                self.progress(done, len(parts))
            funnel = self._joined(parts, bad, work, made_by)
            funnel.write(out)
            shutil.rmtree(work)
        return funnel

    def _planned(self, files: dict[str, Path]) -> tuple[list[Part], dict[str, str]]:
        """What is to be done with each file, found out before anything is begun; files that cannot be read, and why."""
        parts, bad = list[Part](), dict[str, str]()
        with duckdb.connect() as opened:
            for number, (name, path) in enumerate(files.items()):
                try:
                    with reading(path):
                        columns = columns_of(opened, path)
                except DataError as error:
                    if self.on_bad == "fail":
                        raise
                    bad[name] = str(error)
                else:
                    parts.append(self._plan(number, name, path, columns))
        return parts, bad

    def _plan(self, number: int, name: str, path: Path, columns: Columns) -> Part:
        known, rules = normalised(columns), list(self.rules.of_rows())
        missing = {rule.name: lacking[0] for rule in rules if (lacking := [c for c in rule.columns if c not in known])}
        has = f"it has {', '.join(list(columns)[:20])}"
        if IDENTITY not in known:
            names = ", ".join((*ALIASES["url"], *IDENTITIES))
            raise DataError(f"{path}: nothing tells its rows apart: expected a column of {names}; {has}")
        if missing and self.on_missing == "fail":
            rule, column = next(iter(missing.items()))
            others = f", and so do {', '.join(list(missing)[1:])} theirs" if len(missing) > 1 else ""
            raise DataError(
                f"{path}: the rule {rule} needs a column {column} (or {', '.join(ALIASES[column][1:])}){others}; {has}. "
                f"Switch such rules off, as by rules.{rule}=null, or set on_missing=skip"
            )
        return Part(number, name, path, columns, tuple(rule for rule in rules if rule.name not in missing), missing)

    def _joined(self, parts: Sequence[Part], bad: dict[str, str], work: Path, made_by: dict[str, Any]) -> Funnel:
        """All parts together: duplicates, the sample, the sorted rows; and the account of it all."""
        accounts = [(part, read_json(_account(work, part))) for part in parts]
        bad |= {part.name: account["bad"] for part, account in accounts if account["bad"]}
        every_rule = dict.fromkeys((rule.name for rule in self.rules.of_rows()), 0)
        fell = summed([every_rule, *(account["fell"] for _, account in accounts)])
        rows = sum(account["rows"] for _, account in accounts)
        paths = [str(_rows(work, part)) for part, account in accounts if account["kept"]]
        if not paths:
            shutil.rmtree(work)
            raise DataError(_nothing(rows, fell, bad))
        target = work.parent / ROWS
        with connection(work, self.memory) as opened, reading(work):
            opened.read_parquet(paths, union_by_name=True).create_view("parts")
            fell |= _choose(opened, self.rules)
            kept = opened.sql(
                f"SELECT {_listed(opened)} FROM parts SEMI JOIN chosen USING ({POSITION}) ORDER BY key, {CONTENT}"
            ).to_arrow_reader(GROUP)
            count = write_rows(target, kept.schema, batches(kept, work))
        skipped: dict[str, dict[str, int]] = {}
        for part, account in accounts:
            for rule, column in part.missing.items():
                skipped[rule] = summed([skipped.get(rule, {}), {column: account["rows"]}])
        return Funnel(made_by, rows, fell, count, _output(target), skipped, bad)


def judge(part: Part, work: Path, memory: str, workers: int, on_bad: str) -> None:
    """Hold the rules of single rows against one file: write the rows that stay, then the account of the others."""
    counts, bad = np.zeros(len(part.rules) + 1, dtype=np.int64), ""  # kept, then those that fell to each rule
    try:
        with connection(work, memory, share=workers or 1) as opened:
            with reading(part.path):
                found = opened.sql(_judged(part)).to_arrow_reader(GROUP)
            schema = found.schema.remove(found.schema.get_field_index(FELL)).append(pa.field(POSITION, pa.int64()))
            write_rows(_rows(work, part), schema, _kept(batches(found, part.path), part.number, counts), "snappy")
    except DataError as error:
        if on_bad == "fail":
            raise
        bad, counts[:] = str(error), 0
    fell = {rule.name: int(count) for rule, count in zip(part.rules, counts[1:], strict=True)}
    account = {"bad": bad, "rows": int(counts.sum()), "kept": int(counts[0]), "fell": fell}
    write_json(_account(work, part), account)


def _judged(part: Part) -> str:
    """SQL: every row of a file, normalised, with the number of the first rule that it fails, 0 where it fails none."""
    known = normalised(part.columns)
    columns = [name for name in known if name != IDENTITY]
    selected = ", ".join(f"{expression} AS {identifier(name)}" for name, expression in known.items())
    cases = " ".join(f"WHEN NOT coalesce({rule.keeps}, false) THEN {n}" for n, rule in enumerate(part.rules, start=1))
    of_kept = [f"CASE WHEN {FELL} = 0 THEN {identifier(name)} END AS {identifier(name)}" for name in columns]
    caption = f"nullif({FOLDED}, '')" if "caption" in known else "NULL"
    return f"""
        SELECT {FELL}, CASE WHEN {FELL} = 0 THEN left(sha256({IDENTITY}), 20) END AS key, {", ".join(of_kept)},
            CASE WHEN {FELL} = 0 THEN hash({", ".join(map(identifier, columns)) or IDENTITY}) END AS {CONTENT},
            CASE WHEN {FELL} = 0 THEN md5_number_lower({caption}) END AS {CAPTION}
        FROM (SELECT *, CASE {cases} ELSE 0 END::INTEGER AS {FELL} FROM (SELECT {selected} FROM {reader(part.path)}))"""


def _kept(found: Iterator[pa.RecordBatch], number: int, counts: np.ndarray) -> Iterator[pa.RecordBatch]:
    """The rows that fell to no rule, each with a position that no other one has. Adds to `counts` by rule."""
    for batch in found:
        fell = batch.column(FELL).to_numpy()
        first = (number << 40) + int(counts[0])
        counts += np.bincount(fell, minlength=len(counts))
        rows = batch.filter(pa.array(fell == 0)).drop_columns([FELL])
        yield rows.append_column(POSITION, pa.array(np.arange(first, first + len(rows))))


def _choose(opened: duckdb.DuckDBPyConnection, rules: Rules) -> dict[str, int]:
    """Make the table `chosen` of the positions that stay of `parts`; how many fell to each rule that looks at them all.

    Of duplicates stays what its content alone decides, never its place: the least key, then the least hash of the row.
    """
    # 64 bits tell rows apart: of 100 million, one is mistaken for another with probability 0.0003, and lost.
    opened.execute(
        f"""CREATE TABLE chosen AS
            SELECT ('0x' || left(key, 16))::UBIGINT AS name, {CONTENT}, {CAPTION}, {POSITION} FROM parts"""
    )
    fell = {}
    if rules.unique_url:
        fell["unique_url"] = _reduce(
            opened,
            f"""SELECT name, min({CONTENT}) AS {CONTENT}, arg_min({CAPTION}, {CONTENT}) AS {CAPTION},
                arg_min({POSITION}, {CONTENT}) AS {POSITION} FROM chosen GROUP BY name""",
        )
    if rules.unique_caption:
        fell["unique_caption"] = _reduce(
            opened,
            f"""SELECT unnest(min(chosen)) FROM chosen WHERE {CAPTION} IS NOT NULL GROUP BY {CAPTION}
                UNION ALL FROM chosen WHERE {CAPTION} IS NULL""",
        )
    if rules.max_rows is not None:
        drawn = f"md5_number_lower('{rules.seed}:' || name), name, {CONTENT}"
        fell["max_rows"] = _reduce(opened, f"FROM chosen ORDER BY {drawn} LIMIT {rules.max_rows}")
    return fell


def _reduce(opened: duckdb.DuckDBPyConnection, query: str) -> int:
    """Replace `chosen` by what the query leaves of it; how many fell."""
    opened.execute(f"CREATE TABLE fewer AS {query}")
    before, after = opened.execute("SELECT (SELECT count(*) FROM chosen), (SELECT count(*) FROM fewer)").fetchall()[0]
    opened.execute("DROP TABLE chosen; ALTER TABLE fewer RENAME TO chosen")
    return before - after


def _listed(opened: duckdb.DuckDBPyConnection) -> str:
    """The columns of the output: key, those that are known everywhere, then all others, by name."""
    found = {name for name, *_ in opened.execute("DESCRIBE parts").fetchall()} - {POSITION, CONTENT, CAPTION}
    first = [name for name in ("key", *ALIASES) if name in found]
    return ", ".join(map(identifier, [*first, *sorted(found.difference(first))]))


def _output(path: Path) -> dict[str, Any]:
    return {"name": path.name, "size": path.stat().st_size, "sha256": sha256_of(path)}


def _finished(out: Path, made_by: dict[str, Any]) -> Funnel | None:
    """What `out` holds already, if it was made by the same. Raises DataError where it was made by something else."""
    there = Funnel.read(out)
    if there is None:
        return None
    if there.made_by != made_by:
        differing = sorted(k for k in there.made_by | made_by if there.made_by.get(k) != made_by.get(k))
        raise DataError(
            f"{out} already holds rows filtered otherwise (they differ in {', '.join(differing)}). "
            "Delete that folder, or write to another one."
        )
    rows = out / there.output["name"]
    return there if rows.is_file() and rows.stat().st_size == there.output["size"] else None


def _working_folder(work: Path, made_by: dict[str, Any]) -> Path:
    """Where parts lie until all are joined; those of another job are removed."""
    if read_json(work / MADE_BY) != made_by:
        shutil.rmtree(work, ignore_errors=True)
        write_json(work / MADE_BY, made_by)
    remove_halves(work)
    return work


def _name(file: Path, source: Path) -> str:
    return file.name if file == source else file.relative_to(source).as_posix()


def _rows(work: Path, part: Part) -> Path:
    return work / f"{part.number:06d}.parquet"


def _account(work: Path, part: Part) -> Path:
    return work / f"{part.number:06d}.json"


def _nothing(rows: int, fell: dict[str, int], bad: dict[str, str]) -> str:
    if not rows:
        return "there are no rows to filter" + (
            f": {len(bad)} files cannot be read, {next(iter(bad))} first" if bad else ""
        )
    most = sorted(fell, key=lambda name: -fell[name])[:3]
    reasons = ", ".join(f"{fell[name]:,} to {name}" for name in most if fell[name])
    return f"no row is left of {rows:,}: most fell {reasons}. Loosen these rules"
