"""The reading path of a training without its model: one epoch, or the first batch of a run that is resumed.

python benchmarks/lasting/reading.py epoch FOLDER
python benchmarks/lasting/reading.py resume FOLDER
"""

import json
import sys
import time
from pathlib import Path

sys.path.insert(0, str(Path(__file__).resolve().parents[2]))

from torch.utils.data import DataLoader

from geomae.data.collate import PhotoCollator
from geomae.data.layout import list_shards
from geomae.data.stream import PhotoStream, StreamPlace

BATCH_SIZE = 256


def main(what: str, folder: str) -> None:
    """Read; print how much and in which time."""
    started = time.perf_counter()
    collator = PhotoCollator(16, augment=True)
    stream = PhotoStream(list_shards(folder, "train"), seed=0, batch_size=BATCH_SIZE, prepare=collator.prepare)
    loader = DataLoader(stream, batch_size=BATCH_SIZE, num_workers=1, collate_fn=collator)
    if what == "resume":
        half = stream.num_photos // 2
        stream.place = StreamPlace(num_batches=half // BATCH_SIZE, positions=(half,))
        ids = list(next(iter(loader))["ids"])
        result = {"num_photos": len(ids), "seconds_to_first_batch": time.perf_counter() - started}
    else:
        seen: set[str] = set()
        for _, batch in zip(range(stream.num_photos // BATCH_SIZE), loader, strict=False):
            seen.update(batch["ids"])
        result = {"num_photos": len(seen), "seconds": time.perf_counter() - started}
    print(json.dumps(result))


if __name__ == "__main__":
    main(*sys.argv[1:])
