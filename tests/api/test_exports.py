"""``POST /v1/jobs/{id}/export``: which jobs may be exported, and what the new one is."""

from __future__ import annotations

from typing import Any

import pytest

from maskfleet.jobs.ledger.jobs import Ledger
from maskfleet.jobs.ledger.workers import WorkerRegistry, WorkerSeen
from maskfleet.jobs.schema.inline import InlineMasks
from maskfleet.jobs.schema.manifest import Manifest
from maskfleet.jobs.schema.record import ImageContent
from maskfleet.jobs.schema.spec import ExportJob
from maskfleet.jobs.storage import Store, manifest_key
from tests.api.caller import Caller, as_base64, check_problem, claim, run_to_success
from tests.api.conftest import MODEL
from tests.api.pictures import a_picture

SHA256 = "a1" * 32
IMAGE = {"s3_uri": "s3://photos/bee.jpg"}


def succeeded(apiary: Caller, ledger: Ledger, store: Store, **changes: Any) -> str:  # Any: JSON
    """Return a job whose result is that of ``run_to_success``, with a test's own changes."""
    image = changes.pop("image", IMAGE)
    job_id = apiary.a_job(image=image)
    manifest = run_to_success(job_id, ledger, store)
    fields = {
        "spec": {"mode": "everything", "image": image},
        "file_name": "bee.jpg",
        "image": ImageContent(sha256=SHA256, width=64, height=48),
        **changes,
    }
    whole = Manifest.model_validate({**manifest.model_dump(), **fields})
    store.put(manifest_key("apiary", job_id), whole.model_dump_json().encode(), "application/json")
    return job_id


def test_an_export_is_a_job_of_its_own(apiary: Caller, ledger: Ledger, store: Store) -> None:
    job_id = succeeded(apiary, ledger, store)
    body = {"outputs": ["svg", "overlay"], "overlay_format": "webp", "priority": "bulk", "metadata": {"order": "42"}}

    response = apiary.post(f"/v1/jobs/{job_id}/export", body, Idempotency_Key="one")
    again = apiary.post(f"/v1/jobs/{job_id}/export", body, Idempotency_Key="one")

    assert response.status_code == 202, response.text
    view = response.json
    assert response.headers["Location"] == view["urls"]["self"]
    assert (view["mode"], view["status"], view["model"], view["priority"]) == ("export", "queued", MODEL, "bulk")
    assert (view["outputs"], view["metadata"], view["from_job"]) == (["svg", "overlay"], {"order": "42"}, job_id)
    assert (again.json["id"], again.headers["Idempotency-Replayed"]) == (view["id"], "true")
    record = claim(view["id"], ledger)
    assert record.queue == "sam.outputs.bulk"
    assert isinstance(record.spec, ExportJob)
    assert (record.spec.from_job, record.spec.model, record.spec.overlay_format) == (job_id, MODEL, "webp")
    assert record.spec.image.model_dump(exclude_none=True) == {**IMAGE, "sha256": SHA256, "file_name": "bee.jpg"}
    assert [one["id"] for one in apiary.get("/v1/jobs").json["jobs"]] == [view["id"], job_id]


def test_its_place_is_that_among_jobs_which_need_no_model(
    apiary: Caller, ledger: Ledger, store: Store, worker_registry: WorkerRegistry
) -> None:
    job_id = succeeded(apiary, ledger, store)
    for _ in range(3):
        apiary.a_job()
    ids = [apiary.post(f"/v1/jobs/{job_id}/export", {"outputs": ["svg"]}).json["id"] for _ in range(2)]

    assert [apiary.get(f"/v1/jobs/{one}").json["queue_position"] for one in ids] == [0, 1]
    ledger.succeed(claim(ids[0], ledger), ledger.read(job_id).result)  # type: ignore[union-attr,arg-type]  # it has one
    assert apiary.get(f"/v1/jobs/{ids[1]}").json["starts_in_s"] is None
    worker_registry.announce(WorkerSeen("sam-gpu0@a", MODEL, "cuda", 1, 0, outputs=True))
    assert apiary.get(f"/v1/jobs/{ids[1]}").json["starts_in_s"] is not None
    listed = {one["id"]: one for one in apiary.get("/v1/jobs").json["jobs"]}
    assert listed[ids[1]]["starts_in_s"] is not None
    assert apiary.get("/v1/models").json["models"][0]["ready_workers"] == 1


def test_a_job_that_has_no_result_is_not_exported(apiary: Caller, bakery: Caller, ledger: Ledger, store: Store) -> None:
    waiting, failed, foreign = apiary.a_job(), apiary.a_job(), succeeded(bakery, ledger, store)
    ledger.fail(claim(failed, ledger), "image_corrupt", "The JPEG file is damaged.")
    ask = {"outputs": ["svg"]}

    check_problem(apiary.post(f"/v1/jobs/{waiting}/export", ask), 409, "job_not_ended")
    check_problem(apiary.post(f"/v1/jobs/{failed}/export", ask), 409, "job_without_result")
    check_problem(apiary.post(f"/v1/jobs/{foreign}/export", ask), 404, "job_not_found")


@pytest.mark.parametrize(
    "changes",
    [
        {"mode": "embed", "spec": {"mode": "embed", "image": IMAGE}, "masks": (), "files": ()},
        {"files": ()},
        {"files": (), "inline": InlineMasks(form="polygons", image_width=64, image_height=48, masks=())},
        {"spec": None},
    ],
    ids=["embed", "nothing", "polygons", "of an early version"],
)
def test_masks_that_were_not_kept_cannot_be_exported(
    apiary: Caller, ledger: Ledger, store: Store, changes: dict[str, Any]
) -> None:
    job_id = succeeded(apiary, ledger, store, **changes)

    check_problem(apiary.post(f"/v1/jobs/{job_id}/export", {"outputs": ["svg"]}), 409, "masks_not_kept")


def test_an_overlay_of_an_image_that_is_not_there_is_refused_at_once(
    apiary: Caller, ledger: Ledger, store: Store
) -> None:
    signed = {"url": "https://example.com/bee.jpg?sig=REDACTED&v=1"}
    by_link = succeeded(apiary, ledger, store, spec={"mode": "everything", "image": signed})
    gone = {"upload_id": f"upl_{'0' * 32}"}
    uploaded = succeeded(apiary, ledger, store, spec={"mode": "everything", "image": gone})
    ask = {"outputs": ["coco", "overlay"]}

    check_problem(apiary.post(f"/v1/jobs/{by_link}/export", ask), 409, "image_not_kept")
    check_problem(apiary.post(f"/v1/jobs/{uploaded}/export", ask), 404, "upload_not_found")
    for job_id in (by_link, uploaded):
        assert apiary.post(f"/v1/jobs/{job_id}/export", {"outputs": ["coco"]}).status_code == 202


def test_what_no_export_can_be_is_refused(apiary: Caller, ledger: Ledger, store: Store) -> None:
    path = f"/v1/jobs/{succeeded(apiary, ledger, store)}/export"

    problem = check_problem(apiary.post(path, {"outputs": ["svg", "logits"]}), 422, "logits_not_exported")
    assert problem.errors is not None
    assert problem.errors[0].pointer == "/outputs/1"
    for body in ({}, {"outputs": []}, {"outputs": ["tiff"]}, {"outputs": ["svg"], "mode": "export"}):
        check_problem(apiary.post(path, body), 422, "invalid_spec")
    private = {"outputs": ["svg"], "webhook": {"url": "https://127.0.0.1/hook"}}
    check_problem(apiary.post(path, private), 422, "url_not_allowed")
    job = {"mode": "export", "from_job": f"job_{'0' * 32}", "image": IMAGE, "outputs": ["svg"]}
    check_problem(apiary.send(job), 422, "invalid_spec")


def test_it_counts_like_any_other_job(apiary: Caller, ledger: Ledger, store: Store, make_settings: Any) -> None:
    from maskfleet.api.app import create_app

    job_id = succeeded(apiary, ledger, store)
    busy = Caller(create_app(make_settings(max_jobs_in_flight=1)), apiary.key)
    first = busy.post(f"/v1/jobs/{job_id}/export", {"outputs": ["svg"]})

    assert first.status_code == 202
    check_problem(busy.post(f"/v1/jobs/{job_id}/export", {"outputs": ["svg"]}), 429, "too_many_jobs_in_flight")
    assert busy.post(f"/v1/jobs/{first.json['id']}/cancel").json["status"] == "canceled"


def test_an_upload_is_known_by_its_id(apiary: Caller, ledger: Ledger, store: Store) -> None:
    job_id = apiary.a_job(image={"base64": as_base64(a_picture())})
    record = claim(job_id, ledger)
    upload_id = record.spec.image.upload_id
    assert upload_id is not None
    assert ledger.release(record, delay_s=0, charged=False) == "ok"
    manifest = run_to_success(job_id, ledger, store)
    spec = {"mode": "everything", "image": {"upload_id": upload_id}}
    whole = manifest.model_copy(update={"spec": spec})
    store.put(manifest_key("apiary", job_id), whole.model_dump_json().encode(), "application/json")

    view = apiary.post(f"/v1/jobs/{job_id}/export", {"outputs": ["overlay"]}).json

    assert view["source"] == upload_id
