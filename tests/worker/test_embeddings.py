"""Embeddings that are kept: masks from one are those without it, and what is no embedding is computed again."""

from __future__ import annotations

import json
import pickle
import struct
import uuid
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from safetensors.torch import save
from torch import Tensor

from maskfleet.jobs.schema.record import EmbeddingOrigin, Spec
from maskfleet.jobs.storage import Store, embedding_key
from maskfleet.worker.embeddings.cache import EmbeddingCache, ImageEmbedding
from maskfleet.worker.embeddings.file import FileKind, NotAnEmbedding, read_file, write_file
from maskfleet.worker.embeddings.memory import EmbeddingMemory, Kept
from maskfleet.worker.embeddings.revision import embedding_revision
from maskfleet.worker.image.decode import Photo, decode_photo
from maskfleet.worker.sam.families.sam import Sam
from maskfleet.worker.sam.model import SegmentationModel, load_model
from maskfleet.worker.sam.prompts import MaskInputs
from maskfleet.worker.segment import NO_MASKS, embed_only, segment
from maskfleet.worker.segmentation import Segmentation
from tests.worker.checkpoints import LOW, save_tiny
from tests.worker.conftest import MAX_PIXELS, boxes, everything, points

FAMILIES = ("sam", "sam_hq", "sam2", "edgetam")
MIB = 2**20
REFINED = {"box": [90, 30, 141.5, 76], "mask_input": {"upload_id": "upl_" + "0" * 32}}


@pytest.fixture(scope="module")
def photo(repository: Path) -> Photo:
    return decode_photo((repository / "examples" / "coins.png").read_bytes(), MAX_PIXELS)


@pytest.fixture
def sha256() -> str:
    """Of an image that no test has seen."""
    return uuid.uuid4().hex * 2


def pixels_gone(photo: Photo) -> Photo:
    """Return a photo of which only the size is known."""
    return replace(photo, pixels=np.empty((0, 0, 3), np.uint8))


def written(found: Segmentation) -> list[tuple[object, ...]]:
    """Return all that is written of each mask."""
    return [
        (mask.counts, mask.predicted_iou, mask.stability_score, mask.bbox_xywh, mask.prompt, mask.candidate)
        for mask in found.masks
    ]


def logits(found: Segmentation) -> list[bytes]:
    return [mask.logits.tobytes() for mask in found.masks if mask.logits is not None]


def jobs() -> list[tuple[Spec, MaskInputs]]:
    """Jobs of every kind that goes another way through a decoder."""
    earlier = np.random.default_rng(4).normal(0, 4, (LOW, LOW)).astype(np.float32)
    asked = {"outputs": ("coco", "logits")}
    return [
        (points({"points": [[58, 53]]}, multimask=True, **asked), NO_MASKS),
        (points(*({"points": [[20 * n, 50]]} for n in range(1, 6)), **asked), NO_MASKS),
        (boxes({"box": [20, 30, 70, 78], "points": [[45, 50]]}, **asked), NO_MASKS),
        (boxes(REFINED, multimask=True, **asked), {0: earlier}),
        (everything(points_per_crop=4, pred_iou_thresh=0.0, stability_score_thresh=0.0), NO_MASKS),
    ]


@pytest.mark.parametrize("kind", FAMILIES)
def test_masks_of_a_kept_embedding_are_bit_for_bit_those_without(
    kind: str, tmp_path: Path, photo: Photo, store: Store, sha256: str
) -> None:
    model = load_model(save_tiny(kind, tmp_path), "cpu")
    one, other = (EmbeddingCache(model, store, 64 * MIB) for _ in range(2))
    first = one.of("ant", sha256, ask_store=True)
    embed_only(photo, model, known=first)
    first.write()

    for spec, mask_inputs in jobs():
        plain = segment(photo, spec, model, mask_inputs=mask_inputs)
        assert plain.masks
        assert plain.metrics.embedding is EmbeddingOrigin.COMPUTED
        for cache, origin in [
            (one, EmbeddingOrigin.MEMORY),
            (other, EmbeddingOrigin.STORE),
            (other, EmbeddingOrigin.MEMORY),
        ]:
            if origin is EmbeddingOrigin.STORE:
                cache.memory = EmbeddingMemory(64 * MIB)
            known = cache.of("ant", sha256, ask_store=True)
            found = segment(pixels_gone(photo), spec, model, mask_inputs=mask_inputs, known=known)
            assert found.metrics.embedding is origin
            assert written(found) == written(plain)
            assert logits(found) == logits(plain)


@pytest.mark.parametrize("kind", FAMILIES)
def test_a_file_keeps_every_bit_and_the_layout_in_memory(kind: str, tmp_path: Path, photo: Photo, sha256: str) -> None:
    model = load_model(save_tiny(kind, tmp_path), "cpu")
    cache = EmbeddingCache(model, None, 0)
    named = model.family.named(model.family.embed(photo.pixels))

    read = read_file(write_file(named, cache.kind, "ant", sha256), cache.kind, "ant", sha256)

    assert read.keys() == named.keys()
    for name, tensor in named.items():
        assert torch.equal(read[name], tensor)
        assert _strides(read[name]) == _strides(tensor)


def _strides(tensor: Tensor) -> list[int]:
    return [stride for stride, size in zip(tensor.stride(), tensor.shape, strict=True) if size > 1]


def test_an_encoder_in_half_precision_is_stored_in_half_as_it_loses_nothing(
    tmp_path: Path, photo: Photo, sha256: str
) -> None:
    folder = save_tiny("sam", tmp_path)
    sizes = {}
    for precision in ("float32", "bfloat16"):
        model = load_model(folder, "cpu", precision)
        kind = EmbeddingCache(model, None, 0).kind
        named = model.family.named(model.family.embed(photo.pixels))
        data = write_file(named, kind, "ant", sha256)
        sizes[precision] = len(data)
        assert torch.equal(read_file(data, kind, "ant", sha256)["image"], named["image"])

    assert sizes["bfloat16"] <= sizes["float32"]


def test_values_that_half_precision_would_round_are_stored_whole(sha256: str) -> None:
    kind = FileKind("r" * 32, {"image": (1, 2)}, torch.bfloat16)
    exact, rounded = torch.tensor([[1.0, 2.0]]), torch.tensor([[1.0, 1 / 3]])

    for tensor in (exact, rounded):
        read = read_file(write_file({"image": tensor}, kind, "ant", sha256), kind, "ant", sha256)
        assert torch.equal(read["image"], tensor)
    assert len(write_file({"image": exact}, kind, "ant", sha256)) < len(
        write_file({"image": rounded}, kind, "ant", sha256)
    )


def test_other_weights_precision_preprocessing_and_devices_are_other_revisions(tmp_path: Path) -> None:
    folder, other = save_tiny("sam", tmp_path / "one"), save_tiny("sam", tmp_path / "other", seed=1)
    same = [embedding_revision(load_model(folder, "cpu")) for _ in range(2)]
    half = embedding_revision(load_model(folder, "cpu", "bfloat16"))
    weights = embedding_revision(load_model(other, "cpu"))
    other_mean = load_model(folder, "cpu")
    other_mean.family.preprocessing = replace(other_mean.family.preprocessing, mean=(0.1, 0.2, 0.3))
    preprocessing = embedding_revision(other_mean)
    on_a_gpu = embedding_revision(replace(load_model(folder, "cpu"), device=torch.device("cuda")))

    assert len(set(same)) == 1
    assert len({same[0], half, weights, preprocessing, on_a_gpu}) == 5


def test_an_embedding_of_another_revision_is_not_found(tmp_path: Path, photo: Photo, store: Store, sha256: str) -> None:
    models = [load_model(save_tiny("sam", tmp_path / str(seed), seed=seed), "cpu") for seed in (0, 1)]
    caches = [EmbeddingCache(model, store, MIB) for model in models]
    kept = caches[0].of("ant", sha256, ask_store=True)
    embed_only(photo, models[0], known=kept)
    kept.write()

    assert caches[1].of("ant", sha256, ask_store=True).find(photo.size_wh) is None
    # Nor if somebody puts it where the other's would be.
    moved = store.read(embedding_key("ant", caches[0].kind.revision, sha256))
    store.put(embedding_key("ant", caches[1].kind.revision, sha256), moved, "application/octet-stream")
    assert caches[1].of("ant", sha256, ask_store=True).find(photo.size_wh) is None


def test_nothing_of_one_tenants_is_found_for_another(
    photo: Photo, model: SegmentationModel, store: Store, sha256: str
) -> None:
    cache = EmbeddingCache(model, store, 64 * MIB)
    kept = cache.of("ant", sha256, ask_store=True)
    embed_only(photo, model, known=kept)
    kept.write()

    assert cache.of("ant", sha256, ask_store=True).find(photo.size_wh) is not None
    assert cache.of("bee", sha256, ask_store=True).find(photo.size_wh) is None
    moved = store.read(embedding_key("ant", cache.kind.revision, sha256))
    store.put(embedding_key("bee", cache.kind.revision, sha256), moved, "application/octet-stream")
    assert cache.of("bee", sha256, ask_store=True).find(photo.size_wh) is None


@pytest.fixture
def place(photo: Photo, model: SegmentationModel, store: Store, sha256: str) -> tuple[ImageEmbedding, str, FileKind]:
    """The place of an embedding that is in the store and not in memory, its key, and what its file holds."""
    cache = EmbeddingCache(model, store, 0)
    kept = cache.of("ant", sha256, ask_store=True)
    embed_only(photo, model, known=kept)
    kept.write()
    assert kept.find(photo.size_wh) is not None
    return kept, embedding_key("ant", cache.kind.revision, sha256), cache.kind


def _headed(data: bytes, change: Callable[[dict[str, object]], object]) -> bytes:
    """Change the header of a safetensors file."""
    (length,) = struct.unpack("<Q", data[:8])
    header = json.loads(data[8 : 8 + length])
    change(header)
    text = json.dumps(header).encode()
    return struct.pack("<Q", len(text)) + text + data[8 + length :]


def _with_tensor(data: bytes, kind: FileKind, tensor: Tensor, **more: Tensor) -> bytes:
    """Return a file that is right in all but its tensors."""
    (length,) = struct.unpack("<Q", data[:8])
    return save({"image": tensor, **more}, json.loads(data[8 : 8 + length])["__metadata__"])


class Bomb:
    def __reduce__(self) -> tuple[object, tuple[str]]:
        return exec, ("raise SystemExit('unpickled')",)


DAMAGED: dict[str, Callable[[bytes, FileKind], bytes]] = {
    "empty": lambda _, __: b"",
    "half": lambda data, _: data[: len(data) // 2],
    "without its last byte": lambda data, _: data[:-1],
    "with one byte more": lambda data, _: data + b"\0",
    "a flipped bit": lambda data, _: data[:-9] + bytes([data[-9] ^ 1]) + data[-8:],
    "a page of HTML": lambda _, __: b"<html><body>Please log in.</body></html>",
    "a pickle": lambda _, __: pickle.dumps(Bomb()),
    "a header of 2**63 bytes": lambda data, _: struct.pack("<Q", 2**63) + data[8:],
    "a header as long as the file": lambda data, _: struct.pack("<Q", len(data) - 8) + data[8:],
    "a header of brackets": lambda _, __: struct.pack("<Q", 8192) + b"[" * 8192,
    "no metadata": lambda data, _: _headed(data, lambda header: header.pop("__metadata__")),
    "metadata of another type": lambda data, _: _headed(data, lambda header: header.update(__metadata__=[1])),
    "another revision": lambda data, _: _headed(data, lambda header: header["__metadata__"].update(revision="0")),  # type: ignore[attr-defined]
    "no order": lambda data, _: _headed(data, lambda header: header["__metadata__"].pop("orders")),  # type: ignore[attr-defined]
    "an order of no axes": lambda data, _: _headed(
        data,
        lambda header: header["__metadata__"].update(orders=json.dumps({"image": [0, 0, 0, 9]})),  # type: ignore[attr-defined]
    ),
    "an offset beyond the end": lambda data, _: _headed(
        data,
        lambda header: header["image"].update(data_offsets=[0, 2**40]),  # type: ignore[attr-defined]
    ),
    "a shape that overflows": lambda data, _: _headed(
        data,
        lambda header: header["image"].update(shape=[2**62, 2**62]),  # type: ignore[attr-defined]
    ),
    "other values": lambda data, kind: _with_tensor(data, kind, torch.zeros(kind.shapes["image"])),
    "another shape": lambda data, kind: _with_tensor(data, kind, torch.zeros(1, 2)),
    "another type": lambda data, kind: _with_tensor(data, kind, torch.zeros(kind.shapes["image"], dtype=torch.float64)),
    "one tensor more": lambda data, kind: _with_tensor(
        data, kind, torch.zeros(kind.shapes["image"]), more=torch.zeros(1)
    ),
}


@pytest.mark.parametrize("damage", DAMAGED)
def test_what_is_no_embedding_is_computed_again_and_replaced(
    place: tuple[ImageEmbedding, str, FileKind],
    damage: str,
    photo: Photo,
    model: SegmentationModel,
    store: Store,
    sha256: str,
) -> None:
    known, key, kind = place
    good = store.read(key)
    store.put(key, DAMAGED[damage](good, kind), "application/octet-stream")

    spec = points({"points": [[58, 53]]})
    found = segment(photo, spec, model, known=known)
    known.write()

    assert found.metrics.embedding is EmbeddingOrigin.COMPUTED
    assert written(found) == written(segment(photo, spec, model))
    stored, expected = (read_file(data, kind, "ant", sha256) for data in (store.read(key), good))
    assert torch.equal(stored["image"], expected["image"])


def test_values_that_are_not_finite_are_neither_written_nor_read(
    place: tuple[ImageEmbedding, str, FileKind], photo: Photo, model: SegmentationModel, store: Store
) -> None:
    known, key, kind = place
    before = store.read(key)
    embedding = model.family.embed(photo.pixels)
    broken = {"image": torch.full(kind.shapes["image"], torch.nan)}

    with pytest.raises(NotAnEmbedding, match="NaN"):
        write_file(broken, kind, "ant", "0" * 64)
    known.keep(replace(embedding, values=replace(embedding.values, embeddings=broken["image"])))
    known.write()

    assert store.read(key) == before


def test_an_embedding_that_goes_between_look_and_read_is_computed(
    place: tuple[ImageEmbedding, str, FileKind], photo: Photo, model: SegmentationModel, store: Store
) -> None:
    known, key, _ = place
    assert store.head(key) is not None
    store.delete([key])

    found = segment(photo, points({"points": [[58, 53]]}), model, known=known)

    assert found.metrics.embedding is EmbeddingOrigin.COMPUTED


def test_two_workers_may_write_the_same_one(photo: Photo, model: SegmentationModel, store: Store, sha256: str) -> None:
    places = [EmbeddingCache(model, store, 0).of("ant", sha256, ask_store=True) for _ in range(2)]
    for place in places:
        embed_only(photo, model, known=place)
    for place in places:
        place.write()

    for place in places:
        assert place.find(photo.size_wh) is not None


def kept(count: int, *, stored: bool = True) -> Kept:
    """Return an embedding of so many bytes."""
    return Kept({"image": torch.zeros(count, dtype=torch.uint8)}, stored)


def test_memory_holds_as_many_bytes_as_it_may_and_lets_the_least_used_go() -> None:
    memory = EmbeddingMemory(100)
    for name in "abc":
        memory.keep(("ant", name), kept(30))
    memory.find(("ant", "a"))

    memory.keep(("ant", "d"), kept(30))

    assert memory.bytes == 90
    assert [name for name in "abcd" if memory.find(("ant", name)) is None] == ["b"]


def test_an_embedding_larger_than_all_of_the_memory_is_not_kept_and_displaces_none() -> None:
    memory = EmbeddingMemory(100)
    memory.keep(("ant", "a"), kept(60))

    memory.keep(("ant", "huge"), kept(101))

    assert memory.find(("ant", "huge")) is None
    assert memory.find(("ant", "a")) is not None
    assert memory.bytes == 60


def test_one_that_is_kept_again_counts_once_and_views_count_what_they_hold() -> None:
    memory = EmbeddingMemory(1000)
    memory.keep(("ant", "a"), kept(60, stored=False))
    memory.keep(("ant", "a"), kept(40))
    base = torch.zeros(100, dtype=torch.uint8)

    memory.keep(("ant", "b"), Kept({"image": base[:1], "early": base[50:]}, stored=True))

    assert memory.bytes == 140


def test_what_is_prepared_counts_and_goes_when_another_image_is_asked_for() -> None:
    memory, base = EmbeddingMemory(1000), torch.zeros(100, dtype=torch.uint8)
    memory.keep(("ant", "a"), Kept({"image": base}, stored=True))
    memory.keep_prepared(("ant", "a"), [base[:50], (torch.zeros(200, dtype=torch.uint8),)])
    assert memory.bytes == 300
    assert memory.find(("ant", "a")).prepared is not None

    memory.find(("ant", "b"))

    assert memory.bytes == 100
    assert memory.find(("ant", "a")).prepared is None


def test_what_is_prepared_displaces_the_least_used_but_never_takes_more_than_a_quarter() -> None:
    memory = EmbeddingMemory(1000)
    for name in "abc":
        memory.keep(("ant", name), kept(300))
    memory.keep_prepared(("ant", "c"), torch.zeros(251, dtype=torch.uint8))
    assert memory.bytes == 900

    memory.keep_prepared(("ant", "c"), torch.zeros(250, dtype=torch.uint8))

    assert memory.bytes == 850
    assert memory.find(("ant", "c")).prepared is not None
    assert memory.find(("ant", "a")) is None


def test_what_is_prepared_of_an_image_that_is_gone_or_no_longer_the_latest_is_not_kept() -> None:
    memory = EmbeddingMemory(1000)
    memory.keep(("ant", "a"), kept(10))
    memory.keep(("ant", "b"), kept(10))

    memory.keep_prepared(("ant", "a"), torch.zeros(10))
    memory.keep_prepared(("ant", "c"), torch.zeros(10))

    assert memory.bytes == 20


class Counting(Sam):
    """A family that counts how often an image is prepared for its decoder."""

    times = 0

    def prepared(self, embeddings: Any) -> Any:
        self.times += 1
        return super().prepared(embeddings)


def test_an_image_is_prepared_once_for_all_clicks_until_another_is_asked_for(photo: Photo, tmp_path: Path) -> None:
    tiny = load_model(save_tiny("sam", tmp_path), "cpu").family
    family = Counting(tiny.network, tiny.preprocessing)
    cache = EmbeddingCache(SegmentationModel("counted", family, torch.device("cpu")), None, 64 * MIB)
    click = points({"points": [[58, 53]]}, multimask=True, outputs=("coco", "logits"))
    plain = segment(photo, click, cache.model)
    counts, found = [], []

    for image in ("one", "one", "one", "two", "two", "one", "one"):
        before = family.times
        found.append(segment(photo, click, cache.model, known=cache.of("ant", image, ask_store=False)))
        counts.append(family.times - before)

    assert counts == [1, 0, 0, 1, 0, 1, 0]
    assert [one.metrics.embedding for one in found[:3]] == [EmbeddingOrigin.COMPUTED, *[EmbeddingOrigin.MEMORY] * 2]
    assert all(written(one) == written(plain) and logits(one) == logits(plain) for one in found)
    assert family.times == 4  # the plain one, too

    again = EmbeddingCache(cache.model, None, 64 * MIB)  # as after a restart, or of another model
    segment(photo, click, again.model, known=again.of("ant", "one", ask_store=False))
    assert family.times == 5


def test_what_is_prepared_does_not_outlive_its_embedding(photo: Photo, tmp_path: Path) -> None:
    tiny = load_model(save_tiny("sam", tmp_path), "cpu").family
    family = Counting(tiny.network, tiny.preprocessing)
    cache = EmbeddingCache(SegmentationModel("counted", family, torch.device("cpu")), None, 64 * MIB)
    known = cache.of("ant", "one", ask_store=False)
    embed_only(photo, cache.model, known=known)
    assert known.find(photo.size_wh) is not None

    cache.memory.keep(("ant", "large"), kept(64 * MIB))

    assert cache.memory.bytes == 64 * MIB
    assert known.find(photo.size_wh) is None
    embed_only(photo, cache.model, known=known)
    assert family.times == 2


def test_what_is_only_in_memory_is_written_by_a_later_job(
    photo: Photo, model: SegmentationModel, store: Store, sha256: str
) -> None:
    cache = EmbeddingCache(model, store, 64 * MIB)
    embed_only(photo, model, known=cache.of("ant", sha256, ask_store=False))  # whose job does not write
    key = embedding_key("ant", cache.kind.revision, sha256)
    assert store.head(key) is None

    later = cache.of("ant", sha256, ask_store=True)
    assert later.find(photo.size_wh) is not None
    later.write()
    assert store.head(key) is not None
    store.delete([key])
    after = cache.of("ant", sha256, ask_store=True)
    after.find(photo.size_wh)
    after.write()

    assert store.head(key) is None  # it was written once
