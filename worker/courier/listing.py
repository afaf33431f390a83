"""What a batch's source holds: the objects under a prefix, or the lines of a manifest, a bounded number at a time."""

from __future__ import annotations

import json
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from fnmatch import fnmatchcase
from typing import Any

from maskfleet.jobs.addresses import AddressRefused, check_url
from maskfleet.jobs.errors import InvalidImage, InvalidRequest, JobError
from maskfleet.jobs.schema.batch_spec import LINE_FIELDS, BatchPlan
from maskfleet.jobs.schema.record import AnySpec
from maskfleet.jobs.schema.spec import ImageSource, dump_spec, parse_spec, read_spec
from maskfleet.jobs.schema.wire import key_fault
from maskfleet.jobs.settings import SharedSettings
from maskfleet.jobs.storage import ObjectChanged, Store, allowed_object, allowed_prefix, split_s3_uri

#: Objects that one look at a prefix lists: S3's own limit for a page.
LISTED_AT_ONCE = 1000
#: Bytes of a manifest that are read at a time; one line may be shorter than MAX_LINE_BYTES only.
READ_BYTES = 2**20
#: As a spec may be, without its image.
MAX_LINE_BYTES = 256 * 1024


@dataclass(frozen=True, slots=True)
class Found:
    """An image of the source.  number: from 1.  after: the cursor behind it.

    spec: its job's; None for one that cannot become a job, and then error says why.
    source: what people know it by; empty if even that is unknown.
    """

    number: int
    after: str
    spec: AnySpec | None
    source: str
    error: JobError | None = None


@dataclass(frozen=True, slots=True)
class Listed:
    """The next images of a source.  after: the cursor behind all that was looked at.  ends: whether nothing follows."""

    found: tuple[Found, ...]
    after: str
    ends: bool


def look(
    plan: BatchPlan, cursor: str, listed: int, most: int, *, tenant: str, store: Store, settings: SharedSettings
) -> Listed:
    """Return at most ``most`` images behind the cursor; perhaps none, although there are more.

    listed: how many were found before.  Raises JobError if the source cannot be read: StoreUnavailable for now.
    """
    template = read_spec(plan.spec)
    if plan.source.prefix is not None:
        return _look_at_prefix(plan, template, cursor, listed, most, tenant, store, settings)
    return _look_at_manifest(plan, template, cursor, listed, most, tenant, store, settings)


def _look_at_prefix(
    plan: BatchPlan,
    template: AnySpec,
    cursor: str,
    listed: int,
    most: int,
    tenant: str,
    store: Store,
    settings: SharedSettings,
) -> Listed:
    bucket, prefix = allowed_prefix(plan.source.prefix or "", tenant, settings)
    objects, more = store.listed_after(bucket, prefix, cursor, LISTED_AT_ONCE)
    found: list[Found] = []
    for item in objects:
        if len(found) == most:
            return Listed(tuple(found), cursor, ends=False)
        cursor = item.key
        if not _is_meant(item.key, plan.source.pattern):
            continue
        found.append(_of_object(bucket, item.key, template, listed + len(found) + 1))
    return Listed(tuple(found), cursor, ends=not more)


def count_after(
    plan: BatchPlan, after: str, most: int = LISTED_AT_ONCE, *, tenant: str, store: Store, settings: SharedSettings
) -> tuple[int, str]:
    """Count the images among the next objects under a prefix; return the last key, too: empty if there are no more.

    Raises JobError if the source cannot be read.
    """
    bucket, prefix = allowed_prefix(plan.source.prefix or "", tenant, settings)
    objects, more = store.listed_after(bucket, prefix, after, most)
    count = sum(_is_meant(item.key, plan.source.pattern) for item in objects)
    return count, objects[-1].key if objects and more else ""


def _is_meant(key: str, pattern: str) -> bool:
    name = key.rpartition("/")[2]
    # A key that ends with a slash is how consoles show an empty folder.
    return bool(name) and fnmatchcase(name, pattern)


def _of_object(bucket: str, key: str, template: AnySpec, number: int) -> Found:
    uri = f"s3://{bucket}/{key}"
    if fault := key_fault(key):
        return Found(number, key, None, uri, InvalidRequest("invalid_s3_uri", f"No job can name this object. {fault}"))
    image = ImageSource.model_construct(s3_uri=uri)  # it exists: no pattern is meant by a * in its name
    return Found(number, key, template.model_copy(update={"image": image}), uri)


def _look_at_manifest(
    plan: BatchPlan,
    template: AnySpec,
    cursor: str,
    listed: int,
    most: int,
    tenant: str,
    store: Store,
    settings: SharedSettings,
) -> Listed:
    allowed_object(plan.source.manifest or "", tenant, settings)
    bucket, key = split_s3_uri(plan.source.manifest or "")
    place = json.loads(cursor) if cursor else {"at": 0, "line": 0}
    at, line, inside = int(place["at"]), int(place["line"]), bool(place.get("inside"))
    if at >= plan.size:
        return Listed((), cursor, ends=True)
    try:
        data = store.read_part(bucket, key, at, READ_BYTES, plan.etag)
    except ObjectChanged as error:
        raise InvalidRequest(
            "manifest_changed", "The manifest was replaced while its lines became jobs; the rest was left out."
        ) from error
    ends = at + len(data) >= plan.size
    found: list[Found] = []
    begin = 0
    while begin < len(data) and len(found) < most:
        stop = data.find(b"\n", begin)
        if stop < 0 and not ends:
            if begin > 0:  # the rest of this line comes with the next look
                break
            if not inside:
                line += 1
                too_long = InvalidRequest(
                    "spec_too_large", f"Line {line}: it is longer than {MAX_LINE_BYTES // 1024} KiB."
                )
                cursor = json.dumps({"at": at + len(data), "line": line, "inside": True})
                found.append(Found(listed + 1, cursor, None, "", too_long))
            return Listed(tuple(found), json.dumps({"at": at + len(data), "line": line, "inside": True}), ends=False)
        text = data[begin : stop if stop >= 0 else len(data)]
        begin = stop + 1 if stop >= 0 else len(data)
        if inside:  # the end of a line that was too long
            inside = False
            continue
        line += 1
        if not text.strip():
            continue
        after = json.dumps({"at": at + begin, "line": line})
        found.append(_of_line(text, line, template, listed + len(found) + 1, after, tenant, settings))
    after = json.dumps({"at": at + begin, "line": line, **({"inside": True} if inside else {})})
    return Listed(tuple(found), after, ends=ends and begin >= len(data))


def _of_line(
    text: bytes, line: int, template: AnySpec, number: int, after: str, tenant: str, settings: SharedSettings
) -> Found:
    source = ""
    try:
        if len(text) > MAX_LINE_BYTES:
            raise InvalidRequest("spec_too_large", f"It is longer than {MAX_LINE_BYTES // 1024} KiB.")
        document = _document(text, template)
        source = _shown(document["image"])
        spec = parse_spec(json.dumps(document))
        _check(spec, tenant, settings)
    except JobError as error:
        return Found(number, after, None, source, InvalidRequest(error.code, f"Line {line}: {error.detail}"))
    except RecursionError:
        return Found(
            number, after, None, source, InvalidRequest("malformed_json", f"Line {line}: It is nested too deeply.")
        )
    return Found(number, after, spec, spec.image.shown)


def _document(text: bytes, template: AnySpec) -> dict[str, Any]:  # Any: JSON
    """Return the job that a line asks for, with what it does not say from the batch."""
    try:
        said = json.loads(text.decode("utf-8-sig"))
    except ValueError as error:
        raise InvalidRequest("malformed_json", f"It is not valid JSON: {error}.") from error
    if not isinstance(said, dict) or "image" not in said:
        raise InvalidRequest("invalid_spec", 'Write each line as an object, as in {"image": {"s3_uri": "s3://…"}}.')
    if unknown := sorted(set(said) - LINE_FIELDS):
        allowed = ", ".join(sorted(LINE_FIELDS))
        raise InvalidRequest("invalid_spec", f"A line may not say {', '.join(unknown)[:200]}; it may say {allowed}.")
    document = json.loads(dump_spec(template))
    if said.get("mode", document["mode"]) != document["mode"]:
        for of_mode in ("prompts", "params"):
            document.pop(of_mode, None)
    return {**document, **said}


def _shown(image: Any) -> str:  # Any: JSON
    """Return what a line that may be invalid names, as far as that can be told."""
    named = image if isinstance(image, dict) else {}
    return next((text[:500] for key in ("s3_uri", "upload_id") if isinstance(text := named.get(key), str)), "")


def _check(spec: AnySpec, tenant: str, settings: SharedSettings) -> None:
    image = spec.image
    if spec.mode == "embed":
        raise InvalidRequest("invalid_spec", "A line cannot have mode embed, which makes no masks.")
    if image.base64 is not None or image.image_id is not None:
        raise InvalidImage("image_not_stored", "Name the image by s3_uri, url or upload_id.")
    if image.s3_uri is not None:
        allowed_object(image.s3_uri, tenant, settings)
    if image.url is not None:
        try:
            check_url(image.url, settings.address_rules)
        except AddressRefused as error:
            raise InvalidRequest(error.code, error.detail) from error


def grouped(found: tuple[Found, ...], key: Callable[[AnySpec], str]) -> Iterator[tuple[Found, ...]]:
    """Yield runs of images whose jobs have the same key, which are recorded together; what becomes no job joins any."""
    run: list[Found] = []
    of_run: str | None = None
    for one in found:
        own = key(one.spec) if one.spec is not None else None
        if run and own is not None and of_run is not None and own != of_run:
            yield tuple(run)
            run, of_run = [], None
        run.append(one)
        of_run = own if of_run is None else of_run
    if run:
        yield tuple(run)
