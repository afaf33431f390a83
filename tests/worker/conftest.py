"""The demo checkpoint, loaded once by us and once by transformers, and the example photographs."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from functools import partial
from pathlib import Path
from typing import Any

import pytest
import redis
import torch

from maskfleet.jobs.ledger.jobs import Ledger
from maskfleet.jobs.ledger.workers import WorkerRegistry
from maskfleet.jobs.messages import Bells, Publisher
from maskfleet.jobs.schema.spec import BoxJob, EverythingJob, ImageSource, PointJob
from maskfleet.jobs.settings import WorkerSettings
from maskfleet.jobs.storage import Store
from maskfleet.worker.attempt import Workbench
from maskfleet.worker.egress import egress_session
from maskfleet.worker.embeddings.cache import EmbeddingCache
from maskfleet.worker.embeddings.known_images import KnownImages
from maskfleet.worker.embeddings.later import LaterWrites
from maskfleet.worker.image.decode import Photo, decode_photo
from maskfleet.worker.image.sandbox import Sandbox
from maskfleet.worker.sam.model import SegmentationModel, load_model
from maskfleet.worker.segment_step import segment_and_format
from tests.conftest import PHOTOS_BUCKET

SOMEWHERE = ImageSource(s3_uri="s3://photos/any.jpg")
MAX_PIXELS = 100_000_000


def everything(**params: Any) -> EverythingJob:
    return EverythingJob(mode="everything", image=SOMEWHERE, params=params)


def points(*prompts: dict[str, Any], outputs: tuple[str, ...] = ("coco",), **params: Any) -> PointJob:
    return PointJob(mode="point", image=SOMEWHERE, prompts=prompts, params=params, outputs=outputs)


def boxes(*prompts: dict[str, Any], outputs: tuple[str, ...] = ("coco",), **params: Any) -> BoxJob:
    return BoxJob(mode="box", image=SOMEWHERE, prompts=prompts, params=params, outputs=outputs)


@pytest.fixture(scope="session", autouse=True)
def _two_threads() -> None:
    """Always compute with two threads: the rounding of a sum depends on how many threads share it."""
    torch.set_num_threads(2)


@pytest.fixture(scope="session")
def model(demo_model: str) -> SegmentationModel:
    return load_model(demo_model, "cpu")


@pytest.fixture(scope="session")
def library_pipeline(demo_model: str) -> Any:
    from transformers import pipeline

    return pipeline("mask-generation", model=demo_model)


@pytest.fixture(scope="session")
def example(repository: Path) -> Callable[[str], Photo]:
    """Return a photograph from examples/, by file name."""

    def decoded(name: str) -> Photo:
        return decode_photo((repository / "examples" / name).read_bytes(), MAX_PIXELS)

    return decoded


@pytest.fixture
def worker_settings(shared_fields: dict[str, str], demo_model: str) -> WorkerSettings:
    """Settings of a worker with fast heartbeats that may use local addresses."""
    return WorkerSettings(
        **shared_fields,
        model=demo_model,
        node="node-1",
        beat_s=0.05,
        allowed_buckets=(PHOTOS_BUCKET,),
        egress_allow_private=True,
        max_image_bytes=2 * 2**20,
        max_image_pixels=1_000_000,
    )


@pytest.fixture(scope="session")
def coins(repository: Path) -> bytes:
    """A photo."""
    return (repository / "examples" / "coins.png").read_bytes()


@pytest.fixture(scope="session")
def sandbox() -> Iterator[Sandbox]:
    """A process that decodes images."""
    sandbox = Sandbox()
    yield sandbox
    sandbox.close()


@pytest.fixture
def bench(
    ledger: Ledger,
    worker_registry: WorkerRegistry,
    store: Store,
    sandbox: Sandbox,
    model: SegmentationModel,
    worker_settings: WorkerSettings,
    redis_client: redis.Redis,
) -> Workbench:
    """What a worker process holds."""
    segment = partial(segment_and_format, model, embeddings=EmbeddingCache(model, store, 64 * 2**20))
    bells = Bells(redis_client, Publisher(worker_settings))
    egress = egress_session(allow_private=True)
    known = KnownImages(store)
    later = LaterWrites()
    return Workbench(ledger, worker_registry, bells, store, egress, sandbox, segment, worker_settings, known, later)
