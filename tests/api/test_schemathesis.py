"""Schemathesis: what the OpenAPI document allows, and what it forbids, sent to the API on its real Redis and S3.

Every check of Schemathesis runs on every response: no 5xx, the documented status, type, headers and body,
what the schema forbids is refused, what it allows is accepted, nothing without the key.

    make fuzz        # the same with more examples: at least 2,000 requests
"""

from __future__ import annotations

import logging
import os
import re
import zlib
from collections import Counter
from collections.abc import Iterator
from functools import partial
from unittest import SkipTest

import pytest
import redis
import schemathesis
import structlog
from hypothesis import HealthCheck, settings
from schemathesis.checks import load_all_checks
from schemathesis.generation.feedback import FeedbackSources
from schemathesis.pytest._test_builder import build_operation_test
from schemathesis.schemas import BaseSchema

from maskfleet.api.app import create_app
from maskfleet.api.openapi import DELIVERY_ID, document
from maskfleet.jobs.ledger.jobs import Ledger
from maskfleet.jobs.schema.wire import BATCH_ID, IMAGE_ID
from maskfleet.jobs.settings import ApiSettings
from maskfleet.jobs.storage import Store
from tests.api.caller import Caller, claim, run_to_success
from tests.api.conftest import KEYS, SettingsMaker

#: Examples for each operation, in addition to those that Schemathesis derives from the schema.
EXAMPLES = int(os.environ.get("FUZZ_EXAMPLES", "10"))
#: The minimum number of requests that a run with that many examples must make.
MANY, AT_LEAST = 100, 2000

# A schema cannot say what depends on the image, the settings or the store: a point outside it, an unknown model, a
# cursor that was never issued.  The API responds with these.
_TAKEN = ["2xx", "3xx", "401", "403", "404", "409", "413", "422", "429"]
# A body with too many parts is refused before it is read.
_REFUSED = ["400", "401", "403", "404", "405", "406", "409", "413", "415", "422", "429"]
#: Each operation of the document, as Schemathesis names it.
OPERATIONS = [
    f"{method.upper()} {path}"
    for path, methods in document(create_app(ApiSettings()))["paths"].items()
    for method in methods
    if method != "parameters"
]
#: The requests sent, for each operation.
sent: Counter[str] = Counter()


@pytest.fixture(scope="module", autouse=True)
def _few_lines() -> Iterator[None]:
    """Keep the log of thousands of requests out of a failure report."""
    before = structlog.get_config()
    structlog.configure(wrapper_class=structlog.make_filtering_bound_logger(logging.ERROR))
    yield
    structlog.configure(**before)


@pytest.fixture(scope="module")
def schema(make_settings: SettingsMaker) -> Iterator[BaseSchema]:
    """The document and the app, with no waits and short streams."""
    app = create_app(make_settings(max_wait_s=0, max_stream_s=1))
    schema = schemathesis.openapi.from_dict(document(app))
    schema.app = app
    # The key is always sent; the check `ignored_auth` itself tries none and a made-up one.
    schema.config.generation.with_security_parameters = False
    schema.config.checks.positive_data_acceptance.expected_statuses = _TAKEN
    schema.config.checks.negative_data_rejection.expected_statuses = _REFUSED
    load_all_checks()
    yield schema
    print(f"{sent.total()} requests: {dict(sent)}")  # noqa: T201
    assert EXAMPLES < MANY or sent.total() >= AT_LEAST


@pytest.mark.parametrize("operation", OPERATIONS)
def test_every_answer_is_as_the_document_says(
    operation: str, schema: BaseSchema, apiary: Caller, ledger: Ledger, store: Store, redis_client: redis.Redis
) -> None:
    """Do what `schema.parametrize()` does, but make the requests when the test runs, not when it is collected.

    Making them takes five seconds, and every process that runs a part of the suite collects all of it.
    """
    # The ledger is empty; the app must not think that it lost the one before.
    redis_client.hset("mf:epoch", "id", "0" * 32)
    offered = {found.ok().label: found.ok() for found in schema.get_all_operations()}
    make = partial(build_operation_test, config=schema.config, given_kwargs={}, feedback=FeedbackSources())

    try:
        make(operation=offered[operation], test_func=answers_as_the_document_says)(
            apiary=apiary, ledger=ledger, store=store
        )
    except SkipTest as none:  # nothing was sent, or not all that should have been
        pytest.fail(str(none))

    assert sent[operation] > 0


# The suite sends the same requests every time; a long run explores further each time.
@settings(max_examples=EXAMPLES, derandomize=EXAMPLES < MANY, deadline=None, suppress_health_check=list(HealthCheck))
def answers_as_the_document_says(case: schemathesis.Case, apiary: Caller, ledger: Ledger, store: Store) -> None:
    given = str(case.path_parameters.get("job_id", ""))
    if given.startswith("job_") and len(given) == 36:
        # A generated id never belongs to a real job; most should.
        case.path_parameters["job_id"] = _a_real_job(given, case.path.endswith("/events"), apiary, ledger, store)
    if "image_id" in case.path_parameters:
        case.path_parameters["image_id"] = _a_real_image(str(case.path_parameters["image_id"]), apiary, ledger)
    if "batch_id" in case.path_parameters:
        case.path_parameters["batch_id"] = _a_real_batch(str(case.path_parameters["batch_id"]), apiary, ledger)
    if "delivery_id" in case.path_parameters:
        case.path_parameters["delivery_id"] = _a_real_delivery(str(case.path_parameters["delivery_id"]), apiary, ledger)
    sent[case.operation.label] += 1

    case.call_and_validate(headers={"Authorization": f"Bearer {KEYS['apiary']}"})


def _a_real_job(given: str, ended: bool, apiary: Caller, ledger: Ledger, store: Store) -> str:
    """Create a job in a state derived from the id, so that the same case finds the same state; sometimes none."""
    states = ("succeeded", "failed", "unknown") if ended else ("queued", "succeeded", "failed", "processing", "unknown")
    state = states[zlib.crc32(given.encode()) % len(states)]
    if state == "unknown":
        return given
    job_id = apiary.a_job(image={"url": "https://example.com/bee.jpg"})
    if state == "succeeded":
        run_to_success(job_id, ledger, store)
    elif state == "failed":
        ledger.fail(claim(job_id, ledger), "image_corrupt", "The JPEG file is damaged.")
    elif state == "processing":
        claim(job_id, ledger)
    return job_id


def _a_real_image(given: str, apiary: Caller, ledger: Ledger) -> str:
    """Make an image known, and let every second one fail, for three of four well-formed ids."""
    state = zlib.crc32(given.encode()) % 4
    if not re.fullmatch(IMAGE_ID, given) or not state:
        return given
    image = apiary.post("/v1/images", {"image": {"url": "https://example.com/bee.jpg"}}).json
    if state == 1:
        ledger.fail(claim(image["job_id"], ledger), "image_corrupt", "The JPEG file is damaged.")
    return str(image["image_id"])


def _a_real_batch(given: str, apiary: Caller, ledger: Ledger) -> str:
    """Create a completed batch with a webhook, for every second well-formed id."""
    if not re.fullmatch(BATCH_ID, given) or zlib.crc32(given.encode()) % 2:
        return given
    images, hook = [{"url": "https://example.com/bee.jpg"}], {"url": "https://example.com/hook"}
    sent = apiary.post("/v1/batches", {"mode": "everything", "images": images, "webhook": hook}).json
    ledger.cancel(sent["job_ids"][0], "apiary")
    return str(sent["id"])


def _a_real_delivery(given: str, apiary: Caller, ledger: Ledger) -> str:
    """Create a webhook for every second well-formed id."""
    if not re.fullmatch(DELIVERY_ID, given) or zlib.crc32(given.encode()) % 2:
        return given
    job_id = apiary.a_job(image={"url": "https://example.com/bee.jpg"}, webhook={"url": "https://example.com/hook"})
    ledger.fail(claim(job_id, ledger), "image_corrupt", "The JPEG file is damaged.")
    return f"msg_{job_id}_1_failed"
