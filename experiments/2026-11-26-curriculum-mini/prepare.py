"""Image shards for the sources of the seven phases, from the data pack; drawn scenes where there is no pack.

Each source is as near to its phase's kind as the pack has it, and no picture is in two of them:
    laion_broad     captioned photographs, squashed to squares by whoever published them
    laion_refined   captioned photographs in their true aspect
    synthetic       drawn scenes: the embedded data set
    faces           photographs of which two captions name a face, hair, glasses, a smile, a hat, a beard
    bodies          photographs of which three captions see somebody run, jump, stand, walk, play
"""

import json
import re
from collections.abc import Iterator
from pathlib import Path

from sdscratch.data import ShardIndex, write_shards
from sdscratch.data.captions import captions_of, record_of
from sdscratch.data.shapes import samples as drawn

PERSON = re.compile(
    r"\b(man|men|woman|women|boys?|girls?|child|children|people|person|kids?|baby|lady|guy|players?)\b", re.I
)
FACE = re.compile(r"\b(faces?|smil\w+|(sun)?glasses|hat|beard|hair|close-?up|portrait)\b", re.I)
BODY = re.compile(r"\b(jump\w*|run\w*|danc\w*|climb\w*|walk\w*|stand\w*|skateboard\w*|players?)\b", re.I)
SEEDS = {"laion_broad": 1, "laion_refined": 2, "synthetic": 0, "faces": 3, "bodies": 4}
DRAWN = {"laion_broad": 3000, "laion_refined": 900, "synthetic": 1000, "faces": 400, "bodies": 900}


def prepare(pack: Path, out: Path) -> str:
    """Write out/NAME for each source, unless it is there. Returns "photographs", or "drawn scenes" without a pack."""
    photographs = pack / "captions-real"
    index = ShardIndex.open(photographs, str(out / "index")) if photographs.is_dir() else None
    for name, seed in SEEDS.items():
        if (out / name / "manifest.json").exists():
            continue
        real = index is not None and name != "synthetic"
        source = _photographs(index, name) if real else drawn("train", DRAWN[name], 32, seed)
        write_shards(out / name, source, made_by={"by": "curriculum-mini", "source": name})
    return "photographs" if index is not None else "drawn scenes"


def _photographs(index: ShardIndex, wanted: str) -> Iterator[tuple[str, dict[str, bytes]]]:
    for n in range(len(index)):
        members = index.read(n)
        record = record_of(members)
        captions = [caption for caption in captions_of(members, record) if len(caption.split()) >= 3]
        if captions and _kind(captions, str(record["aspect"])) == wanted:
            yield index.key(n), {"jpg": members["jpg"], "json": json.dumps({**record, "captions": captions}).encode()}


def _kind(captions: list[str], aspect: str) -> str:
    def seen(words: re.Pattern[str]) -> int:
        return sum(bool(words.search(caption)) for caption in captions)

    if seen(PERSON) >= 3 and seen(FACE) >= 2:
        return "faces"
    if seen(PERSON) >= 3 and seen(BODY) >= 3:
        return "bodies"
    return "laion_refined" if aspect == "native" else "laion_broad"
