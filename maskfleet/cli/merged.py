"""One COCO dataset of many: what ``coco.json`` of each photograph holds, under ids of its own."""

from __future__ import annotations

import json
from collections.abc import Iterable
from pathlib import Path

from maskfleet.jobs.schema.coco import renumbered

#: As in each photograph's own file; see worker/output/formats.py.
CATEGORY = {"id": 1, "name": "object", "supercategory": ""}
_ABOUT = {"description": "Masks by Segment Anything, made with maskfleet"}


def merge_coco(out: Path, photos: Iterable[tuple[str, Path]]) -> tuple[int, int]:
    """Write ``coco.json`` from those of the photos; return the numbers of images and of annotations.

    photos: the file name of each in the dataset, and the folder that its own ``coco.json`` is in; one at a time is held
    in memory.  Images and annotations are numbered from 1, in the order of the photos.
    """
    part = out / "coco.json.part"
    images: list[dict[str, object]] = []
    annotations = 0
    with part.open("w", encoding="utf-8") as file:
        file.write(f'{{"info": {json.dumps(_ABOUT)},\n"licenses": [],\n"categories": [{json.dumps(CATEGORY)}],\n')
        file.write('"annotations": [')
        for name, folder in photos:
            dataset = json.loads((folder / "coco.json").read_bytes())
            images.append({**dataset["images"][0], "id": len(images) + 1, "file_name": name})
            before = annotations
            for annotation in dataset["annotations"]:
                file.write(",\n" if annotations else "\n")
                annotations += 1
                file.write(json.dumps(renumbered(annotation, before, annotations, len(images))))
        listed = ",\n".join(map(json.dumps, images))
        file.write(f'\n],\n"images": [\n{listed}\n]}}\n')
    part.replace(out / "coco.json")
    return len(images), annotations
