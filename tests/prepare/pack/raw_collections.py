"""Small collections in the layouts that the real ones are published in."""

from __future__ import annotations

import io
import json
import tarfile
import zipfile
from collections.abc import Mapping
from pathlib import Path

import numpy as np
import pyarrow as pa
import pyarrow.parquet
from PIL import Image

from sdscratch.data.index import ShardIndex


def picture(number: int = 0, size: tuple[int, int] = (40, 30), format: str = "JPEG", **options: object) -> bytes:
    """A picture of four grey-free quarters, so that JPEG keeps it recognisable: no two numbers give the same bytes."""
    colours = np.random.default_rng(number).integers(0, 256, (2, 2, 3), dtype=np.uint8)
    image = Image.fromarray(colours).resize(size, Image.Resampling.NEAREST)
    file = io.BytesIO()
    image.save(file, format, **options)
    return file.getvalue()


def write_files(folder: Path, files: Mapping[str, bytes | str]) -> Path:
    for name, content in files.items():
        path = folder / name
        path.parent.mkdir(parents=True, exist_ok=True)
        path.write_bytes(content.encode() if isinstance(content, str) else content)
    return folder


def zipped(files: Mapping[str, bytes]) -> bytes:
    file = io.BytesIO()
    with zipfile.ZipFile(file, "w") as archive:
        for name, content in files.items():
            archive.writestr(name, content)
    return file.getvalue()


def tarred(files: Mapping[str, bytes], mode: str = "w:gz") -> bytes:
    file = io.BytesIO()
    with tarfile.open(fileobj=file, mode=mode) as archive:  # type: ignore[call-overload]
        for name, content in files.items():
            member = tarfile.TarInfo(name)
            member.size = len(content)
            archive.addfile(member, io.BytesIO(content))
    return file.getvalue()


def diffusiondb(folder: Path, parts: int = 2, pictures: int = 5) -> Path:
    rows = []
    for part in range(1, parts + 1):
        files, own = {}, {}
        for n in range(pictures):
            name = f"{part:08d}-{n:04d}-4000-8000-000000000000.png"
            files[name] = picture(100 * part + n, format="PNG")
            own[name] = {"p": f"prompt {part} {n}", "se": n, "c": 7.0, "st": 50, "sa": "k_lms"}
            scores = {"image_nsfw": 0.25, "prompt_nsfw": 2.0 if n == 0 else 0.125}
            asked = {"user_name": "0167cc49", "timestamp": "2022-08-20 11:56:00+00:00"}
            made = {"part_id": part, "seed": n, "step": 50, "cfg": 7.0, "sampler": 8, "width": 40, "height": 30}
            rows.append({"image_name": name, "prompt": f"prompt {part} {n}", **made, **asked, **scores})
        files[f"part-{part:06d}.json"] = json.dumps(own).encode()
        write_files(folder, {f"images/part-{part:06d}.zip": zipped(files)})
    pyarrow.parquet.write_table(pa.Table.from_pylist(rows), folder / "metadata.parquet")
    return folder


def journeydb(folder: Path, archives: int = 2, pictures: int = 5) -> Path:
    lines = []
    for number in range(archives):
        names = [f"./{number:03d}/{number}{n:07d}-aaaa-4000-8000-000000000000.jpg" for n in range(pictures)]
        content = {name: picture(100 * number + n) for n, name in enumerate(names)}
        write_files(folder, {f"imgs/{number:03d}.tgz": tarred(content)})
        for n, name in enumerate(names):
            lines.append(
                {"img_path": name, "prompt": f"prompt {number} {n} --v 5", "Task2": {"Caption": f"caption {n}"}}
            )
    text = "".join(json.dumps(line) + "\n" for line in lines).encode()
    return write_files(folder, {"train_anno_realease_repath.jsonl.tgz": tarred({"train_anno_repath.jsonl": text})})


IDENTITIES = '''\
Class_ID, Name, Sample_Num, Flag, Gender
n000002," ""A_Fine_Frenzy""",3,1, f
n000003, "A, the "second", 205, 1, m
n000659," ""Anne""",0, f,
'''


def vggface2(folder: Path) -> Path:
    names = [f"n{person:06d}/{n:04d}_01" for person in (2, 3, 659) for n in range(4)]
    files: dict[str, bytes | str] = {f"train/{name}.jpg": picture(n, size=(100, 120)) for n, name in enumerate(names)}
    files["meta/identity_meta.csv"] = IDENTITIES
    files["bb_landmark/loose_bb_train.csv"] = "NAME_ID,X,Y,W,H\n" + "".join(
        f'"{name}",30,40,20,30\n' for name in names[:-1]
    )
    files["attributes/09-Eyeglasses.txt"] = f"{names[0]}.jpg\t1\n{names[1]}.jpg\t0\n"
    files["attributes/06-Long_Hair.txt"] = f"{names[0]}.jpg\t1\n{names[1]}.jpg\t1\n"
    return write_files(folder, files)


def coco(folder: Path) -> Path:
    sizes = {1: (100, 80), 2: (60, 100), 3: (80, 80)}
    people = [  # id, picture, category, box, crowd
        (11, 1, 1, [10.0, 10.0, 20.0, 60.0], 0),  # 75 % of the height
        (12, 1, 1, [50.0, 10.0, 20.0, 43.0], 0),  # 54 %
        (13, 1, 18, [10.0, 0.0, 20.0, 80.0], 0),  # a dog
        (21, 2, 1, [0.0, 0.0, 60.0, 100.0], 1),  # a crowd
        (22, 2, 1, [20.0, 0.0, 30.0, 100.0], 0),
    ]
    pictures = [
        {"id": n, "file_name": f"{n:012d}.jpg", "width": w, "height": h, "license": n, "coco_url": f"http://coco/{n}"}
        for n, (w, h) in sizes.items()
    ]
    said = [{"id": 10 * n + k, "image_id": n, "caption": f"picture {n}, wording {k}"} for n in (1, 2) for k in range(5)]
    boxes = [
        {"id": id, "image_id": image, "category_id": category, "bbox": box, "iscrowd": crowd}
        for id, image, category, box, crowd in people
    ]
    licences = [{"id": 1, "name": "Attribution License"}, {"id": 2, "name": "Attribution-NonCommercial License"}]
    categories = [{"id": 1, "name": "person"}, {"id": 18, "name": "dog"}]
    captions = {"images": pictures, "annotations": said[::-1], "licenses": licences}
    instances = {"images": pictures, "annotations": boxes, "categories": categories}
    files: dict[str, bytes | str] = {f"train2017/{n:012d}.jpg": picture(n, size) for n, size in sizes.items()}
    files["annotations/captions_train2017.json"] = json.dumps(captions)
    files["annotations/instances_train2017.json"] = json.dumps(instances)
    return write_files(folder, files)


def samples(folder: Path) -> dict[str, dict[str, bytes]]:
    """All of a folder of shards."""
    index = ShardIndex.open(folder)
    return {index.key(n): index.read(n) for n in range(len(index))}


def records(folder: Path) -> dict[str, dict]:
    return {key: json.loads(members["json"]) for key, members in samples(folder).items()}


def shards(folder: Path) -> dict[str, bytes]:
    """What may not differ between two jobs: everything but the index of byte offsets."""
    return {path.name: path.read_bytes() for path in folder.iterdir() if path.suffix != ".npy"}
