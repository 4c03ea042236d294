"""The notebooks run from the first cell to the last, in a folder without a model, and are stored without outputs."""

from __future__ import annotations

import os
from collections.abc import Callable, Iterator
from pathlib import Path

import pytest

nbclient = pytest.importorskip("nbclient")
pytest.importorskip("ipykernel")
import nbformat  # noqa: E402  (comes with nbclient)
from jupyter_client.manager import KernelManager  # noqa: E402

pytestmark = pytest.mark.xdist_group("notebooks")  # one kernel for all: most of the time is its imports

CHECKOUT = Path(__file__).parents[2]
NOTEBOOKS = sorted((CHECKOUT / "notebooks").glob("*.ipynb"))
SHORT = {
    "2_training": 'STEPS = {"autoencoder": 4, "clip": 4, "diffusion": 4}\nSCENES = 64',
    "3_checkpoints": "PROMPTS = 2",
}
"""Instead of the cells tagged `parameters`: nothing to see, and all of it runs."""


@pytest.fixture(scope="module")
def kernel(tmp_path_factory: pytest.TempPathFactory) -> Iterator[KernelManager]:
    """In an empty folder."""
    folder = tmp_path_factory.mktemp("notebooks")
    manager = KernelManager(kernel_name="python3")
    manager.start_kernel(cwd=str(folder), env={**os.environ, "PYTHONPATH": str(CHECKOUT), "IPYTHONDIR": str(folder)})
    try:
        yield manager
    finally:
        manager.shutdown_kernel(now=True)


@pytest.fixture(scope="module")
def executed(kernel) -> Callable[[str], nbformat.NotebookNode]:
    """`executed(name)`: after it has run in a namespace of its own; a cell that fails raises."""

    def execute(name: str) -> nbformat.NotebookNode:
        notebook = nbformat.read(CHECKOUT / "notebooks" / f"{name}.ipynb", as_version=4)
        for cell in notebook.cells:
            if "parameters" in cell.metadata.get("tags", []):
                cell.source = SHORT[name]
        notebook.cells.insert(0, nbformat.v4.new_code_cell("%reset -f"))
        nbclient.NotebookClient(notebook, km=kernel, timeout=300).execute()
        return notebook

    return execute


def pictures(notebook: nbformat.NotebookNode) -> int:
    outputs = [output for cell in notebook.cells if cell.cell_type == "code" for output in cell.outputs]
    return sum("image/png" in output.get("data", {}) for output in outputs)


def said(notebook: nbformat.NotebookNode) -> str:
    outputs = [output for cell in notebook.cells if cell.cell_type == "code" for output in cell.outputs]
    return "".join(output.get("text", "") for output in outputs)


def test_the_first_one_draws_without_a_model_at_hand(executed):
    """By training a tiny one."""
    notebook = executed("1_first_pictures")
    assert pictures(notebook) == 5 and "largest difference: " in said(notebook)
    assert int(said(notebook).partition("largest difference: ")[2].split()[0]) <= 2


def test_the_second_one_trains_all_three_networks_and_the_third_compares_what_it_has_left(executed):
    assert pictures(executed("2_training")) == 6
    notebook = executed("3_checkpoints")
    assert pictures(notebook) == 3
    assert [f"step {step:>5}" in said(notebook) for step in (1, 2, 3, 4)] == [True] * 4
    assert "length 0.20: colour" in said(notebook)


@pytest.mark.parametrize("path", NOTEBOOKS, ids=lambda path: path.stem)
def test_they_are_stored_without_outputs_and_say_first_what_one_will_see(path):
    notebook = nbformat.read(path, as_version=4)
    nbformat.validate(notebook)
    code = [cell for cell in notebook.cells if cell.cell_type == "code"]
    assert all(cell.outputs == [] and cell.execution_count is None for cell in code)
    assert "You will see" in notebook.cells[0].source or "It draws noise" in notebook.cells[0].source
