"""Shards that are damaged after they were written, and pictures and captions of any bytes."""

from __future__ import annotations

import json
import random
import resource
import shutil
from pathlib import Path

import numpy as np
from harness import LONG
from PIL import Image
from tiny_shards import encode, image_samples, latent_samples

from sdscratch.data import ImageCollate, ShardDataset, ShardIndex, write_shards
from sdscratch.data.captions import MAX_CHARACTERS
from sdscratch.data.manifest import Manifest
from sdscratch.data.order import SequentialOrder
from sdscratch.models.tokenizer import train_tokenizer
from sdscratch.prepare.verify import verify

MUTATIONS = 2000 if LONG else 60
FUZZED = 20_000 if LONG else 800
BATCH = 16
MEGABYTES = 150  # that memory may grow by, after the first 500


def test_no_damage_of_a_shard_goes_unseen(tmp_path):
    """Cuts, flipped bits, changed blocks, swapped, longer and missing shards: each is named, and nothing is lost in silence."""
    write_shards(tmp_path / "images", image_samples(23), {}, shard_size=7)
    write_shards(tmp_path / "latents", latent_samples(23), {"vae": "abc"}, shard_size=7)
    rng = random.Random(0)
    for number in range(MUTATIONS):
        folder = shutil.copytree(tmp_path / ("images", "latents")[number % 2], tmp_path / "mutated")
        name = rng.choice([shard.name for shard in Manifest.read(folder).shards])
        kind = damage(folder / name, rng)
        problems = verify(folder).problems
        assert any(problem.shard == name for problem in problems), f"mutation {number}, {kind}, of {name} is not seen"
        shutil.rmtree(folder)
    print(f"{MUTATIONS} mutations, 0 unseen")


def damage(path: Path, rng: random.Random) -> str:
    data = bytearray(path.read_bytes())
    place, kind = rng.randrange(len(data)), rng.choice(["cut", "flip", "block", "longer", "missing", "other"])
    if kind == "missing":
        path.unlink()
        return kind
    if kind == "cut":
        del data[place:]
    elif kind == "flip":
        data[place] ^= 1 << rng.randrange(8)
    elif kind == "block":
        data[place : place + 512] = bytes(byte ^ 0xFF for byte in data[place : place + 512])
    elif kind == "longer":
        data += bytes(512)
    else:
        data = bytearray(rng.choice([shard for shard in path.parent.glob("*.tar") if shard != path]).read_bytes())
    path.write_bytes(data)
    return kind


def fuzzed(number: int, pictures: list[bytes], rng: random.Random) -> dict[str, bytes]:
    """A picture with up to 20 wrong bytes, a cut, or none at all, and a caption of any bytes."""
    picture = bytearray(rng.choice(pictures))
    for _ in range(rng.choice([0, 0, 0, 0, 0, 1, 20])):
        picture[rng.randrange(len(picture))] = rng.randrange(256)
    if rng.random() < 0.15:
        del picture[rng.randrange(len(picture)) :]
    emoji = "\U0001f469\u200d\U0001f680 é".encode()
    text = rng.choice([rng.randbytes(rng.randrange(1, 200)), "\ufeffthree".encode("utf-16"), emoji, emoji, b"\0 nine"])
    if number % 97 == 0:
        text = b"word " * 200_000
    record = {"captions": rng.choice([None, 7, [], [text.decode("latin-1")], {"a": 1}, ["\ud800 half", 3]])}
    suffix = rng.choice(["jpg", "png", "webp"])  # whatever is in it
    members = {suffix: bytes(picture), "txt": text, "json": json.dumps(record).encode()}
    if rng.random() < 0.05:
        members["json"] = rng.randbytes(60)
    return members


def test_pictures_and_captions_of_any_bytes_are_used_or_named_and_memory_stays(tmp_path):
    rng = random.Random(0)
    whole = [Image.fromarray(np.random.default_rng(n).integers(0, 256, (24, 30, 3), dtype=np.uint8)) for n in range(4)]
    pictures = [encode(image, form) for image in whole for form in ("PNG", "JPEG", "WEBP", "JPEG")]
    pictures += [encode(whole[0], "GIF")]
    pictures += [encode(image.convert(mode), "PNG") for image in whole for mode in ("L", "P", "RGBA", "I;16", "1")]
    write_shards(tmp_path, ((f"{n:06d}", fuzzed(n, pictures, rng)) for n in range(FUZZED)), {})

    index = ShardIndex.open(tmp_path)
    dataset = ShardDataset(index, SequentialOrder(len(index)), seed=0, resolution=16, on_bad="quarantine")
    tokenizer = train_tokenizer(["a picture of a word"], 600)
    replaced, start = 0, 0
    for first in range(0, FUZZED, BATCH):
        batch = ImageCollate()([dataset[position] for position in range(first, min(first + BATCH, FUZZED))])
        assert batch["images"].shape[1:] == (3, 16, 16) and len(batch["captions"]) == len(batch["images"])
        assert batch["images"].isfinite().all() and batch["images"].abs().max() <= 1
        assert all(0 < len(caption) <= MAX_CHARACTERS for caption in batch["captions"])
        tokens = tokenizer(batch["captions"], padding="max_length", truncation=True, return_tensors="pt")["input_ids"]
        assert tokens.shape == (len(batch["captions"]), 77) and tokens.max() < len(tokenizer)
        replaced += len(batch["quarantined"])
        if first <= 500:
            start = memory()
    assert 0.2 * FUZZED < replaced < FUZZED, "the fuzzing spoils too little, or nearly everything"
    assert memory() - start < MEGABYTES
    print(f"{FUZZED} samples, {replaced} replaced, memory grew by {memory() - start:.0f} MB")


def memory() -> float:
    """Megabytes, the most so far."""
    return resource.getrusage(resource.RUSAGE_SELF).ru_maxrss / 1024
