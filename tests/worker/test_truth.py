"""End to end, the masks equal the library's: for every mode, image size and shape, except pixels on the threshold."""

from __future__ import annotations

from typing import Any

import pytest
from transformers import SamImageProcessor, SamProcessor

from tests.worker.networks import random_sam
from tests.worker.truth import Truth, coins, of_megapixels, prompts_on

#: Everything the decoder proposes.
ALL = {"pred_iou_thresh": 0.0, "stability_score_thresh": 0.0, "crops_nms_thresh": 1.0}
LOOSE = {"pred_iou_thresh": 0.5, "stability_score_thresh": 0.5}

IMAGES = {
    "0.3 MP": (coins(of_megapixels(0.3)), {"points_per_crop": 6}),
    "grey": (coins(of_megapixels(0.3), "L"), {"points_per_crop": 6}),
    "square": (coins((600, 600)), {"points_per_crop": 6}),
    "1 MP": (coins(of_megapixels(1)), {"points_per_crop": 6}),
    "wide": (coins((4000, 60)), {"points_per_crop": 4}),
    "high": (coins((60, 4000)), {"points_per_crop": 4}),
    "tiny": (coins((16, 16)), {"points_per_crop": 3, **ALL}),
    "one pixel": (coins((1, 1)), {"points_per_crop": 1, **ALL}),
    "4 MP": (coins(of_megapixels(4)), {"points_per_crop": 4, "points_per_batch": 4}),
    "12 MP": (coins(of_megapixels(12)), {"points_per_crop": 2, "points_per_batch": 2}),
    "18 MP": (coins(of_megapixels(18)), {"points_per_crop": 3, "points_per_batch": 2}),
}


@pytest.fixture(scope="module")
def trained(demo_model: str) -> Truth:
    return Truth(demo_model)


@pytest.fixture(scope="module")
def vit_b(tmp_path_factory: pytest.TempPathFactory) -> Truth:
    """Random weights in a decoder of ViT-B's shape; the encoder is thin, only to make it fast."""
    folder = tmp_path_factory.mktemp("vit-b")
    random_sam(256, 8, 64).save_pretrained(folder)
    SamProcessor(SamImageProcessor()).save_pretrained(folder)
    return Truth(folder)


@pytest.mark.parametrize("name", IMAGES)
def test_mode_everything_is_the_pipelines(trained: Truth, name: str) -> None:
    image, params = IMAGES[name]

    compared = trained.everything(image, **{**LOOSE, **params})

    compared.check(name)


@pytest.mark.parametrize("name", ["0.3 MP", "grey", "wide", "high", "tiny", "4 MP", "18 MP"])
def test_each_prompts_three_candidates_and_its_one_mask_are_the_models(trained: Truth, name: str) -> None:
    image, _ = IMAGES[name]

    compared = {kind: trained.prompt(image, prompt) for kind, prompt in prompts_on(image.size).items()}

    for kind, of in compared.items():
        for masks, comparison in of.items():
            comparison.check(f"{name}, {kind}, {masks}")


@pytest.mark.parametrize("params", [{}, {"mask_threshold": 0.5}], ids=["at 0", "at another threshold"])
def test_a_decoder_of_vit_bs_shape_gives_every_candidate_of_the_pipeline(vit_b: Truth, params: dict[str, Any]) -> None:
    image = coins(of_megapixels(0.3))

    compared = vit_b.everything(image, points_per_crop=3, **ALL, **params)

    compared.check("ViT-B's shape")
    assert len(compared.near) > 5


def test_a_decoder_of_vit_bs_shape_gives_the_models_prompts(vit_b: Truth) -> None:
    image = coins(of_megapixels(1))

    for kind, prompt in prompts_on(image.size).items():
        for masks, compared in vit_b.prompt(image, prompt).items():
            compared.check(f"ViT-B's shape, {kind}, {masks}")
