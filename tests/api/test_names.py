"""What names an image: in a job's JSON, in lists, and in webhooks."""

from __future__ import annotations

import json

import pytest

from maskfleet.jobs.ledger.jobs import Ledger
from maskfleet.jobs.schema.events import job_event
from maskfleet.jobs.storage import Store
from tests.api.caller import Caller, as_base64, check_problem, claim, job, run_to_success
from tests.api.pictures import a_picture

SIGNED = "https://example.com/tiles/7.png?x=7&X-Amz-Signature=secret"


def test_a_job_names_its_image_for_as_long_as_there_is_a_record(apiary: Caller, ledger: Ledger, store: Store) -> None:
    sent = [
        apiary.send(job(image={"s3_uri": "s3://photos/tiles/7.png"})).json,
        apiary.send(job(image={"url": SIGNED})).json,
        apiary.send(job(image={"base64": as_base64(a_picture()), "file_name": "bee.jpg"})).json,
    ]
    named = [(one["source"], one["file_name"]) for one in sent]

    run_to_success(sent[0]["id"], ledger, store)
    ended = [apiary.get(f"/v1/jobs/{one['id']}").json for one in sent]
    listed = {one["id"]: (one["source"], one["file_name"]) for one in apiary.get("/v1/jobs").json["jobs"]}

    assert named[0] == ("s3://photos/tiles/7.png", "7.png")
    assert named[1] == ("https://example.com/tiles/7.png?x=7&X-Amz-Signature=REDACTED", "7.png")
    assert named[2][0].startswith("upl_")
    assert named[2][1] == "bee.jpg"
    assert [(one["source"], one["file_name"]) for one in ended] == named
    assert [listed[one["id"]] for one in sent] == named


def test_a_multipart_image_is_named_by_its_part(apiary: Caller) -> None:
    def sent(name: str) -> str:
        parts = [("job", '{"mode": "everything"}'), ("image", (a_picture(), name, "image/jpeg"))]
        return str(apiary.post_parts(parts).json["file_name"])

    assert sent("tiles/bee.jpg") == "bee.jpg"
    assert sent("image").startswith("upl_")


def test_a_webhook_names_the_image(apiary: Caller, ledger: Ledger) -> None:
    sent = apiary.send(job(image={"s3_uri": "s3://photos/tiles/7.png"})).json
    ledger.fail(claim(sent["id"], ledger), "image_not_found", "It is not there.")
    record = ledger.read(sent["id"])
    assert record is not None

    data = job_event("failed", record, "m", "http://x").data

    assert (data.source, data.file_name) == ("s3://photos/tiles/7.png", "7.png")


def test_a_job_shows_its_spec_while_the_ledger_has_it(apiary: Caller, ledger: Ledger, store: Store) -> None:
    asked = job(
        image={"url": SIGNED},
        mode="box",
        prompts=[{"box": [1, 2, 3, 4]}],
        webhook={"url": "https://example.com/t/secret"},
    )
    first, second = apiary.send(asked).json, apiary.send(asked).json

    run_to_success(first["id"], ledger, store)
    ledger.fail(claim(second["id"], ledger), "image_not_found", "It is not there.")
    succeeded, failed = (apiary.get(f"/v1/jobs/{one['id']}").json for one in (first, second))

    assert [prompt["box"] for prompt in first["spec"]["prompts"]] == [[1.0, 2.0, 3.0, 4.0]]
    assert "secret" not in json.dumps(first)
    assert failed["spec"] == first["spec"]
    assert "spec" not in succeeded
    assert all("spec" not in one for one in apiary.get("/v1/jobs").json["jobs"])


@pytest.mark.parametrize("uri", ["s3://photos/tiles/", "s3://photos/tiles/*.png"])
def test_many_objects_are_no_image(apiary: Caller, uri: str) -> None:
    problem = check_problem(apiary.send(job(image={"s3_uri": uri})), 422, "invalid_spec")

    assert "POST /v1/batches" in problem.detail
