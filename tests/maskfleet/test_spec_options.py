"""A job given as options equals the job given as JSON."""

from __future__ import annotations

import json
from collections.abc import Callable

import click
import pytest
from click.testing import CliRunner, Result

from maskfleet.cli.main import main
from maskfleet.cli.spec_options import build_spec, option_of, spec_options
from maskfleet.cli.terminal import reporting_errors
from maskfleet.jobs.errors import InvalidRequest
from maskfleet.jobs.schema.record import Spec
from maskfleet.jobs.schema.spec import (
    BoxJob,
    EverythingJob,
    EverythingParams,
    ImageSource,
    PointJob,
    PromptParams,
    parse_spec,
)

IMAGE = ImageSource(url="https://example.com/bee.jpg")

Run = Callable[..., Result]


@pytest.fixture
def run() -> Run:
    @click.command()
    @spec_options
    def command(**options: object) -> None:
        with reporting_errors(option_of):
            click.echo(build_spec(image=IMAGE, **options).model_dump_json())  # type: ignore[arg-type]  # click's, by name

    return lambda *arguments: CliRunner().invoke(command, arguments)


def as_json(**fields: object) -> Spec:
    usual = {"image": {"url": "https://example.com/bee.jpg"}, "outputs": ["coco", "overlay"]}
    return parse_spec(json.dumps({**usual, **fields}))


def test_no_option_at_all_segments_everything_with_the_defaults_and_a_picture(run: Run) -> None:
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
        "min_mask_area": 9,
        "keep_pred_iou_thresh": 0.25,
        "keep_stability_score_thresh": 0.125,
    }
    assert {*given, "keep_candidates"} == set(EverythingParams.model_fields)

    answer = run(
        *(part for name, value in given.items() for part in (f"--{name.replace('_', '-')}", str(value))),
        "--keep-candidates",
    )

    params = EverythingParams(**given, keep_candidates=True)  # type: ignore[arg-type]  # by name
    assert parse_spec(answer.stdout).params == params


@pytest.mark.parametrize(
    ("arguments", "said"),
    [
        (("--point", "10"), "--point: '10' does not have the form x,y."),
        (("--point", "10,20", "--label", "1,x"), "--label: '1,x' does not have the form 1,0,…."),
        (("--point", "10,20", "--label", "0.5"), "--label: "),
        (("--point", "10,20", "--label", "1,0"), "object 1: "),
        (("--point", "nan,20"), "--point: "),
        (("--box", "1,2,3,4", "--box", "1,2,3"), "--box of object 2: "),
        (("--box", "9,2,3,4"), "object 1: "),
        (("--mode", "point"), "--mode: Mode point needs a point on the object: --point X,Y, in pixels.\n"),
        (("--mode", "box"), "--mode: Mode box needs a box around the object: --box X0,Y0,X1,Y1, in pixels.\n"),
        (("--mode", "point", "--box", "1,2,3,4"), "--mode: Mode point needs a point"),
        (("--mode", "point", "--point", "2,3", "--box", "1,2,3,4"), "--mode: Mode point takes no --box. Leave --mode"),
        (("--mode", "everything", "--point", "1,2"), "--mode: Mode everything takes no --point."),
        (("--label", "1"), "--label: Mode everything takes no --label. Add --point X,Y."),
        (("--outputs", "coco,ovrelay"), "--outputs: There is no output 'ovrelay'. Did you mean 'overlay'?"),
        (("--outputs", "coco,dxf"), "--outputs: There is no output 'dxf'. There are coco, "),
        (("--outputs", ","), "--outputs: "),
        (("--multimask",), "--multimask: It is for modes point and box; the mode of this job is everything."),
        (("--box", "1,2,3,4", "--points-per-crop", "8"), "--points-per-crop: It is for mode everything;"),
        (("--pred-iou-thresh", "1.5"), "--pred-iou-thresh: "),
    ],
)
def test_an_option_that_is_wrong_is_named_as_it_is_written_and_ends_with_status_2(
    run: Run, arguments: tuple[str, ...], said: str
) -> None:
    answer = run(*arguments)

    assert answer.exit_code == 2
    assert answer.stderr.startswith(f"invalid_spec: {said}")


@pytest.mark.parametrize(
    ("arguments", "meant"),
    [
        (("--mode", "evrything"), "Did you mean 'everything'?"),
        (("--overlay-format", "jpg"), "Did you mean 'jpeg'"),
        (("--pont", "1,2"), "Did you mean '--point'?"),
    ],
)
def test_a_mistyped_option_or_value_is_answered_with_the_one_that_is_meant(
    run: Run, arguments: tuple[str, ...], meant: str
) -> None:
    answer = run(*arguments)

    assert answer.exit_code == 2
    assert meant in answer.stderr


@pytest.mark.parametrize("typed", ["sumbit", "segmnt", "statsu"])
def test_a_mistyped_command_is_answered_with_the_one_that_is_meant(typed: str) -> None:
    answer = CliRunner().invoke(main, [typed, "photo.jpg"])

    assert answer.exit_code == 2
    meant = {"sumbit": "submit", "segmnt": "segment", "statsu": "status"}[typed]
    assert f"No such command '{typed}'. Did you mean '{meant}'?" in answer.stderr


def test_a_command_like_none_is_only_refused() -> None:
    answer = CliRunner().invoke(main, ["xyzzy"])

    assert "Error: No such command 'xyzzy'.\n" in answer.stderr


def test_every_field_of_a_job_has_a_name_on_the_command_line() -> None:
    fields = {name for job in (EverythingJob, PointJob, BoxJob) for name in job.model_fields} - {"mode", "image"}

    assert {option_of(f"/{name}") for name in fields} >= {"--outputs", "--webhook", "--model", "--point, --box"}
    assert option_of("/image/url") == "PHOTO"
    assert option_of("/prompts/2/box") == "--box of object 3"
    assert option_of("/webhook/url") == "--webhook"
    assert option_of("") == "--mode"


def test_a_misspelt_field_is_refused_and_not_dropped() -> None:
    with pytest.raises(InvalidRequest, match="/modle"):
        build_spec("everything", IMAGE, modle="facebook/sam-vit-huge")
