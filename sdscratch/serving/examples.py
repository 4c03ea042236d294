"""What a model can be asked for, by its own training."""

from __future__ import annotations

from contextlib import suppress
from pathlib import Path

import yaml

from sdscratch.files import read_bytes
from sdscratch.interop.run_checkpoint import run_around
from sdscratch.run_folder import RunFolder


def examples_of(model: str) -> list[str]:
    """The prompts of which training drew its previews; none where there is no run around the model, or it says none."""
    run = run_around(Path(model)) or RunFolder(model)
    with suppress(OSError, UnicodeError, yaml.YAMLError, LookupError, AttributeError, TypeError):
        recipe = yaml.safe_load(read_bytes(run.config_file))
        return [str(prompt) for prompt in recipe["stage"].get("preview_prompts") or ()]
    return []
