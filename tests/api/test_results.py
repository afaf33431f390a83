"""Results and uploads: links into the object store that really work."""

from __future__ import annotations

import pytest
import requests

from maskfleet.jobs.ledger.jobs import Ledger
from maskfleet.jobs.schema.manifest import Manifest
from maskfleet.jobs.schema.record import Metrics, ResultSummary
from maskfleet.jobs.storage import Store
from tests.api.caller import Caller, check_problem, claim, job, run_to_success
from tests.api.pictures import a_picture


def test_a_result_names_its_files_with_links_that_work(apiary: Caller, ledger: Ledger, store: Store) -> None:
    job_id = apiary.a_job()
    written = run_to_success(job_id, ledger, store)

    manifest = Manifest.model_validate_json(apiary.get(f"/v1/jobs/{job_id}/result").data)

    assert manifest.model_copy(update={"files": ()}) == written.model_copy(update={"files": ()})
    assert [file.name for file in manifest.files] == ["coco.json", "masks/0000.png"]
    for file in manifest.files:
        assert file.url is not None
        response = requests.get(file.url, timeout=10)
        assert response.status_code == 200
        assert len(response.content) == file.size


def test_a_file_is_fetched_by_a_redirect(apiary: Caller, ledger: Ledger, store: Store) -> None:
    job_id = apiary.a_job()
    run_to_success(job_id, ledger, store)

    response = apiary.get(f"/v1/jobs/{job_id}/files/masks/0000.png")

    assert response.status_code == 307
    assert requests.get(response.headers["Location"], timeout=10).content == b"a mask"


@pytest.mark.parametrize(
    "name", ["masks/9999.png", "manifest.json", "../coco.json", "%2e%2e/coco.json", "%00", "a/" * 900]
)
def test_a_file_that_the_result_does_not_name_is_not_found(
    apiary: Caller, ledger: Ledger, store: Store, name: str
) -> None:
    job_id = apiary.a_job()
    run_to_success(job_id, ledger, store)

    check_problem(apiary.get(f"/v1/jobs/{job_id}/files/{name}"), 404, "file_not_found")


def test_a_job_that_has_not_ended_has_no_result_yet(apiary: Caller, ledger: Ledger) -> None:
    job_id = apiary.a_job()

    check_problem(apiary.get(f"/v1/jobs/{job_id}/result"), 409, "job_not_ended")
    claim(job_id, ledger)
    check_problem(apiary.get(f"/v1/jobs/{job_id}/files/coco.json"), 409, "job_not_ended")


def test_a_job_that_failed_says_why_in_place_of_a_result(apiary: Caller, ledger: Ledger) -> None:
    job_id = apiary.a_job()
    ledger.fail(claim(job_id, ledger), "image_corrupt", "The JPEG file is damaged.")

    problem = check_problem(apiary.get(f"/v1/jobs/{job_id}/result"), 409, "job_without_result")

    assert "image_corrupt" in problem.detail
    assert apiary.get(f"/v1/jobs/{job_id}").json["error"]["code"] == "image_corrupt"


def test_a_result_that_the_bucket_has_dropped_is_not_found(apiary: Caller, ledger: Ledger) -> None:
    job_id = apiary.a_job()
    gone = ResultSummary(prefix="gone", manifest_key="gone/manifest.json", masks=0, best_score=None, metrics=Metrics())
    ledger.succeed(claim(job_id, ledger), gone)

    problem = check_problem(apiary.get(f"/v1/jobs/{job_id}/result"), 404, "result_not_found")

    assert "send the job again as a new one" in problem.detail


def test_an_image_is_uploaded_and_then_named_in_a_job(apiary: Caller, bakery: Caller) -> None:
    picture = a_picture()

    upload = apiary.post("/v1/uploads", {"content_type": "image/jpeg", "size": len(picture)})
    shown = upload.json
    put = requests.request(shown["method"], shown["url"], data=picture, headers=shown["headers"], timeout=10)

    assert (upload.status_code, put.status_code) == (201, 200)
    assert apiary.send(job(image={"upload_id": shown["upload_id"]})).status_code == 202
    check_problem(bakery.send(job(image={"upload_id": shown["upload_id"]})), 404, "upload_not_found")


def test_the_link_of_an_upload_takes_no_other_size_or_type(apiary: Caller) -> None:
    shown = apiary.post("/v1/uploads", {"content_type": "image/jpeg", "size": 10}).json

    longer = requests.put(shown["url"], data=bytes(11), headers={"Content-Type": "image/jpeg"}, timeout=10)
    other = requests.put(shown["url"], data=bytes(10), headers={"Content-Type": "text/html"}, timeout=10)

    assert (longer.status_code, other.status_code) == (403, 403)


def test_an_uploaded_image_without_bytes_is_refused_with_the_job(apiary: Caller, store: Store) -> None:
    upload_id = "upl_" + "e" * 32
    store.put(f"uploads/apiary/{upload_id}", b"", "image/jpeg")

    check_problem(apiary.send(job(image={"upload_id": upload_id})), 422, "image_empty")


@pytest.mark.parametrize(
    ("body", "status", "code"),
    [
        ({"content_type": "image/jpeg", "size": 2**40}, 413, "image_file_too_large"),
        ({"content_type": "text/html", "size": 10}, 422, "invalid_upload"),
        ({"content_type": "image/jpeg", "size": 0}, 422, "invalid_upload"),
        ({"content_type": "image/jpeg", "size": 10**400}, 413, "image_file_too_large"),
        ({"content_type": "image/jpeg"}, 422, "invalid_upload"),
        ({"content_type": "image/jpeg", "size": 10, "name": "bee.jpg"}, 422, "invalid_upload"),
        ([], 422, "invalid_upload"),
    ],
)
def test_an_upload_at_fault_is_refused(apiary: Caller, body: object, status: int, code: str) -> None:
    check_problem(apiary.post("/v1/uploads", body), status, code)


def test_an_upload_is_asked_for_in_json(apiary: Caller) -> None:
    check_problem(apiary.post_bytes("/v1/uploads", b"{"), 400, "malformed_json")
    check_problem(apiary.post_bytes("/v1/uploads", b"{}", "text/plain"), 415, "unsupported_media_type")
