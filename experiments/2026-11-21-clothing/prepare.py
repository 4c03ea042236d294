"""Give the pack's clothing photographs several caption wordings: tars of one template -> shards with four.

python experiments/2026-11-21-clothing/prepare.py ../shared/data/labelled-real data/clothing
"""

import json
import sys
from collections.abc import Iterator
from pathlib import Path

from sdscratch.data import ShardIndex, write_shards
from sdscratch.data.captions import record_of

TEMPLATES = ("a photo of {}", "{}", "a photograph showing {}", "clothing: {}")


def samples(index: ShardIndex) -> Iterator[tuple[str, dict[str, bytes]]]:
    for n in range(len(index)):
        members = index.read(n)
        record = record_of(members)
        thing = str(record["caption"]).removeprefix("a photo of ")
        captions = [template.format(thing) for template in TEMPLATES]
        yield index.key(n), {"jpg": members["jpg"], "json": json.dumps({**record, "captions": captions}).encode()}


source, out = map(Path, sys.argv[1:])
index = ShardIndex.open(source)
manifest = write_shards(out, samples(index), made_by={"by": "clothing", "source": index.fingerprint})
print(f"{out}: {manifest.total} photographs")
