"""What is to be kept in mind of ``coco.json`` where several become one."""

from __future__ import annotations

from collections.abc import Mapping


def renumbered(annotation: Mapping[str, object], before: int, number: int, image_id: int) -> dict[str, object]:
    """Return an annotation of one image for a dataset of many.

    before: how many annotations precede its image's.  number: its id there.  Its ``parent_id`` moves along.
    """
    moved: dict[str, object] = {**annotation, "id": number, "image_id": image_id}
    if isinstance(parent := annotation.get("parent_id"), int):
        moved["parent_id"] = before + parent
    return moved
