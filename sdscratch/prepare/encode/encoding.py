"""Image shards -> latent shards: the VAE's raw means and log-variances, so that a change of scale never re-encodes.

Each source shard is a task (engine.py), and becomes a shard of the same name. Threads decode pictures ahead of the VAE.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator
from dataclasses import dataclass
from functools import partial
from itertools import islice
from pathlib import Path
from typing import Literal, NamedTuple

import torch
from torch import Tensor

from sdscratch.data.captions import captions_of, record_of
from sdscratch.data.images import check_resolution, image_member, preprocess
from sdscratch.data.index import ShardIndex
from sdscratch.data.latents import pack
from sdscratch.data.manifest import Manifest
from sdscratch.data.shards import Dropped, Members, Sample, ShardFolder
from sdscratch.errors import DataError, check_choice, check_whole
from sdscratch.models.encoders import downsampling_factor, fingerprint
from sdscratch.prepare.encode.ahead import map_ahead
from sdscratch.prepare.encode.encoder import DTYPES, Encoder, Quality, check_device, load_encoder
from sdscratch.prepare.encode.source import Source
from sdscratch.prepare.engine import Engine, check_engine, map_shards

CHECKED = 8  # pictures
WORTH_COMPILING = 20_000  # pictures: a minute or two at the rates that a GPU should have, which are not measured yet


class Encoded(NamedTuple):
    """What became of a shard. samples: of the source, those included that were dropped."""

    samples: int
    quality: Quality | None


class Picture(NamedTuple):
    """A sample of the source, decoded. pixels: (3, resolution, resolution) in [-1, 1]."""

    number: int
    members: Members
    pixels: Tensor


@dataclass(frozen=True)
class Encoding:
    """What is encoded, by what, and how: plain values, which travel to other processes.

    source, out: folders of shards. vae, text: folders or hub ids; without a text encoder captions are encoded in training.
    resolution: pixels of the square that is cut from each picture's centre. flips: encode the mirrored pictures too.
    on_bad: a picture that cannot be decoded stops everything ("fail"), or is left out and named ("quarantine").
    batch_size: pictures at once. threads: that read and decode. device, dtype: where and in what the VAE computes. compile: the
    VAE; auto: on CUDA, where there are so many pictures that it pays.
    """

    source: Path
    out: Path
    vae: str
    resolution: int
    text: str | None = None
    flips: bool = False
    on_bad: Literal["fail", "quarantine"] = "fail"
    batch_size: int = 16
    threads: int = 2
    device: str = "cpu"
    dtype: str = "float32"
    compile: Literal["auto", "yes", "no"] = "auto"

    def __post_init__(self) -> None:
        check_choice("on_bad", self.on_bad, ("fail", "quarantine"))
        check_choice("dtype", self.dtype, tuple(DTYPES))
        check_choice("compile", self.compile, ("auto", "yes", "no"))
        check_whole("batch_size", self.batch_size)
        check_whole("threads", self.threads)

    def run(
        self,
        engine: Engine = "local",
        workers: int = 0,
        progress: Callable[[int, int], None] = lambda done, total: None,
    ) -> tuple[Manifest, Quality | None]:
        """Encode the shards that `out` does not hold yet. progress: called with the samples done and all.

        The quality is that of the first pictures encoded now, None where nothing was left to do. Raises DataError when `out`
        holds something else, and naming what it is about: for pictures that cannot be decoded, source shards that are
        damaged, latents that are not finite.
        """
        check_engine(engine, workers)
        check_device(self.device, is_here=engine == "local")
        load_encoder.cache_clear()  # the folders may hold other networks by now
        encoder = load_encoder(self.vae, self.text, "cpu", self.dtype)
        check_resolution(self.resolution, downsampling_factor(encoder.vae))
        source = Source(self.source)
        target = ShardFolder(self.out, self._made_by(encoder, source.index))
        if (manifest := target.claim()) is not None:
            return manifest, None

        missing = [name for name in source.samples if not target.has(name)]
        encode = partial(self._encode_shard, target, source.index.fingerprint, missing[:1])
        done, quality = len(source.index) - sum(len(source.samples[name]) for name in missing), None
        for encoded in map_shards(encode, missing, engine, workers, gpus=self.device == "cuda"):
            done, quality = done + encoded.samples, encoded.quality or quality
            progress(done, len(source.index))
        return target.finish([*source.samples]), quality

    def _made_by(self, encoder: Encoder, source: ShardIndex) -> dict[str, object]:
        """All that determines the latents. When any shard of the source is another one, this is another encoding."""
        return {
            "by": "encode",
            "vae": fingerprint(encoder.vae),
            "text": encoder.text and encoder.text.fingerprint,
            "resolution": self.resolution,
            "crop": "centre",
            "flips": self.flips,
            "dtype": self.dtype,
            "source": source.made_by,
            "source_fingerprint": source.fingerprint,
        }

    def _encode_shard(self, target: ShardFolder, fingerprint: str, checked: list[str], name: str) -> Encoded:
        """Write the shard of that name. fingerprint: of the source. checked: shards of which the quality is measured."""
        source = Source.as_it_was(self.source, fingerprint)
        compile_for = self.batch_size if self._compiles(len(source.index)) else 0
        encoder = load_encoder(self.vae, self.text, self.device, self.dtype, compile_for)
        source.check(name)
        samples = source.samples[name]
        quality = self._quality(encoder, source.index, samples[:CHECKED]) if name in checked else None
        target.write(name, self._encode(encoder, source.index, samples))
        return Encoded(len(samples), quality)

    def _compiles(self, pictures: int) -> bool:
        """By all pictures of the source, so that a job that goes on does as it did."""
        if self.compile == "auto":
            return self.device.startswith("cuda") and pictures >= WORTH_COMPILING
        return self.compile == "yes"

    def _encode(self, encoder: Encoder, source: ShardIndex, samples: range) -> Iterator[Sample | Dropped]:
        read = map_ahead(partial(self._read, source), samples, self.threads, ahead=2 * self.batch_size)
        while batch := list(islice(read, self.batch_size)):
            yield from (sample for sample in batch if isinstance(sample, Dropped))
            pictures = [sample for sample in batch if isinstance(sample, Picture)]
            if not pictures:
                continue
            moments = encoder.moments(torch.stack([picture.pixels for picture in pictures]), self.flips)
            states = encoder.states([captions_of(picture.members, record_of(picture.members)) for picture in pictures])
            for picture, latents, of_captions in zip(pictures, moments, states, strict=True):
                kept = {suffix: picture.members[suffix] for suffix in ("txt", "json") if suffix in picture.members}
                packed = {"latent.npy": self._pack(source, picture, latents)}
                yield source.key(picture.number), packed | of_captions | kept

    def _read(self, source: ShardIndex, number: int) -> Picture | Dropped:
        members = source.read(number)
        try:
            return Picture(number, members, preprocess(image_member(members), self.resolution))
        except DataError as error:
            if self.on_bad == "quarantine":
                return Dropped(source.key(number), "not decodable", str(error))
            raise DataError(
                f"{source.where(number)} is a bad sample: {error}. Mend it, or set on_bad=quarantine to leave such out."
            ) from error

    def _pack(self, source: ShardIndex, picture: Picture, moments: Tensor) -> bytes:
        try:
            return pack(moments.numpy())
        except DataError as error:
            where = source.where(picture.number)
            raise DataError(f"{where} is not encoded by this VAE in {self.dtype}: {error}") from error

    def _quality(self, encoder: Encoder, source: ShardIndex, samples: range) -> Quality | None:
        read = [self._read(source, number) for number in samples]
        pixels = [picture.pixels for picture in read if isinstance(picture, Picture)]
        return encoder.quality(torch.stack(pixels)) if pixels else None
