"""The options that describe a job on the command line, generated from the job's own models.

``segment`` and ``submit`` take the same ones.  An option that is not given stays out of the spec, so
the models' defaults apply.
"""

from __future__ import annotations

import hashlib
from collections.abc import Callable, Sequence
from itertools import zip_longest
from typing import Annotated, Any, TypeVar, get_args

import click
from pydantic import Field, TypeAdapter, ValidationError
from pydantic.fields import FieldInfo

from maskfleet.cli.terminal import Named, did_you_mean
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
#: Unless --outputs says otherwise: the masks for programs, and a picture for people.
DEFAULT_OUTPUTS = (Output.COCO, Output.OVERLAY)

_SPEC: TypeAdapter[Spec] = TypeAdapter(Annotated[EverythingJob | PointJob | BoxJob, Field(discriminator="mode")])
_PARAMS: dict[str, FieldInfo] = {**PromptParams.model_fields, **EverythingParams.model_fields}
_Function = TypeVar("_Function", bound=Callable[..., Any])  # Any: click passes the options by name
overlay_format_option = click.option(
    "--overlay-format",
    type=Named([str(name) for name in OverlayFormat]),
    help=f"What to write the overlay as.  [default: {OverlayFormat.PNG}]",
)


def spec_options(command: _Function) -> _Function:
    """Add the options of a job: mode, prompts, outputs and one per field of the modes' params.

    The command gets ``mode``, ``point``, ``label``, ``box``, ``outputs``, ``overlay_format`` and the params' names;
    pass all of them to ``build_spec`` unchanged.
    """
    options = [
        click.option(
            "--mode",
            type=Named(MODES),
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
            "--outputs",
            metavar="NAME,…",
            help=f"What to write: any of {', '.join(Output)}.  [default: {','.join(DEFAULT_OUTPUTS)}]",
        ),
        overlay_format_option,
        *(_param_option(name, field) for name, field in _PARAMS.items()),
    ]
    for option in reversed(options):
        command = option(command)
    return command


def everything_options(command: _Function) -> _Function:
    """Add the options of mode everything's params alone; pass them to ``build_spec``."""
    for name, field in reversed(EverythingParams.model_fields.items()):
        command = _param_option(name, field, among_modes=False)(command)
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
    Raises InvalidRequest (``invalid_spec``) with one fault per invalid option; ``option_of`` names them.
    """
    mode = mode or ("box" if box else "point" if point else "everything")
    document: dict[str, object] = {"mode": mode, "image": image}
    _check_prompts(mode, point, label, box)
    if point or label or box:
        document["prompts"] = _prompts(point, label, box)
    document["outputs"] = DEFAULT_OUTPUTS if outputs is None else output_names(outputs)
    given = {name: value for name, value in options.items() if value is not None}
    # A flag that is off counts as not given: the mode may not have it.
    params = {name: value for name, value in given.items() if name in _PARAMS and value is not False}
    for name in params:
        if name not in (EverythingParams if mode == "everything" else PromptParams).model_fields:
            raise _wrong(f"/params/{name}", f"It is for {_modes_of(name)}; the mode of this job is {mode}.")
    if params:
        document["params"] = params
    document |= {name: value for name, value in given.items() if name not in _PARAMS}
    try:
        return _SPEC.validate_python(document)
    except ValidationError as error:
        raise invalid_request(error) from error


def digest_of(spec: Spec, model: str = "") -> str:
    """Return a word that is the same for jobs that differ in their image alone.  model: if the spec does not say it."""
    text = f"{model}\n{spec.model_dump_json(exclude={'image'})}"
    return hashlib.sha256(text.encode()).hexdigest()[:16]


def option_of(pointer: str) -> str:
    """Return the option that a field of the spec is given with, by the field's JSON pointer."""
    parts = pointer.strip("/").split("/")
    match parts:
        case ["prompts", number, ("points" | "labels" | "box") as field, *_]:
            option = {"points": "--point", "labels": "--label", "box": "--box"}[field]
            return option if number == "0" else f"{option} of object {int(number) + 1}"
        case ["prompts", number]:
            return f"object {int(number) + 1}"
        case ["prompts", *_]:
            return "--point, --box"
        case ["image", *_]:
            return "PHOTO"
        case ["webhook", "events", *_]:
            return "--webhook-event"
        case ["webhook" | "outputs" | "metadata" as field, *_]:
            return f"--{field}"
        case ["params", field, *_]:
            return f"--{field.replace('_', '-')}"
        case [field] if field:
            return f"--{field.replace('_', '-')}"
    return "--mode" if not parts[0] else pointer


def _check_prompts(mode: str, point: Sequence[str], label: Sequence[str], box: Sequence[str]) -> None:
    """Raise InvalidRequest if the mode does not go with the prompts that are there, or that are missing."""
    if mode == "point" and not point:
        raise _wrong("/mode", "Mode point needs a point on the object: --point X,Y, in pixels.")
    if mode == "box" and not box:
        raise _wrong("/mode", "Mode box needs a box around the object: --box X0,Y0,X1,Y1, in pixels.")
    if mode == "point" and box:
        raise _wrong("/mode", "Mode point takes no --box. Leave --mode out: each --point joins the --box at its place.")
    if mode == "everything" and (point or label or box):
        given = " and ".join(name for name, some in (("--point", point), ("--label", label), ("--box", box)) if some)
        raise _wrong(
            "/prompts/0/labels" if not (point or box) else "/mode",
            f"Mode everything takes no {given}." + ("" if point or box else " Add --point X,Y."),
        )


def output_names(text: str) -> list[str]:
    """Return the outputs that an option names.  Raises InvalidRequest (``invalid_spec``)."""
    names = [name.strip() for name in text.split(",") if name.strip()]
    for number, name in enumerate(names):
        if name not in list(Output):
            close = did_you_mean(name, Output) or f"There are {', '.join(Output)}."
            raise _wrong(f"/outputs/{number}", f"There is no output {name!r}. {close}")
    return names


def _modes_of(name: str) -> str:
    return "mode everything" if name in EverythingParams.model_fields else "modes point and box"


def _wrong(pointer: str, detail: str) -> InvalidRequest:
    return InvalidRequest.at(pointer, "invalid_spec", detail, fault="invalid_option")


def _param_option(name: str, field: FieldInfo, *, among_modes: bool = True) -> Callable[[_Function], _Function]:
    option = f"--{name.replace('_', '-')}"
    modes = [
        modes
        for modes, model in (("everything", EverythingParams), ("point, box", PromptParams))
        if name in model.model_fields
    ]
    if field.annotation is bool:
        return click.option(option, is_flag=True, help=f"{field.description}  [{', '.join(modes)}]")
    where = f"{', '.join(modes)}; " if among_modes else ""
    choices = get_args(field.annotation)
    kind = Named(choices) if choices else int if field.annotation is int else float
    default = field.default if choices else f"{field.default:g}"
    return click.option(option, type=kind, help=f"{field.description}  [{where}default: {default}]")


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
        raise _wrong(pointer, f"{text!r} does not have the form {form}.")
    return numbers
