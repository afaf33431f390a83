"""A user's program, for ``mypy --strict`` alone: with it ``make lint`` checks the client's types."""

from __future__ import annotations

import io
from pathlib import Path
from typing import Any, assert_type

import numpy as np
import numpy.typing as npt
from PIL import Image

from maskfleet import AsyncClient, AsyncJob, BatchView, Client, Job, JobFields, Manifest, Mask, Masks, Photo, Prompt


def use(client: Client, pixels: npt.NDArray[np.uint8]) -> None:
    photos: list[Photo] = ["bee.jpg", Path("bee.jpg"), b"", pixels, Image.open("bee.jpg"), io.BytesIO()]
    fields: JobFields = {"mode": "box", "prompts": [Prompt(box=(1, 2, 3, 4))], "params": {"multimask": True}}
    for photo in photos:
        masks = client.segment(photo, **fields)
        assert_type(masks, Masks)
        assert_type(masks[0], Mask)
        assert_type(masks[:2], Masks)
        assert_type(masks[0].array(), npt.NDArray[np.bool_])
        assert_type(masks.scores, npt.NDArray[np.float64])
        assert_type(masks.to_geojson(), dict[str, Any])
    job = client.submit(photo=pixels, mode="point", prompts=[{"points": [[1, 2]]}])
    assert_type(job, Job)
    assert_type(job.wait(on_progress=lambda job: job.cancel_requested), Job)
    assert_type(job.overlay(), Image.Image)
    assert_type(job.fetch("masks"), Manifest)
    assert_type(client.wait_batch(client.submit_batch(photos, mode="everything").id), BatchView)
    assert_type(client.fetch_batch("batch_1", "masks"), tuple[Job, ...])
    client.segment(7)  # type: ignore[arg-type]  # no photo: this line is an error if the types allow it
    client.segment("bee.jpg", modus="box")  # type: ignore[call-arg]  # no such field


async def use_later(client: AsyncClient) -> None:
    async with client:
        assert_type(await client.segment("bee.jpg", points=[(1, 2)], labels=[1]), Masks)
        job = await client.submit(photo="bee.jpg", mode="everything")
        assert_type(job, AsyncJob)
        assert_type(await job.masks(), Masks)
        async for change in client.watch(job.id):
            assert_type(change, AsyncJob)
        assert_type([job.id async for job in client.jobs()], list[str])
