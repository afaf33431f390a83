"""A job given as options equals the job given as JSON."""

from __future__ import annotations

import json
from collections.abc import Callable

import click
import pytest
from click.testing import CliRunner, Result

from maskfleet.cli.spec_options import build_spec, spec_options
from maskfleet.cli.terminal import reporting_errors
from maskfleet.jobs.errors import InvalidRequest
from maskfleet.jobs.schema.record import Spec
from maskfleet.jobs.schema.spec import EverythingParams, ImageSource, PromptParams, parse_spec

IMAGE = ImageSource(url="https://example.com/bee.jpg")

Run = Callable[..., Result]


@pytest.fixture
def run() -> Run:
    @click.command()
    @spec_options
    def command(**options: object) -> None:
        with reporting_errors():
            click.echo(build_spec(image=IMAGE, **options).model_dump_json())  # type: ignore[arg-type]  # click's, by name

    return lambda *arguments: CliRunner().invoke(command, arguments)


def as_json(**fields: object) -> Spec:
    return parse_spec(json.dumps({"image": {"url": "https://example.com/bee.jpg"}, **fields}))


def test_no_option_at_all_segments_everything_with_the_defaults(run: Run) -> None:
    answer = run()

    assert parse_spec(answer.stdout) == as_json(mode="everything")


def test_each_point_option_is_an_object_and_takes_the_labels_at_its_place(run: Run) -> None:
    answer = run("--point", "10,20;30.5,40", "--label", "1,0", "--point", "5,6", "--multimask", "--outputs", "coco,png")

    assert parse_spec(answer.stdout) == as_json(
        mode="point",
        prompts=[{"points": [[10, 20], [30.5, 40]], "labels": [1, 0]}, {"points": [[5, 6]]}],
        params={"multimask": True},
        outputs=["coco", "png"],
    )


def test_points_join_the_boxes_at_their_place_and_an_empty_one_leaves_its_box_alone(run: Run) -> None:
    answer = run(
        "--box", "1,2,30,40", "--box", "5,5,9,9", "--point", "", "--point", "6,6", "--label", "", "--label", "0"
    )

    assert parse_spec(answer.stdout) == as_json(
        mode="box", prompts=[{"box": [1, 2, 30, 40]}, {"box": [5, 5, 9, 9], "points": [[6, 6]], "labels": [0]}]
    )


@pytest.mark.parametrize(("mode", "model"), [("everything", EverythingParams), ("point", PromptParams)])
def test_every_field_of_the_params_is_an_option_with_its_text_and_default(
    run: Run, mode: str, model: type[EverythingParams | PromptParams]
) -> None:
    shown = " ".join(run("--help").stdout.split())

    for name, field in model.model_fields.items():
        assert f"--{name.replace('_', '-')}" in shown
        assert field.description is not None
        if field.annotation is not bool:
            default = field.default if isinstance(field.default, str) else f"{field.default:g}"
            assert f"default: {default}]" in shown


def test_every_param_given_reaches_the_spec(run: Run) -> None:
    given = {
        "points_per_batch": 7,
        "pred_iou_thresh": 0.5,
        "stability_score_thresh": 0.25,
        "stability_score_offset": 2.0,
        "mask_threshold": -1.5,
        "points_per_crop": 4,
        "crops_n_layers": 1,
        "crops_nms_thresh": 0.125,
        "crops_suppression": "library",
        "crop_overlap_ratio": 0.25,
        "crop_n_points_downscale_factor": 2,
    }
    assert set(given) == set(EverythingParams.model_fields)

    answer = run(*(part for name, value in given.items() for part in (f"--{name.replace('_', '-')}", str(value))))

    assert parse_spec(answer.stdout).params == EverythingParams(**given)  # type: ignore[arg-type]  # by name


@pytest.mark.parametrize(
    ("arguments", "pointer"),
    [
        (("--point", "10"), "/prompts/0/points"),
        (("--point", "10,20", "--label", "1,x"), "/prompts/0/labels"),
        (("--point", "10,20", "--label", "0.5"), "/prompts/0/labels/0"),
        (("--point", "10,20", "--label", "1,0"), "/prompts/0"),
        (("--point", "nan,20"), "/prompts/0/points/0/0"),
        (("--box", "1,2,3,4", "--box", "1,2,3"), "/prompts/1/box"),
        (("--box", "9,2,3,4"), "/prompts/0"),
        (("--mode", "point", "--box", "1,2,3,4"), ""),
        (("--mode", "everything", "--point", "1,2"), "/prompts"),
        (("--outputs", "coco,svg"), "/outputs/1"),
        (("--outputs", ","), "/outputs"),
        (("--multimask",), "/params/multimask"),
        (("--pred-iou-thresh", "1.5"), "/params/pred_iou_thresh"),
    ],
)
def test_an_option_that_is_wrong_is_named_and_ends_with_status_2(
    run: Run, arguments: tuple[str, ...], pointer: str
) -> None:
    answer = run(*arguments)

    assert answer.exit_code == 2
    assert answer.stderr.startswith(f"invalid_spec: {pointer or '/'}: ")


def test_a_misspelt_field_is_refused_and_not_dropped() -> None:
    with pytest.raises(InvalidRequest, match="/modle"):
        build_spec("everything", IMAGE, modle="facebook/sam-vit-huge")
