"""Valid requests, and the errors for invalid ones."""

import copy
import json
from typing import Any

import pytest
from hypothesis import given, settings, strategies as st

from maskfleet.jobs.errors import InvalidPrompt, InvalidRequest
from maskfleet.jobs.prompt_checks import fit_prompts
from maskfleet.jobs.schema.prompts import Prompt
from maskfleet.jobs.schema.record import SpecSummary
from maskfleet.jobs.schema.spec import (
    BoxJob,
    EmbedJob,
    EverythingJob,
    ImageSource,
    PointJob,
    dump_spec,
    parse_spec,
    read_spec,
)

IMAGE = {"s3_uri": "s3://photos/bee.jpg"}
#: Keys that a store may resolve to another one than they name, or refuse.
BAD_KEYS = [
    *("../x.png", "a/../x.png", "./x.png", "a/./x.png", "a//x.png", "/x.png", "a/", "a/..", "..", "..\\x.png"),
    *("a\x00.png", "a\n.png", "a\x7f.png", "a\x85.png", "k" * 1025, "\u20ac" * 342),
]


def _refining(mask_input: dict[str, object]) -> dict[str, object]:
    return {"mode": "box", "image": IMAGE, "prompts": [{"box": [1, 2, 3, 4], "mask_input": mask_input}]}


def fault_of(body: object) -> tuple[str, str]:
    """Return the first error's pointer and code."""
    with pytest.raises(InvalidRequest) as caught:
        parse_spec(json.dumps(body))
    assert caught.value.code == "invalid_spec"
    return caught.value.faults[0].pointer, caught.value.faults[0].code


def test_a_spec_of_each_mode_is_read_and_survives_writing() -> None:
    for body, kind in [
        ({"mode": "everything", "image": IMAGE}, EverythingJob),
        ({"mode": "point", "image": IMAGE, "prompts": [{"points": [[1, 2], [3, 4]], "labels": [1, 0]}]}, PointJob),
        ({"mode": "box", "image": IMAGE, "prompts": [{"box": [1, 2, 3, 4], "points": [[2, 3]]}]}, BoxJob),
        ({"mode": "embed", "image": {**IMAGE, "sha256": "0" * 64}}, EmbedJob),
    ]:
        spec = parse_spec(json.dumps(body))

        assert isinstance(spec, kind)
        assert parse_spec(dump_spec(spec)) == spec


def test_everything_has_the_defaults_of_the_guides_pipeline() -> None:
    spec = parse_spec(json.dumps({"mode": "everything", "image": IMAGE}))

    assert spec.params.model_dump() == {
        "points_per_batch": 64,
        "pred_iou_thresh": 0.88,
        "stability_score_thresh": 0.95,
        "stability_score_offset": 1.0,
        "mask_threshold": 0.0,
        "points_per_crop": 32,
        "crops_n_layers": 0,
        "crops_nms_thresh": 0.7,
        "crops_suppression": "original",
        "min_mask_area": 0,
        "crop_overlap_ratio": 512 / 1500,
        "crop_n_points_downscale_factor": 1,
        "keep_candidates": False,
        "keep_pred_iou_thresh": 0.8,
        "keep_stability_score_thresh": 0.9,
    }


def test_labels_default_to_points_on_the_object() -> None:
    assert Prompt(points=((1, 2), (3, 4))).point_labels == (1, 1)


@pytest.mark.parametrize(
    ("body", "pointer", "code"),
    [
        ({"image": IMAGE}, "", "union_tag_not_found"),
        ({"mode": "polygon", "image": IMAGE}, "", "union_tag_invalid"),
        ([], "", "dict_type"),
        ({"mode": "everything"}, "/image", "missing"),
        ({"mode": "embed"}, "/image", "missing"),
        ({"mode": "point", "prompts": [{"points": [[1, 2]]}]}, "/image", "missing"),
        ({"mode": "embed", "image": IMAGE, "outputs": ["coco"]}, "/outputs", "extra_forbidden"),
        ({"mode": "embed", "image": {"image_id": "job_1"}}, "/image/image_id", "string_pattern_mismatch"),
        ({"mode": "embed", "image": {**IMAGE, "sha256": "A" * 64}}, "/image/sha256", "string_pattern_mismatch"),
        ({"mode": "embed", "image": {"sha256": "a" * 64}}, "/image", "image_source"),
        ({"mode": "everything", "image": IMAGE, "colour": 1}, "/colour", "extra_forbidden"),
        ({"mode": "everything", "image": IMAGE, "params": {"multimask": True}}, "/params/multimask", "extra_forbidden"),
        ({"mode": "everything", "image": IMAGE, "prompts": []}, "/prompts", "extra_forbidden"),
        (
            {"mode": "everything", "image": IMAGE, "params": {"points_per_batch": 0}},
            "/params/points_per_batch",
            "greater_than_equal",
        ),
        ({"mode": "everything", "image": {}}, "/image", "image_source"),
        ({"mode": "everything", "image": {**IMAGE, "base64": "aaaa"}}, "/image", "image_source"),
        ({"mode": "everything", "image": {"s3_uri": "https://x/y"}}, "/image/s3_uri", "invalid_s3_uri"),
        *(
            ({"mode": "everything", "image": {"s3_uri": f"s3://photos/{key}"}}, "/image/s3_uri", "invalid_s3_uri")
            for key in BAD_KEYS
            if not key.endswith("/")
        ),
        *(
            ({"mode": "everything", "image": {"s3_uri": uri}}, "/image/s3_uri", "s3_uri_is_a_folder")
            for uri in ("s3://photos/tiles/", "s3://photos/", "s3://photos")
        ),
        *(
            ({"mode": "everything", "image": {"s3_uri": uri}}, "/image/s3_uri", "s3_uri_is_a_pattern")
            for uri in ("s3://photos/tiles/*.png", "s3://photos/*", "s3://photos/tiles/a*b.png")
        ),
        ({"mode": "everything", "image": {**IMAGE, "file_name": "a/b.png"}}, "/image/file_name", "invalid_file_name"),
        ({"mode": "everything", "image": {**IMAGE, "file_name": "a\n.png"}}, "/image/file_name", "invalid_file_name"),
        (_refining({"s3_uri": "s3://photos/../m.npy"}), "/prompts/0/mask_input/s3_uri", "invalid_s3_uri"),
        ({"mode": "everything", "image": {"url": "file:///etc/passwd"}}, "/image/url", "invalid_url"),
        ({"mode": "everything", "image": {"url": "https://me:secret@example.com/"}}, "/image/url", "invalid_url"),
        ({"mode": "everything", "image": {"base64": "not base64!"}}, "/image/base64", "invalid_base64"),
        ({"mode": "point", "image": IMAGE}, "/prompts", "missing"),
        ({"mode": "point", "image": IMAGE, "prompts": []}, "/prompts", "too_short"),
        ({"mode": "point", "image": IMAGE, "prompts": [{"box": [1, 2, 3, 4]}]}, "", "prompt_mode"),
        (
            {"mode": "point", "image": IMAGE, "prompts": [{"points": [[1, 2]], "labels": [1, 0]}]},
            "/prompts/0",
            "labels_length",
        ),
        (
            {"mode": "point", "image": IMAGE, "prompts": [{"points": [[1, 2]], "labels": [2]}]},
            "/prompts/0/labels/0",
            "literal_error",
        ),
        ({"mode": "box", "image": IMAGE, "prompts": [{"points": [[1, 2]]}]}, "", "prompt_mode"),
        (_refining({}), "/prompts/0/mask_input", "mask_input_source"),
        (_refining({"job_id": "job_" + "0" * 32}), "/prompts/0/mask_input", "mask_input_source"),
        (_refining({"mask": 0, "upload_id": "upl_" + "0" * 32}), "/prompts/0/mask_input", "mask_input_source"),
        (_refining({"job_id": "another", "mask": 0}), "/prompts/0/mask_input/job_id", "string_pattern_mismatch"),
        (_refining({"s3_uri": "masks/one.npy"}), "/prompts/0/mask_input/s3_uri", "invalid_s3_uri"),
        ({"mode": "box", "image": IMAGE, "prompts": [{"box": [3, 2, 1, 4]}]}, "/prompts/0", "invalid_box"),
        ({"mode": "box", "image": IMAGE, "prompts": [{"box": [1, 2, 1, 4]}]}, "/prompts/0", "invalid_box"),
    ],
)
def test_each_mistake_is_named_by_its_place_and_a_code(body: object, pointer: str, code: str) -> None:
    assert fault_of(body) == (pointer, code)


@pytest.mark.parametrize(
    "mask_input",
    [
        {"upload_id": "upl_" + "0" * 32},
        {"s3_uri": "s3://photos/mask.npy"},
        {"job_id": "job_" + "0" * 32, "mask": 0},
    ],
)
def test_a_mask_to_refine_survives_the_way_through_the_record(mask_input: dict[str, object]) -> None:
    spec = parse_spec(json.dumps(_refining(mask_input)))

    assert parse_spec(dump_spec(spec)) == spec
    assert spec.prompts[0].mask_input is not None


def test_every_mistake_is_told_at_once() -> None:
    with pytest.raises(InvalidRequest) as caught:
        parse_spec('{"mode": "box", "image": {}, "prompts": [{"box": [1, 1, 0, 0]}, {}], "x": 1}')

    assert [fault.pointer for fault in caught.value.faults] == ["/prompts/0", "/image", "/x"]


@pytest.mark.parametrize("text", ["", "{", b"\xff\xfe", "nul\x00"])
def test_what_is_not_json_is_malformed(text: str | bytes) -> None:
    with pytest.raises(InvalidRequest) as caught:
        parse_spec(text)

    assert (caught.value.code, caught.value.http_status) == ("malformed_json", 400)


def test_not_a_number_is_no_coordinate() -> None:
    with pytest.raises(InvalidRequest):
        parse_spec(
            '{"mode": "point", "image": {"upload_id": "upl_' + "0" * 32 + '"}, "prompts": [{"points": [[1e999, 1]]}]}'
        )


def test_a_prompt_on_the_images_edge_is_inside() -> None:
    prompts = (Prompt(points=((0, 0), (99, 49), (100, 50))), Prompt(box=(0, 0, 100, 50)))

    assert fit_prompts(prompts, (100, 50)) == prompts


def test_what_is_up_to_a_pixel_outside_is_moved_to_the_edge() -> None:
    prompts = (
        Prompt(box=(-0.3, -1, 100.7, 51)),
        Prompt(box=(5, 5, 9, 50.001), points=((-1, 3), (101, 51)), labels=(1, 0)),
        Prompt(points=((4, 3),)),
    )

    fitted = fit_prompts(prompts, (100, 50))

    assert [prompt.box for prompt in fitted] == [(0, 0, 100, 50), (5, 5, 9, 50), None]
    assert [prompt.points for prompt in fitted] == [(), ((0, 3), (100, 50)), ((4, 3),)]
    assert fitted[1].labels == (1, 0)


@pytest.mark.parametrize(
    ("prompt", "code"),
    [
        (Prompt(points=((101.1, 10),)), "point_outside_image"),
        (Prompt(points=((5, -1.01),)), "point_outside_image"),
        (Prompt(box=(0, 0, 101.1, 50)), "box_outside_image"),
        (Prompt(box=(0, 0, 100, 51.1)), "box_outside_image"),
        (Prompt(box=(-1.1, 0, 10, 10)), "box_outside_image"),
        (Prompt(box=(-1, 0, -0.5, 10)), "box_outside_image"),
        (Prompt(box=(100, 0, 101, 10)), "box_outside_image"),
        (Prompt(box=(1, 50.5, 9, 51)), "box_outside_image"),
    ],
)
def test_a_prompt_outside_the_image_is_refused(prompt: Prompt, code: str) -> None:
    with pytest.raises(InvalidPrompt) as caught:
        fit_prompts((prompt,), (100, 50))

    assert caught.value.code == code


def test_every_prompt_outside_is_named_by_its_place_among_five_hundred() -> None:
    prompts = [Prompt(box=(1, 1, 9, 9), points=((2, 2),)) for _ in range(500)]
    prompts[317] = Prompt(box=(1, 1, 9, 52))
    prompts[400] = Prompt(box=(1, 1, 9, 9), points=((2, 2), (3, -4)))

    with pytest.raises(InvalidPrompt) as caught:
        fit_prompts(tuple(prompts), (100, 50))

    named = [(fault.pointer, fault.code) for fault in caught.value.faults]
    assert named == [("/prompts/317/box", "box_outside_image"), ("/prompts/400/points/1", "point_outside_image")]
    assert caught.value.detail.startswith("/prompts/317/box: The box [1.0, 1.0, 9.0, 52.0] extends outside")


# Any input gives a spec, or a refusal with a code.

GOOD_SPECS: list[dict[str, Any]] = [
    {
        "mode": "everything",
        "image": IMAGE,
        "params": {"points_per_crop": 16, "crops_n_layers": 1, "crops_suppression": "library"},
        "outputs": ["coco", "logits", "masks_zip", "overlay"],
        "overlay_format": "webp",
        "priority": "bulk",
        "webhook": {"url": "https://example.com/hook"},
        "metadata": {"order": "42"},
    },
    {
        "mode": "point",
        "image": {"url": "https://example.com/bee.jpg"},
        "prompts": [{"points": [[1, 2], [3.5, 4]], "labels": [1, 0]}],
        "params": {"multimask": True, "mask_threshold": -1},
        "model": "sam",
    },
    {
        "mode": "box",
        "image": {"upload_id": "upl_" + "0" * 32},
        "prompts": [{"box": [1, 2, 3, 4], "mask_input": {"job_id": "job_" + "0" * 32, "mask": 0}}],
        "start_deadline_s": 60,
        "run_timeout_s": 60,
    },
]
json_values = st.recursive(
    st.none() | st.booleans() | st.integers() | st.floats() | st.text(max_size=20),
    lambda values: st.lists(values, max_size=4) | st.dictionaries(st.text(max_size=10), values, max_size=4),
    max_leaves=12,
)


def _places(value: Any) -> list[tuple[str | int, ...]]:
    """Yield the path of everything in a JSON value, itself first."""
    inside = value.items() if isinstance(value, dict) else enumerate(value) if isinstance(value, list) else ()
    return [(), *((step, *rest) for step, part in inside for rest in _places(part))]


@st.composite
def nearly_good_specs(draw: st.DrawFn) -> Any:
    """Draw a valid spec with some pieces replaced, removed or inserted anywhere."""
    spec: Any = {"body": copy.deepcopy(draw(st.sampled_from(GOOD_SPECS)))}
    for _ in range(draw(st.integers(1, 3))):
        *path, last = draw(st.sampled_from(_places(spec)[1:]))
        holder = spec
        for step in path:
            holder = holder[step]
        match draw(st.sampled_from(["replace", "take out", "put in"])):
            case "replace":
                holder[last] = draw(json_values)
            case "put in" if isinstance(holder[last], dict):
                holder[last][draw(st.text(max_size=10))] = draw(json_values)
            case "put in" if isinstance(holder[last], list):
                holder[last].append(draw(json_values))
            case _ if last != "body":
                del holder[last]
    return spec["body"]


@settings(max_examples=1000, deadline=None)
@given(text=st.binary(max_size=100) | st.text(max_size=100) | (json_values | nearly_good_specs()).map(json.dumps))
def test_anything_is_a_spec_that_survives_writing_or_a_refusal_with_a_code(text: bytes | str) -> None:
    try:
        spec = parse_spec(text)
    except InvalidRequest as error:
        refusal = error
    else:
        assert parse_spec(dump_spec(spec)) == spec
        return

    if refusal.code == "malformed_json":
        assert refusal.http_status == 400
    else:
        assert (refusal.code, refusal.http_status) == ("invalid_spec", 422)
        assert refusal.faults
        assert all(fault.code and fault.detail for fault in refusal.faults)
        assert all(fault.pointer == "" or fault.pointer.startswith("/") for fault in refusal.faults)


@pytest.mark.parametrize("key", ["a..b/...x.png", ".hidden/x.png", "a b/\u00e9.png", "%2e%2e/x.png", "\u20ac" * 341])
def test_a_key_that_only_looks_odd_is_taken(key: str) -> None:
    assert parse_spec(json.dumps({"mode": "everything", "image": {"s3_uri": f"s3://photos/{key}"}}))


def test_a_record_with_a_key_that_would_be_refused_now_is_still_read() -> None:
    text = json.dumps({"mode": "everything", "image": {"s3_uri": "s3://photos/../x.png"}})

    assert read_spec(text).image.s3_uri == "s3://photos/../x.png"


def test_a_folder_is_refused_with_what_to_do_instead() -> None:
    with pytest.raises(InvalidRequest, match=r"POST /v1/batches with source\.prefix"):
        parse_spec(json.dumps({"mode": "everything", "image": {"s3_uri": "s3://photos/tiles/"}}))


def test_a_recorded_key_with_a_star_is_still_read() -> None:
    text = json.dumps({"mode": "everything", "image": {"s3_uri": "s3://photos/*.png"}})

    assert read_spec(text).image.s3_uri == "s3://photos/*.png"


@pytest.mark.parametrize(
    ("image", "shown", "file_name"),
    [
        ({"s3_uri": "s3://photos/a/b c.jpg"}, "s3://photos/a/b c.jpg", "b c.jpg"),
        (
            {"url": "https://x.example/t.png?x=1&X-Amz-Signature=abc&y=2#z"},
            "https://x.example/t.png?x=1&X-Amz-Signature=REDACTED&y=2",
            "t.png",
        ),
        ({"url": "https://x.example/tile?x=1&sig=a%2Bb"}, "https://x.example/tile?x=1&sig=REDACTED", "tile"),
        ({"upload_id": "upl_" + "0" * 32, "file_name": "bee.jpg"}, "upl_" + "0" * 32, "bee.jpg"),
    ],
)
def test_an_image_is_named_without_what_signs_its_url(image: dict[str, str], shown: str, file_name: str) -> None:
    source = ImageSource(**image)

    assert (source.shown, source.shown_file_name) == (shown, file_name)


def _refinement(*jobs: str) -> dict[str, object]:
    inputs = [{"job_id": f"job_{job * 32}", "mask": 0} for job in jobs]
    return {"mode": "point", "prompts": [{"points": [[1, 2]], "mask_input": one} for one in inputs]}


def test_the_image_of_a_refinement_is_by_default_that_of_the_job_it_refines() -> None:
    spec = parse_spec(json.dumps(_refinement("a", "a")))

    assert spec.image == ImageSource(image_id="img_" + "a" * 32)
    assert parse_spec(dump_spec(spec)) == spec


def test_the_image_of_a_refinement_of_several_jobs_must_be_named() -> None:
    assert fault_of(_refinement("a", "b")) == ("/image", "missing")


@pytest.mark.parametrize(
    ("body", "kept"),
    [
        ({"mode": "embed", "image": IMAGE}, True),
        ({**_refinement("a"), "image": IMAGE, "outputs": ["coco", "logits"]}, True),
        ({**_refinement("a"), "image": IMAGE}, False),
        ({"mode": "of_tomorrow", "image": {"hologram": 1}, "outputs": ["logits"]}, False),
        ({"mode": "embed", "image": "of tomorrow"}, False),
    ],
)
def test_a_summary_keeps_the_source_that_later_jobs_may_name(body: dict[str, object], kept: bool) -> None:
    summary = SpecSummary.model_validate_json(json.dumps(body))

    assert summary.source == (ImageSource(**IMAGE) if kept else None)
    assert SpecSummary.model_validate_json(summary.model_dump_json(exclude_defaults=True)) == summary
