"""The options that describe a job on the command line, generated from the job's own models.

``segment`` and ``submit`` take the same ones.  An option that is not given stays out of the spec, so
the models' defaults apply.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from itertools import zip_longest
from typing import Annotated, Any, TypeVar, get_args

import click
from pydantic import Field, TypeAdapter, ValidationError
from pydantic.fields import FieldInfo

from maskfleet.jobs.errors import InvalidRequest
from maskfleet.jobs.schema.record import Spec
from maskfleet.jobs.schema.spec import (
    BoxJob,
    EverythingJob,
    EverythingParams,
    ImageSource,
    Output,
    OverlayFormat,
    PointJob,
    PromptParams,
    invalid_request,
)

MODES = ("everything", "point", "box")

_SPEC: TypeAdapter[Spec] = TypeAdapter(Annotated[EverythingJob | PointJob | BoxJob, Field(discriminator="mode")])
_PARAMS: dict[str, FieldInfo] = {**PromptParams.model_fields, **EverythingParams.model_fields}
_Function = TypeVar("_Function", bound=Callable[..., Any])  # Any: click passes the options by name


def spec_options(command: _Function) -> _Function:
    """Add the options of a job: mode, prompts, outputs and one per field of the modes' params.

    The command gets ``mode``, ``point``, ``label``, ``box``, ``outputs``, ``overlay_format`` and the params' names;
    pass all of them to ``build_spec`` unchanged.
    """
    options = [
        click.option(
            "--mode",
            type=click.Choice(MODES),
            help="What to segment.  [default: box with --box, point with --point, else everything]",
        ),
        click.option(
            "--point",
            multiple=True,
            metavar="X,Y[;X,Y…]",
            help="Points for one object, in pixels.  Repeat for more objects; with --box, once per box in order.",
        ),
        click.option(
            "--label",
            multiple=True,
            metavar="1,0…",
            help="One label per point of the matching --point: 1 on the object, 0 off it.  [default: all 1]",
        ),
        click.option(
            "--box", multiple=True, metavar="X0,Y0,X1,Y1", help="A box around one object, in pixels.  Repeat for more."
        ),
        click.option(
            "--outputs", metavar="NAME,…", help=f"What to write: any of {', '.join(Output)}.  [default: {Output.COCO}]"
        ),
        click.option(
            "--overlay-format",
            type=click.Choice([str(name) for name in OverlayFormat]),
            help=f"What to write the overlay as.  [default: {OverlayFormat.PNG}]",
        ),
        *(_param_option(name, field) for name, field in _PARAMS.items()),
    ]
    for option in reversed(options):
        command = option(command)
    return command


def build_spec(
    mode: str | None,
    image: ImageSource,
    *,
    point: Sequence[str] = (),
    label: Sequence[str] = (),
    box: Sequence[str] = (),
    outputs: str | None = None,
    **options: object,
) -> Spec:
    """Return the job that the options describe.

    options: fields of the mode's params, and of the job itself (``model``, ``webhook``, …); None means "not given".
    Raises InvalidRequest (``invalid_spec``) with one fault per invalid option.
    """
    document: dict[str, object] = {
        "mode": mode or ("box" if box else "point" if point else "everything"),
        "image": image,
    }
    if point or label or box:
        document["prompts"] = _prompts(point, label, box)
    if outputs is not None:
        document["outputs"] = [name.strip() for name in outputs.split(",") if name.strip()]
    given = {name: value for name, value in options.items() if value is not None}
    # A flag that is off counts as not given: the mode may not have it.
    params = {name: value for name, value in given.items() if name in _PARAMS and value is not False}
    if params:
        document["params"] = params
    document |= {name: value for name, value in given.items() if name not in _PARAMS}
    try:
        return _SPEC.validate_python(document)
    except ValidationError as error:
        raise invalid_request(error) from error


def _param_option(name: str, field: FieldInfo) -> Callable[[_Function], _Function]:
    option = f"--{name.replace('_', '-')}"
    modes = [
        modes
        for modes, model in (("everything", EverythingParams), ("point, box", PromptParams))
        if name in model.model_fields
    ]
    if field.annotation is bool:
        return click.option(option, is_flag=True, help=f"{field.description}  [{', '.join(modes)}]")
    choices = get_args(field.annotation)
    kind = click.Choice(choices) if choices else int if field.annotation is int else float
    default = field.default if choices else f"{field.default:g}"
    return click.option(option, type=kind, help=f"{field.description}  [{', '.join(modes)}; default: {default}]")


def _prompts(points: Sequence[str], labels: Sequence[str], boxes: Sequence[str]) -> list[dict[str, object]]:
    prompts: list[dict[str, object]] = []
    for number, (of_points, of_labels, of_box) in enumerate(zip_longest(points, labels, boxes)):
        prompt: dict[str, object] = {}
        where = f"/prompts/{number}"
        if of_points:
            prompt["points"] = [_numbers(xy, 2, f"{where}/points", "x,y") for xy in of_points.split(";") if xy.strip()]
        if of_labels:
            prompt["labels"] = [
                int(n) if n.is_integer() else n for n in _numbers(of_labels, None, f"{where}/labels", "1,0,…")
            ]
        if of_box:
            prompt["box"] = _numbers(of_box, 4, f"{where}/box", "x_min,y_min,x_max,y_max")
        prompts.append(prompt)
    return prompts


def _numbers(text: str, count: int | None, pointer: str, form: str) -> list[float]:
    try:
        numbers = [float(part) for part in text.split(",")]
    except ValueError:
        numbers = []
    if not numbers or count not in (None, len(numbers)):
        raise InvalidRequest.at(
            pointer, "invalid_spec", f"{text!r} does not have the form {form}.", fault="invalid_option"
        )
    return numbers
