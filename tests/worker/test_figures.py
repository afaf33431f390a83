"""What a worker counts about itself, as Prometheus sees it."""

from __future__ import annotations

import os
import re
import subprocess
import sys
from pathlib import Path

import pytest
import requests

from maskfleet.jobs.settings import WorkerSettings
from maskfleet.stack.servers import free_port
from maskfleet.worker.node.figures import process_age_s, shown_figures
from maskfleet.worker.node.health import serve_health

#: What a child process counts, as attempts do.
CHILD = """
import sys
from maskfleet.jobs.ledger.outcomes import Reply
from maskfleet.jobs.schema.record import Metrics
from maskfleet.jobs.schema.spec import EverythingJob, ImageSource
from maskfleet.worker.node.figures import StartStage, figures
from maskfleet.worker.output.artifacts import Artifact
from maskfleet.worker.stages import StageName, note_halvings, stage, timed, timed_outputs, turns

of = figures()
assert of.start_s is None
assert all(of.reached(of_start) for of_start in StartStage)
assert not of.reached(StartStage.CANARY)
assert abs(of.start_s - of.start_fields['start_s']) < 0.01
of.model_tested(ok=True)
of.model_tested(ok=False)
of.ended("job_succeeded", Reply.OK)
of.ended("job_failed", Reply.OK)
of.ended("job_released", Reply.CANCELED)
of.ended("job_succeeded", Reply.FENCED)
of.ended("no_such_event", Reply.OK)
spec = EverythingJob(mode="everything", image=ImageSource(url="https://example.com/bee.jpg"))
asked = spec.params.points_per_batch
of.segmented(spec, Metrics(points=1024, points_per_batch=asked))
of.segmented(spec, Metrics(points=10, points_per_batch=asked // 2))
with timed() as timings:
    with stage(StageName.FETCH):
        pass
    with turns(StageName.DECODE_PROMPTS) as decode:
        for _ in range(3):
            with decode.turn():
                pass
    for file in timed_outputs(Artifact(name, "", b"") for name in ("coco.json", "masks/0000.png", "masks/0001.png")):
        pass
    note_halvings(2)
of.attempted(0.2, timings)
of.attempted(None, timings)
"""


@pytest.fixture
def own_environment(monkeypatch: pytest.MonkeyPatch) -> None:
    """Let the node's parent name its folder in the environment of this test only."""
    monkeypatch.setenv("PROMETHEUS_MULTIPROC_DIR", "")


def run_child() -> None:
    subprocess.run([sys.executable, "-c", CHILD], env=os.environ, check=True)


@pytest.mark.usefixtures("own_environment")
def test_the_parent_shows_what_one_child_after_the_other_counted(redis_url: str) -> None:
    settings = WorkerSettings(redis_url=redis_url, node="sam-cpu@host", health_port=free_port())
    server = serve_health(settings, shown_figures(settings))
    folder = Path(os.environ["PROMETHEUS_MULTIPROC_DIR"])
    try:
        run_child()
        run_child()
        response = requests.get(f"http://127.0.0.1:{server.server_port}/metrics", timeout=5)
    finally:
        server.shutdown()
        server.server_close()

    lines = response.text.splitlines()
    for line in (
        'maskfleet_worker_jobs_total{outcome="succeeded"} 2.0',
        'maskfleet_worker_jobs_total{outcome="failed"} 2.0',
        'maskfleet_worker_jobs_total{outcome="canceled"} 2.0',
        'maskfleet_worker_jobs_total{outcome="fenced"} 2.0',
        'maskfleet_worker_jobs_total{outcome="other"} 2.0',
        'maskfleet_worker_wait_seconds_bucket{le="0.1"} 0.0',
        'maskfleet_worker_wait_seconds_bucket{le="0.25"} 2.0',
        'maskfleet_worker_stage_seconds_count{stage="fetch"} 4.0',
        'maskfleet_worker_stage_seconds_count{stage="decode_prompts"} 4.0',
        'maskfleet_worker_output_seconds_count{output="coco"} 4.0',
        'maskfleet_worker_output_seconds_count{output="masks"} 4.0',
        "maskfleet_worker_points_total 2068.0",
        "maskfleet_worker_smaller_batches_total 2.0",
        "maskfleet_worker_halved_batches_total 8.0",
        'maskfleet_worker_model_tests_total{result="failed"} 2.0',
        "maskfleet_worker_model_ok 0.0",
    ):
        assert line in lines, response.text
    started = [line for line in lines if line.startswith("maskfleet_worker_start_seconds{")]
    assert {line.partition("}")[0].rpartition("=")[2] for line in started} == {
        '"import"',
        '"load"',
        '"device"',
        '"compile"',
        '"test"',
        '"canary"',
    }
    assert response.headers["Content-Type"].startswith("text/plain; version=0.0.4")
    # However many children there were, there are as many files.
    assert {path.name for path in folder.glob("*.db")} == {
        "counter_child.db",
        "gauge_mostrecent_child.db",
        "histogram_child.db",
    }


@pytest.mark.usefixtures("own_environment")
def test_a_folder_that_is_gone_costs_the_figures_and_nothing_else(redis_url: str) -> None:
    settings = WorkerSettings(redis_url=redis_url, node="sam-cpu@host", device="cuda", health_port=free_port())
    show = shown_figures(settings)
    folder = Path(os.environ["PROMETHEUS_MULTIPROC_DIR"])
    for path in folder.iterdir():
        path.unlink()
    folder.rmdir()

    shown = show()

    assert b"maskfleet_worker_jobs" not in shown


def test_a_program_without_figures_says_so(redis_url: str) -> None:
    settings = WorkerSettings(redis_url=redis_url, node="sam-cpu@host", health_port=free_port())
    server = serve_health(settings)
    try:
        response = requests.get(f"http://127.0.0.1:{server.server_port}/metrics", timeout=5)
    finally:
        server.shutdown()
        server.server_close()

    assert (response.status_code, response.text) == (404, "There is only /live and /ready.\n")


def test_a_start_is_measured_from_the_process_itself() -> None:
    code = "from maskfleet.worker.node.figures import process_age_s; print(process_age_s())"

    shown = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True).stdout

    # Importing alone takes a while; a process that has just begun is not older than this one.
    assert 0 < float(shown) < process_age_s()


@pytest.mark.usefixtures("own_environment")
def test_the_figures_to_watch_are_shown(repository: Path) -> None:
    document = (repository / "docs" / "operations.md").read_text()
    named = set(re.findall(r"`(maskfleet_worker_\w+)`", document))
    show = shown_figures(WorkerSettings(node="sam-cpu@host"))
    run_child()

    shown = {line.split("{")[0].split(" ")[0] for line in show().decode().splitlines() if not line.startswith("#")}

    assert {name for name in named if "_gpu_" not in name} == shown | {"maskfleet_worker_embeddings_total"}


@pytest.mark.gpu
@pytest.mark.usefixtures("own_environment")
def test_a_gpus_memory_and_use_are_shown(repository: Path) -> None:
    document = (repository / "docs" / "operations.md").read_text()

    shown = shown_figures(WorkerSettings(node="sam-gpu0@host", device="cuda"))().decode()

    figures = dict(re.findall(r"^(maskfleet_worker_gpu_\w+) (\S+)$", shown, re.MULTILINE))
    assert figures.keys() == set(re.findall(r"`(maskfleet_worker_gpu_\w+)`", document))
    assert float(figures["maskfleet_worker_gpu_memory_used_bytes"]) > 0
    assert float(figures["maskfleet_worker_gpu_memory_used_bytes"]) < float(
        figures["maskfleet_worker_gpu_memory_total_bytes"]
    )
    assert 0 <= float(figures["maskfleet_worker_gpu_use_ratio"]) <= 1
