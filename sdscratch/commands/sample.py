"""`sdscratch sample`: pictures from prompts."""

from __future__ import annotations

from typing import TYPE_CHECKING

from omegaconf import DictConfig
from PIL import Image

from sdscratch.commands.data_paths import out_folder
from sdscratch.commands.picture_files import PictureFolder, safe_name
from sdscratch.commands.sample_request import (
    about,
    check_request,
    drawing_bar,
    initial_image,
    load,
    negatives_of,
    prompts_of,
    settings_of,
)
from sdscratch.data.grid import captioned_grid

if TYPE_CHECKING:
    from sdscratch.pipeline import TextToImage

COLUMNS, MOST_COLUMNS, MOST_SHOWN = 6, 10, 120  # of the sheet


def run(cfg: DictConfig) -> None:
    """Draw what is asked for; or draw grids that compare; or ask what to draw, again and again."""
    out = out_folder(cfg)
    check_request(cfg)
    if cfg.interactive:
        from sdscratch.commands.sample_interactive import converse

        converse(load(cfg), cfg, PictureFolder(out))
        return
    prompts = prompts_of(cfg)
    folder = PictureFolder(out)
    if cfg.compare is not None:
        from sdscratch.commands.sample_compare import compare

        compare(cfg, prompts, folder)
        return
    draw(load(cfg), cfg, prompts, folder)


def draw(pipe: TextToImage, cfg: DictConfig, prompts: list[str], folder: PictureFolder) -> int:
    """Write the PNGs, each with all that it takes to draw it again in its text, and a sheet of them where they are several.

    Returns how many pictures there are.
    """
    each = range(cfg.num_per_prompt)
    negatives = [negative for negative in negatives_of(cfg, len(prompts)) for _ in each]
    prompts = [prompt for prompt in prompts for _ in each]
    made_by, picture = about(cfg, pipe), initial_image(cfg)

    def write(i: int, image: Image.Image) -> None:
        own = {"prompt": prompts[i], "negative_prompt": negatives[i], "seed": cfg.seed + i}
        print(folder.write(f"{safe_name(prompts[i])}_{cfg.seed + i}", image, own | made_by | own), flush=True)

    with drawing_bar() as progress:
        images = pipe(
            prompts,
            negatives,
            seed=cfg.seed,
            weights=cfg.weights,
            init_image=picture,
            batch_size=cfg.batch_size,
            progress=progress,
            ready=write,
            **settings_of(cfg),
        )
    if len(images) > 1:
        title = f"{cfg.model}: {cfg.weights} weights, {made_by['num_inference_steps']} steps, seeds from {cfg.seed} on"
        columns = cfg.num_per_prompt if 1 < cfg.num_per_prompt <= MOST_COLUMNS else COLUMNS  # a row for each prompt
        sheet = captioned_grid(images[:MOST_SHOWN], prompts[:MOST_SHOWN], columns, title)
        name = f"{safe_name(prompts[0])}_{cfg.seed}-{cfg.seed + len(images) - 1}"
        print(f"all of them: {folder.write(name, sheet, made_by)}")
    return len(images)
