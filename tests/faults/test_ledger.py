"""docs/faults.md names tests that exist, at least one for each fault."""

from __future__ import annotations

import ast
import re
from pathlib import Path

ROOT = Path(__file__).parents[2]
LEDGER = (ROOT / "docs" / "faults.md").read_text()
TEST = re.compile(r"`(tests/[\w/]+\.py)::(test_\w+)`")


def test_every_test_of_the_ledger_exists():
    named = set(TEST.findall(LEDGER))
    assert len(named) > 80
    defined = {
        (file, node.name)
        for file in {file for file, _ in named if (ROOT / file).is_file()}
        for node in ast.parse((ROOT / file).read_text()).body
        if isinstance(node, ast.FunctionDef)
    }
    assert sorted(named - defined) == []


def test_every_fault_of_the_ledger_has_a_test():
    rows = [line for line in LEDGER.splitlines() if line.startswith("|") and not set(line) <= set("| -")]
    faults = [row for row in rows if not row.endswith("| Test |")]
    assert len(faults) > 80
    assert [row for row in faults if row.count("|") != 4 or not TEST.search(row)] == []


def test_every_test_of_faults_is_in_the_ledger():
    """What is worth a kill is worth a line."""
    named = {name for file, name in TEST.findall(LEDGER) if file.startswith("tests/faults/")}
    files = [path for path in Path(__file__).parent.glob("test_*.py") if path.stem not in ("test_ledger",)]
    missing = [path.name for path in files if not named & set(re.findall(r"^def (test_\w+)", path.read_text(), re.M))]
    assert missing == []
