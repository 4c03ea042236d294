"""Shards of the pack's captioned photographs without the captions that say nothing (a few are of one or two words).

python experiments/2026-11-26-photographs/prepare.py ../shared/data/captions-real data/photographs
"""

import json
import sys
from collections.abc import Iterator
from pathlib import Path

from sdscratch.data import ShardIndex, write_shards
from sdscratch.data.captions import captions_of, record_of


def samples(index: ShardIndex) -> Iterator[tuple[str, dict[str, bytes]]]:
    for n in range(len(index)):
        members = index.read(n)
        record = record_of(members)
        captions = [caption for caption in captions_of(members, record) if len(caption.split()) >= 3]
        if captions:
            yield index.key(n), {"jpg": members["jpg"], "json": json.dumps({**record, "captions": captions}).encode()}


source, out = map(Path, sys.argv[1:])
index = ShardIndex.open(source, f"{out}.index")
manifest = write_shards(out, samples(index), made_by={"by": "photographs", "source": index.fingerprint})
print(f"{out}: {manifest.total} photographs")
