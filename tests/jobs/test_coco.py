"""Annotations of many images become one dataset, and still name their own parents."""

from __future__ import annotations

import pytest

from maskfleet.jobs.schema.coco import renumbered


@pytest.mark.parametrize(("parent", "moved"), [(None, None), (1, 8), (2, 9)])
def test_an_annotation_and_its_parent_move_together(parent: int | None, moved: int | None) -> None:
    annotation: dict[str, object] = {"id": 3, "image_id": 1, "area": 5, "parent_id": parent}

    assert renumbered(annotation, before=7, number=10, image_id=2) == {
        "id": 10,
        "image_id": 2,
        "area": 5,
        "parent_id": moved,
    }


def test_an_annotation_of_an_earlier_version_has_no_parent() -> None:
    assert renumbered({"id": 1, "image_id": 1}, before=7, number=8, image_id=2) == {"id": 8, "image_id": 2}
