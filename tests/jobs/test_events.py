"""The content and size of a webhook."""

from __future__ import annotations

import json

import pytest

from maskfleet.jobs.schema.batch import BatchCounts, BatchRecord
from maskfleet.jobs.schema.events import MAX_BODY_BYTES, batch_event, job_event
from maskfleet.jobs.schema.record import JobRecord, Metrics, ResultSummary
from maskfleet.jobs.schema.spec import MAX_METADATA_KEYS, EventName

RESULT = ResultSummary(
    prefix="results/ant/" + "x" * 200, manifest_key="m" * 200, masks=10**6, best_score=1 / 3, metrics=Metrics()
)


def a_record(status: str, metadata: dict[str, str], **fields: str) -> JobRecord:
    spec = {"mode": "everything", "image": {"url": "https://example.com/bee.jpg"}, "metadata": metadata}
    return JobRecord.from_fields(
        {
            "id": "job_" + "a" * 32,
            "tenant": "ant",
            "queue": "sam.m.normal",
            "status": status,
            "spec": json.dumps({**spec, "model": "m" * 200}),
            "created_ms": "1000",
            "started_ms": "2500",
            "ended_ms": "4000",
            "attempt": "1",
            "fence": "1",
            **fields,
        }
    )


def metadata_of(char: str) -> dict[str, str]:
    """Return as much metadata as a job may have."""
    return {f"{number:02}{char * 62}": char * 512 for number in range(MAX_METADATA_KEYS)}


@pytest.mark.parametrize("char", ["x", "é", "蜂", "🐝", "\x01", '"'])
def test_the_largest_body_is_below_what_standard_webhooks_ask_for(char: str) -> None:
    succeeded = a_record("succeeded", metadata_of(char), result=RESULT.model_dump_json())
    failed = a_record("failed", metadata_of(char), error_code="internal_error", error_detail=char * 100_000)

    bodies = [
        job_event(str(record.status), record, "m", f"https://{'x' * 200}").model_dump_json()
        for record in (succeeded, failed)
    ]

    assert max(len(body.encode()) for body in bodies) < MAX_BODY_BYTES


def test_plain_metadata_is_told_whole_and_what_would_be_too_long_is_left_out() -> None:
    plain, long = metadata_of("x"), metadata_of("🐝")

    told = [job_event("succeeded", a_record("succeeded", metadata), "m", "https://x") for metadata in (plain, long)]

    assert [event.data.metadata for event in told] == [plain, None]


def test_an_end_is_told_in_counts_and_links_and_never_in_masks() -> None:
    record = a_record("succeeded", {"order": "42"}, result=RESULT.model_dump_json())

    body = json.loads(job_event("succeeded", record, "m", "https://x").model_dump_json())

    assert set(body) == {"type", "timestamp", "data"}
    assert (body["type"], body["timestamp"]) == ("job.succeeded", "1970-01-01T00:00:04Z")
    data = body["data"]
    assert (data["status"], data["masks"], data["best_score"]) == ("succeeded", 10**6, RESULT.best_score)
    assert (data["queue_s"], data["run_s"], data["metadata"]) == (1.5, 1.5, {"order": "42"})
    assert data["urls"]["result"] == f"https://x/v1/jobs/{record.id}/result"
    assert "prompts" not in data
    assert "image" not in data


def test_a_start_is_told_with_the_time_and_the_state_of_it() -> None:
    event = job_event(EventName.STARTED, a_record("processing", {}), "m", "https://x")

    assert (event.type, str(event.data.status), event.timestamp.timestamp()) == ("job.started", "processing", 2.5)


@pytest.mark.parametrize(("char", "kept"), [("x", True), ("蜂", False)])
def test_the_largest_body_of_a_batch_is_below_that_too(char: str, kept: bool) -> None:
    counts = BatchCounts(queued=0, processing=0, succeeded=997, failed=1, canceled=1, expired=1)
    record = BatchRecord("batch_" + "a" * 32, "ant", 1000, 4000, 1, counts, metadata_of(char))

    event = batch_event(record, f"https://{'x' * 200}")

    assert len(event.model_dump_json().encode()) < MAX_BODY_BYTES
    assert (event.data.metadata == record.metadata) is kept
    assert (event.data.total, event.timestamp.timestamp()) == (1000, 4)
