"""`sdscratch data download`: rows with URLs -> shards of pictures."""

from __future__ import annotations

from collections.abc import Mapping

from omegaconf import DictConfig

from sdscratch.commands.data_fallen import fallen
from sdscratch.commands.data_paths import in_path, out_folder, required
from sdscratch.config import build
from sdscratch.console import progress_bar
from sdscratch.errors import ConfigError
from sdscratch.prepare.download.downloader import Count, Downloader
from sdscratch.prepare.download.url_rows import UrlRows
from sdscratch.prepare.download.web import is_passing


def run(cfg: DictConfig) -> None:
    """Download the rows of `path` into `out`."""
    path, out = in_path(cfg), out_folder(cfg)
    with progress_bar("downloading") as progress:

        def show(count: Count) -> None:
            progress(count.settled, len(rows), f"downloading, {count.dropped} fell")

        settings = (cfg.source, cfg.licence, cfg.shard_size, cfg.workers, cfg.retry_failed)
        downloader = Downloader(build(cfg.pictures), build(cfg.manners), *settings, progress=show)
        rows = UrlRows(path)
        if cfg.engine == "local":
            manifest = downloader.write(rows, out)
        else:
            from sdscratch.prepare.download import img2dataset

            manifest = img2dataset.write(downloader, rows, out, _python(cfg))
    where = f"{out}: {manifest.total} pictures of {len(rows)} rows in {len(manifest.shards)} shards"
    print(f"{where}{fallen(out, manifest.dropped)}{_hint(manifest.dropped)}")


def _hint(dropped: Mapping[str, int]) -> str:
    """What to do about those that may be had by now."""
    count = sum(number for reason, number in dropped.items() if is_passing(reason))
    return f"; retry_failed=true asks again for {count} of them" if count else ""


def _python(cfg: DictConfig) -> str:
    if cfg.engine != "img2dataset":
        raise ConfigError(f"engine={cfg.engine!r} is unknown; expected local or img2dataset")
    if cfg.retry_failed:
        raise ConfigError("retry_failed=true is for engine=local, which goes on in the same folder; set that")
    how = "`python -m venv V; V/bin/pip install img2dataset`, then img2dataset_python=V/bin/python"
    return required(cfg, "img2dataset_python", f"an environment of its own: {how}")
