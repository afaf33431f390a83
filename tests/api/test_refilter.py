"""``POST /v1/jobs/{id}/refilter``: which jobs' candidates may be filtered again, and what the new job is."""

from __future__ import annotations

import pytest

from maskfleet.jobs.ledger.jobs import Ledger
from maskfleet.jobs.schema.manifest import CANDIDATES_FILE, Manifest, ManifestFile, SegmentedBy
from maskfleet.jobs.schema.spec import EverythingParams, RefilterJob
from maskfleet.jobs.storage import Store, manifest_key, result_prefix
from tests.api.caller import Caller, check_problem, claim
from tests.api.conftest import MODEL
from tests.api.test_exports import IMAGE, SHA256, succeeded

#: The job's own threshold is lower than the one to keep.
PARAMS = {"keep_candidates": True, "keep_pred_iou_thresh": 0.5, "stability_score_thresh": 0.75, "crops_n_layers": 1}
SPEC = {"mode": "everything", "image": IMAGE, "params": PARAMS}


def keeping(apiary: Caller, ledger: Ledger, store: Store) -> str:
    """Return a job that has kept its candidates."""
    job_id = succeeded(apiary, ledger, store, spec=SPEC)
    key = manifest_key("apiary", job_id)
    manifest = Manifest.model_validate_json(store.read(key))
    kept = ManifestFile(
        name=CANDIDATES_FILE,
        key=f"{result_prefix('apiary', job_id)}/{CANDIDATES_FILE}",
        size=1,
        sha256=SHA256,
        content_type="application/zip",
    )
    whole = manifest.model_copy(update={"files": (*manifest.files, kept)})
    store.put(key, whole.model_dump_json().encode(), "application/json")
    return job_id


def test_it_is_a_job_of_its_own_with_the_earlier_ones_parameters_but_for_those_given(
    apiary: Caller, ledger: Ledger, store: Store
) -> None:
    job_id = keeping(apiary, ledger, store)
    body = {"params": {"pred_iou_thresh": 0.5, "min_mask_area": 40}, "priority": "bulk", "inline": "rle"}

    response = apiary.post(f"/v1/jobs/{job_id}/refilter", body, Idempotency_Key="one")
    again = apiary.post(f"/v1/jobs/{job_id}/refilter", body, Idempotency_Key="one")

    assert response.status_code == 202, response.text
    view = response.json
    assert (view["mode"], view["status"], view["model"], view["from_job"]) == ("refilter", "queued", MODEL, job_id)
    assert (view["outputs"], again.json["id"]) == (["coco"], view["id"])
    record = claim(view["id"], ledger)
    assert record.queue == "sam.outputs.bulk"
    assert isinstance(record.spec, RefilterJob)
    expected = {**PARAMS, "keep_candidates": False, "pred_iou_thresh": 0.5, "min_mask_area": 40}
    assert record.spec.params == EverythingParams.model_validate(expected)
    assert record.spec.image.model_dump(exclude_none=True) == {**IMAGE, "sha256": SHA256, "file_name": "bee.jpg"}


@pytest.mark.parametrize(
    ("name", "value", "least"), [("pred_iou_thresh", 0.49, "0.5"), ("stability_score_thresh", 0.7, "0.75")]
)
def test_a_threshold_below_what_was_kept_is_refused_with_the_lowest_that_will_do(
    apiary: Caller, ledger: Ledger, store: Store, name: str, value: float, least: str
) -> None:
    path = f"/v1/jobs/{keeping(apiary, ledger, store)}/refilter"

    problem = check_problem(apiary.post(path, {"params": {name: value}}), 422, "threshold_not_kept")

    assert problem.errors is not None
    assert problem.errors[0].pointer == f"/params/{name}"
    assert f"Give {least} or more" in problem.errors[0].detail
    assert apiary.post(path, {"params": {name: float(least)}}).status_code == 202


def test_only_kept_candidates_can_be_filtered(apiary: Caller, ledger: Ledger, store: Store) -> None:
    plain = succeeded(apiary, ledger, store)
    origin = SegmentedBy(job_id=f"job_{'5' * 32}", mode="everything", spec=SPEC)
    derived = succeeded(apiary, ledger, store, segmented_by=origin)
    waiting = apiary.a_job()

    refused = check_problem(apiary.post(f"/v1/jobs/{plain}/refilter", {}), 409, "candidates_not_kept")
    directed = check_problem(apiary.post(f"/v1/jobs/{derived}/refilter", {}), 409, "candidates_not_kept")

    assert "keep_candidates" in (refused.detail or "")
    assert origin.job_id in (directed.detail or "")
    check_problem(apiary.post(f"/v1/jobs/{waiting}/refilter", {}), 409, "job_not_ended")


def test_what_nothing_can_be_filtered_with_is_refused(apiary: Caller, ledger: Ledger, store: Store) -> None:
    path = f"/v1/jobs/{keeping(apiary, ledger, store)}/refilter"

    for body in ({"params": {"points_per_crop": 8}}, {"params": {"pred_iou_thresh": 2}}, {"outputs": []}, {"mask": 1}):
        check_problem(apiary.post(path, body), 422, "invalid_spec")
    check_problem(apiary.post(path, {"outputs": ["logits"]}), 422, "logits_not_exported")
    check_problem(apiary.send({"mode": "refilter", "from_job": "job_1", "image": IMAGE}), 422, "invalid_spec")
