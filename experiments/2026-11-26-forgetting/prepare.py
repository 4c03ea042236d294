"""The embedded data set apart by background: latent shards out of the quickstart's, and prompts."""

import json
from collections.abc import Iterator
from pathlib import Path

from sdscratch.data import ShardIndex, write_shards
from sdscratch.data.shapes import Scene, prompts

BACKGROUNDS = ("white", "black", "tan", "grey")


def write_sources(latents: Path, out: Path) -> None:
    """Write the samples of each background into out/BACKGROUND, unless they are there."""
    index = ShardIndex.open(latents)
    for name in BACKGROUNDS:
        if not (out / name / "manifest.json").exists():
            write_shards(out / name, _only(name, index), made_by={**index.made_by, "background": name})


def prompts_for(background: str, count: int) -> list[tuple[str, Scene]]:
    """`count` held-out prompts that ask for this background."""
    return [(text, scene) for text, scene in prompts("val", 16 * count, 0) if scene.background == background][:count]


def _only(background: str, index: ShardIndex) -> Iterator[tuple[str, dict[str, bytes]]]:
    for n in range(len(index)):
        members = index.read(n)
        if json.loads(members["json"])["background"] == background:
            yield index.key(n), members
