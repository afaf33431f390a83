"""Images that are made known: sent, shown, named by later jobs, and forgotten."""

from __future__ import annotations

import hashlib
import threading
from typing import Any

import pytest

from maskfleet.api.app import create_app
from maskfleet.jobs.ledger.jobs import Ledger
from maskfleet.jobs.schema.image import ImageView, content_name
from maskfleet.jobs.schema.record import ImageContent, JobRecord, Metrics, ResultSummary
from maskfleet.jobs.schema.spec import EmbedJob, PointJob, image_id_of
from maskfleet.jobs.status import Status
from maskfleet.jobs.storage import Store, embedding_key, source_key, upload_id_of, upload_key
from tests.api.caller import Caller, as_base64, check_problem, claim, job
from tests.api.conftest import KEYS, MODEL, OTHER_MODEL, SettingsMaker
from tests.api.pictures import a_picture
from tests.waiting import wait_until

OBJECT = {"s3_uri": "s3://photos/bee.jpg"}
POINT: dict[str, Any] = {"mode": "point", "prompts": [{"points": [[5, 5]]}]}
CONTENT = ImageContent(sha256="a1" * 32, width=64, height=48)


def made_known(caller: Caller, image: dict[str, Any] = OBJECT, **fields: Any) -> ImageView:  # Any: JSON
    response = caller.post("/v1/images", {"image": image, **fields})
    assert response.status_code == 202, response.text
    return ImageView.model_validate_json(response.data)


def encode(image: ImageView, ledger: Ledger, content: ImageContent = CONTENT) -> JobRecord:
    """Act as a worker."""
    record = claim(image.job_id, ledger)
    ledger.succeed(record, result(image.job_id, content))
    return record


def result(job_id: str, content: ImageContent | None) -> ResultSummary:
    prefix = f"results/apiary/{job_id}"
    return ResultSummary(
        prefix=f"{prefix}/",
        manifest_key=f"{prefix}/manifest.json",
        masks=0,
        best_score=None,
        metrics=Metrics(),
        image=content,
    )


def shown(caller: Caller, image: ImageView) -> ImageView:
    response = caller.get(f"/v1/images/{image.image_id}")
    assert response.status_code == 200, response.text
    return ImageView.model_validate_json(response.data)


def test_an_image_is_a_job_under_another_name(apiary: Caller, ledger: Ledger) -> None:
    image = made_known(apiary, metadata={"order": "42"}, priority="interactive", model=OTHER_MODEL)

    assert (image.status, image.model, image.metadata) == (Status.QUEUED, OTHER_MODEL, {"order": "42"})
    assert (image.sha256, image.width, image.expires_at) == (None, None, None)
    assert image.urls.self == f"http://localhost/v1/images/{image.image_id}"
    as_job = apiary.get(f"/v1/jobs/{image.job_id}").json
    assert (as_job["mode"], as_job["priority"]) == ("embed", "interactive")
    record = claim(image.job_id, ledger)
    assert isinstance(record.spec, EmbedJob)
    assert (record.spec.prompts, record.spec.outputs) == ((), ())


def test_an_encoded_image_shows_its_size_and_when_it_is_forgotten(
    apiary: Caller, ledger: Ledger, make_settings: SettingsMaker
) -> None:
    image = made_known(apiary)

    encode(image, ledger)

    after = shown(apiary, image)
    assert (after.status, after.sha256, after.width, after.height) == (Status.SUCCEEDED, CONTENT.sha256, 64, 48)
    ended_at = apiary.get(f"/v1/jobs/{image.job_id}").json["ended_at"]
    assert after.expires_at is not None
    seconds = (after.expires_at - type(after.created_at).fromisoformat(ended_at)).total_seconds()
    assert seconds == make_settings().retention_s


@pytest.mark.parametrize("as_part", [True, False])
def test_an_image_may_come_with_the_request(apiary: Caller, ledger: Ledger, store: Store, as_part: bool) -> None:
    picture = a_picture((64, 48 + as_part))

    if as_part:
        response = apiary.post_parts([("image", (picture, "bee.jpg", "image/jpeg"))], path="/v1/images")
    else:
        response = apiary.post("/v1/images", {"image": {"base64": as_base64(picture)}})

    assert response.status_code == 202, response.text
    record = claim(response.json["job_id"], ledger)
    assert store.read(upload_key("apiary", str(record.spec.image.upload_id))) == picture


def test_the_part_beside_an_image_may_say_more(apiary: Caller, ledger: Ledger) -> None:
    parts = [("image", (a_picture(), "bee.jpg", "image/jpeg")), ("job", '{"metadata": {"order": "1"}}')]

    response = apiary.post_parts(parts, path="/v1/images")

    assert response.json["metadata"] == {"order": "1"}


@pytest.mark.parametrize(
    "body",
    [
        {},
        {"image": OBJECT, "mode": "embed"},
        {"image": OBJECT, "outputs": ["coco"]},
        {"image": OBJECT, "prompts": [{"points": [[1, 2]]}]},
        {"image": {}},
    ],
)
def test_what_is_no_image_to_make_known_is_refused(apiary: Caller, body: dict[str, Any]) -> None:
    check_problem(apiary.post("/v1/images", body), 422, "invalid_spec")


def test_bad_images_and_foreign_objects_are_refused_as_for_jobs(apiary: Caller) -> None:
    missing = {"image": {"upload_id": "upl_" + "1" * 32}}
    foreign = {"image": {"s3_uri": "s3://elsewhere/bee.jpg"}}
    page = {"image": {"base64": as_base64(b"<html></html>")}}

    check_problem(apiary.post("/v1/images", missing), 404, "upload_not_found")
    check_problem(apiary.post("/v1/images", foreign), 403, "bucket_not_allowed")
    check_problem(apiary.post("/v1/images", page), 422, "not_an_image")


def test_the_same_key_returns_the_same_image(apiary: Caller) -> None:
    first, again = (apiary.post("/v1/images", {"image": OBJECT}, Idempotency_Key="bee") for _ in range(2))

    assert first.json["image_id"] == again.json["image_id"]
    assert again.headers["Idempotency-Replayed"] == "true"
    other = apiary.post("/v1/images", {"image": {"s3_uri": "s3://photos/wasp.jpg"}}, Idempotency_Key="bee")
    check_problem(other, 422, "idempotency_key_reused")


def test_images_count_among_the_jobs_in_flight(make_settings: SettingsMaker, ledger: Ledger) -> None:
    limited = Caller(create_app(make_settings(max_jobs_in_flight=1)), KEYS["apiary"])
    made_known(limited)

    check_problem(limited.post("/v1/images", {"image": OBJECT}), 429, "too_many_jobs_in_flight")


def test_a_response_is_held_until_the_image_is_encoded(apiary: Caller, ledger: Ledger) -> None:
    answers: list[Any] = []

    def send() -> None:
        answers.append(apiary.post("/v1/images", {"image": OBJECT}, Prefer="wait=30"))

    sender = threading.Thread(target=send)
    sender.start()
    [record] = wait_until(lambda: ledger.page_of("apiary", limit=1).records)
    ledger.succeed(claim(record.id, ledger), result(record.id, CONTENT))
    sender.join(30)

    assert (answers[0].status_code, answers[0].json["sha256"]) == (200, CONTENT.sha256)
    assert answers[0].headers["Preference-Applied"] == "wait=30"
    late = apiary.get(f"/v1/images/{answers[0].json['image_id']}", Prefer="wait=30")
    assert "Preference-Applied" not in late.headers


def test_a_job_that_names_an_image_is_of_its_source_and_pinned_to_its_bytes(apiary: Caller, ledger: Ledger) -> None:
    image = made_known(apiary)
    encode(image, ledger)

    record = claim(apiary.a_job(image={"image_id": image.image_id}, **POINT), ledger)

    assert isinstance(record.spec, PointJob)
    assert record.spec.image.model_dump(exclude_none=True) == {**OBJECT, "sha256": CONTENT.sha256}


def test_a_job_may_name_an_image_that_is_not_encoded_yet(apiary: Caller, ledger: Ledger) -> None:
    image = made_known(apiary, {"base64": as_base64(a_picture())})

    clicked = apiary.a_job(image={"image_id": image.image_id}, **POINT)

    claim(image.job_id, ledger)
    record = claim(clicked, ledger)
    assert record.spec.image.upload_id == upload_id_of(a_picture())
    assert record.spec.image.sha256 is None


def test_prompts_outside_a_known_image_are_refused_at_once(apiary: Caller, ledger: Ledger) -> None:
    image = made_known(apiary)
    encode(image, ledger)

    response = apiary.send({"mode": "point", "image": {"image_id": image.image_id}, "prompts": [{"points": [[70, 5]]}]})

    check_problem(response, 422, "point_outside_image")


def test_a_repeated_job_on_an_image_is_the_same_one_before_and_after_it_is_encoded(
    apiary: Caller, ledger: Ledger
) -> None:
    image = made_known(apiary)
    body = {**POINT, "image": {"image_id": image.image_id}}
    single = apiary.send(body, Idempotency_Key="click").json["id"]
    batch = {**POINT, "images": [{"image_id": image.image_id}]}
    several = apiary.post("/v1/batches", batch, Idempotency_Key="clicks").json["id"]

    encode(image, ledger)

    assert apiary.send(body, Idempotency_Key="click").json["id"] == single
    assert apiary.post("/v1/batches", batch, Idempotency_Key="clicks").json["id"] == several


def test_an_image_of_a_batch_may_be_a_known_one(apiary: Caller, ledger: Ledger) -> None:
    image = made_known(apiary)
    encode(image, ledger)

    sent = apiary.post("/v1/batches", {**POINT, "images": [OBJECT, {"image_id": image.image_id}]})
    unknown = apiary.post("/v1/batches", {**POINT, "images": [OBJECT, {"image_id": "img_" + "0" * 32}]})

    records = [claim(job_id, ledger) for job_id in sent.json["job_ids"]]
    assert [record.spec.image.sha256 for record in records] == [None, CONTENT.sha256]
    problem = check_problem(unknown, 422, "image_not_known")
    assert [fault.pointer for fault in problem.errors or ()] == ["/images/1"]


def test_an_image_can_be_made_known_to_another_model_by_its_id(apiary: Caller, ledger: Ledger) -> None:
    image = made_known(apiary)
    encode(image, ledger)

    other = made_known(apiary, {"image_id": image.image_id}, model=OTHER_MODEL)

    record = claim(other.job_id, ledger)
    assert (record.spec.image.s3_uri, record.spec.image.sha256) == (OBJECT["s3_uri"], CONTENT.sha256)
    assert record.summary.source == record.spec.image


@pytest.mark.parametrize("why", ["unknown", "of another tenant", "of no image", "failed", "canceled"])
def test_an_image_that_is_not_known_is_refused_with_what_to_do(
    apiary: Caller, bakery: Caller, ledger: Ledger, why: str
) -> None:
    image_id = "img_" + "0" * 32
    if why == "of another tenant":
        image_id = made_known(bakery).image_id
    elif why == "of no image":
        image_id = image_id_of(apiary.a_job())
    elif why == "failed":
        image = made_known(apiary)
        ledger.fail(claim(image.job_id, ledger), "image_corrupt", "The JPEG file is damaged.")
        image_id = image.image_id
    elif why == "canceled":
        image = made_known(apiary)
        ledger.cancel(image.job_id, "apiary")
        image_id = image.image_id

    problem = check_problem(apiary.send({**POINT, "image": {"image_id": image_id}}), 422, "image_not_known")

    assert [fault.pointer for fault in problem.errors or ()] == ["/image/image_id"]
    assert "POST /v1/images" in problem.detail
    assert ("image_corrupt" in problem.detail) == (why == "failed")


def test_another_tenants_image_looks_like_none(apiary: Caller, bakery: Caller, ledger: Ledger) -> None:
    image = made_known(bakery)
    encode(image, ledger)
    body = {**POINT, "image": {"image_id": image.image_id}}
    unknown = {**POINT, "image": {"image_id": "img_" + "0" * 32}}

    foreign, missing = (
        apiary.send(one).json["detail"].replace(image.image_id, "img_" + "0" * 32) for one in (body, unknown)
    )

    assert foreign == missing
    check_problem(apiary.get(f"/v1/images/{image.image_id}"), 404, "image_not_known")
    check_problem(apiary.delete(f"/v1/images/{image.image_id}"), 404, "image_not_known")


def refining(job_id: str, **more: Any) -> dict[str, Any]:
    prompt = {"points": [[5, 5]], "mask_input": {"job_id": job_id, "mask": 0}}
    return {"mode": "point", "prompts": [prompt, prompt], **more}


def test_a_refinement_may_leave_its_image_out(apiary: Caller, ledger: Ledger) -> None:
    first = apiary.a_job(image=OBJECT, outputs=["logits"], **POINT)
    ledger.succeed(claim(first, ledger), result(first, CONTENT))

    refined = claim(str(apiary.send(refining(first)).json["id"]), ledger)

    assert refined.spec.image.model_dump(exclude_none=True) == {**OBJECT, "sha256": CONTENT.sha256}


def test_a_refinement_must_name_its_image_where_the_earlier_job_has_not_kept_it(apiary: Caller, ledger: Ledger) -> None:
    batch = {**POINT, "images": [OBJECT, {"s3_uri": "s3://photos/wasp.jpg"}], "outputs": ["logits"]}
    [of_batch, _] = apiary.post("/v1/batches", batch).json["job_ids"]
    single, other = (apiary.a_job(image=OBJECT, outputs=["logits"], **POINT) for _ in range(2))
    two = refining(single)
    two["prompts"] = [two["prompts"][0], refining(other)["prompts"][0]]

    check_problem(apiary.send(refining(of_batch)), 422, "image_not_known")
    problem = check_problem(apiary.send(two), 422, "invalid_spec")
    assert [(fault.pointer, fault.code) for fault in problem.errors or ()] == [("/image", "missing")]
    assert apiary.send({**two, "image": OBJECT}).status_code == 202


def test_a_deleted_image_leaves_nothing_in_the_store(
    apiary: Caller, bakery: Caller, ledger: Ledger, store: Store
) -> None:
    picture = a_picture((63, 47))
    image = made_known(apiary, {"base64": as_base64(picture)})
    sha256 = hashlib.sha256(picture).hexdigest()
    encode(image, ledger, CONTENT.model_copy(update={"sha256": sha256}))
    own = [
        embedding_key("apiary", "1" * 32, sha256),
        embedding_key("apiary", "2" * 32, sha256),
        source_key("apiary", f"upload:{upload_id_of(picture)}"),
        source_key("apiary", content_name(sha256)),
    ]
    others = [embedding_key("bakery", "1" * 32, sha256), embedding_key("apiary", "1" * 32, "b" * 64)]
    for key in (*own, *others):
        store.put(key, b"something", "application/octet-stream")

    response = apiary.delete(f"/v1/images/{image.image_id}")

    assert response.status_code == 204
    assert [store.head(key) for key in own] == [None] * 4
    assert all(store.head(key) for key in others)
    check_problem(apiary.get(f"/v1/images/{image.image_id}"), 404, "image_not_known")
    check_problem(apiary.send({**POINT, "image": {"image_id": image.image_id}}), 422, "image_not_known")


def test_an_image_that_is_being_encoded_is_not_deleted(apiary: Caller, ledger: Ledger) -> None:
    image = made_known(apiary)

    check_problem(apiary.delete(f"/v1/images/{image.image_id}"), 409, "job_not_ended")


def test_a_job_is_no_image(apiary: Caller) -> None:
    image_id = image_id_of(apiary.a_job())

    check_problem(apiary.get(f"/v1/images/{image_id}"), 404, "image_not_known")
    check_problem(apiary.get("/v1/images/bee"), 404, "image_not_known")


def test_mode_embed_is_taken_with_the_other_modes_too(apiary: Caller) -> None:
    job_id = apiary.a_job(mode="embed")

    assert apiary.get(f"/v1/images/{image_id_of(job_id)}").json["job_id"] == job_id
    assert apiary.send(job(mode="embed", outputs=["coco"])).status_code == 422
    assert apiary.get(f"/v1/jobs/{job_id}").json["model"] == MODEL
