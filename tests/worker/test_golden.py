"""The model's test: a checkpoint that is damaged, or a device that computes wrongly, is found out before a job is."""

from __future__ import annotations

import os
import shutil
import subprocess
import sys
import threading
from collections.abc import Iterator
from dataclasses import replace
from pathlib import Path

import pytest
import redis
import requests
import torch
from click.testing import CliRunner
from safetensors.torch import load_file, save_file

from maskfleet.cli.main import main
from maskfleet.jobs.errors import ModelWrong
from maskfleet.jobs.ledger.epoch import Epoch
from maskfleet.jobs.ledger.jobs import Ledger
from maskfleet.jobs.ledger.outcomes import NewJobs
from maskfleet.jobs.ledger.workers import WorkerRegistry
from maskfleet.jobs.messages import BELL, CANARY, Publisher
from maskfleet.jobs.queue import queue_name
from maskfleet.jobs.schema.spec import Priority
from maskfleet.jobs.settings import SharedSettings
from maskfleet.jobs.status import Status
from maskfleet.jobs.storage import Store
from maskfleet.stack.servers import free_port
from maskfleet.worker.attempt import Workbench
from maskfleet.worker.golden import GOLDEN_FILE, Golden, ModelTest, mask_iou, read_golden, record_golden
from maskfleet.worker.image.sandbox import Sandbox
from maskfleet.worker.model_process import WorkerChild
from maskfleet.worker.node.health import why_not_ready
from maskfleet.worker.sam.model import SegmentationModel, load_model
from tests.waiting import wait_until
from tests.worker.checkpoints import save_tiny

SPEC = '{"mode":"box","image":{"upload_id":"%s"},"prompts":[{"box":[20,20,80,80]}]}'


@pytest.fixture(scope="module")
def golden(demo_model: str) -> Golden:
    golden = read_golden(demo_model, "")
    assert golden is not None
    return golden


@pytest.fixture
def checkpoint(demo_model: str, tmp_path: Path) -> Path:
    """A copy of the bundled checkpoint."""
    return Path(shutil.copytree(demo_model, tmp_path / "sam-copy"))


def damage(checkpoint: Path, name: str, how: str) -> None:
    """Write other values into one tensor of a checkpoint."""
    path = checkpoint / "model.safetensors"
    tensors = load_file(path)
    was = tensors[name]
    noise = torch.randn(was.shape, generator=torch.manual_seed(0)).to(was.dtype)
    tensors[name] = {
        "zero": torch.zeros_like(was),
        "noise": was + 0.5 * was.float().std().to(was.dtype) * noise,
        "nan": torch.full_like(was, torch.nan),
    }[how]
    save_file(tensors, path, metadata={"format": "pt"})


def test_the_bundled_model_finds_its_golden_masks_again(model: SegmentationModel, golden: Golden) -> None:
    test = ModelTest(model, golden)

    for _ in range(2):
        test()


@pytest.mark.parametrize(
    ("name", "how"),
    [
        ("vision_encoder.layers.3.attn.qkv.weight", "zero"),
        ("vision_encoder.layers.5.mlp.lin1.weight", "noise"),
        ("mask_decoder.iou_prediction_head.proj_out.weight", "zero"),
        ("mask_decoder.mask_tokens.weight", "nan"),
    ],
)
def test_a_checkpoint_with_one_damaged_tensor_is_found_out(
    checkpoint: Path, golden: Golden, name: str, how: str
) -> None:
    damage(checkpoint, name, how)

    with pytest.raises(ModelWrong) as caught:
        ModelTest(load_model(str(checkpoint), "cpu"), golden)()

    assert caught.value.recorded


def test_half_precision_passes(demo_model: str, golden: Golden) -> None:
    ModelTest(load_model(demo_model, "cpu", "bfloat16"), golden)()


def test_recording_finds_the_masks_that_are_shipped(demo_model: str, golden: Golden) -> None:
    found = record_golden(demo_model)

    assert found.picture == golden.picture
    assert len(found.masks) == len(golden.masks)
    for one, shipped in zip(found.masks, golden.masks, strict=True):
        assert (one.mode, one.prompt, one.candidate) == (shipped.mode, shipped.prompt, shipped.candidate)
        assert mask_iou(one, shipped) > 0.999


@pytest.mark.parametrize("kind", ["sam", "sam2"])
def test_without_golden_masks_a_model_is_compared_with_itself(kind: str, tmp_path: Path) -> None:
    model = load_model(save_tiny(kind, tmp_path / kind), "cpu")
    test = ModelTest(model, None)
    test()
    test()
    layer = next(weight for weight in model.family.network.mask_decoder.parameters() if weight.dim() > 1)
    kept = layer.detach().clone()

    with torch.no_grad():
        layer.zero_()
    with pytest.raises(ModelWrong, match="overlaps the expected one") as caught:
        test()
    with torch.no_grad():
        layer.copy_(kept)

    assert not caught.value.recorded
    test()


def test_without_golden_masks_scores_that_are_no_numbers_are_found_out(checkpoint: Path) -> None:
    (checkpoint / GOLDEN_FILE).unlink()
    damage(checkpoint, "vision_encoder.neck.conv1.weight", "nan")

    with pytest.raises(ModelWrong, match="not finite"):
        ModelTest(load_model(str(checkpoint), "cpu"), read_golden(str(checkpoint), ""))()


def test_golden_masks_may_be_elsewhere_and_none_are_needed(demo_model: str, tmp_path: Path, golden: Golden) -> None:
    assert read_golden("facebook/sam-vit-base", "") is None
    assert read_golden("facebook/sam-vit-base", f"{demo_model}/{GOLDEN_FILE}") == golden
    with pytest.raises(ModelWrong, match="cannot be read"):
        read_golden("facebook/sam-vit-base", str(tmp_path / "nothing.json"))


def test_golden_masks_that_are_damaged_or_of_another_picture_are_refused(checkpoint: Path, golden: Golden) -> None:
    file = checkpoint / GOLDEN_FILE
    file.write_text(golden.model_copy(update={"picture": "0" * 64}).model_dump_json())
    with pytest.raises(ModelWrong, match="another picture"):
        read_golden(str(checkpoint), "")

    file.write_text(file.read_text()[:-9])

    with pytest.raises(ModelWrong, match="record them anew"):
        read_golden(str(checkpoint), "")


def test_a_worker_with_damaged_weights_is_not_ready_and_says_why(
    bench: Workbench, checkpoint: Path, golden: Golden, redis_client: redis.Redis
) -> None:
    damage(checkpoint, "mask_decoder.mask_tokens.weight", "zero")
    settings = bench.settings.model_copy(update={"canary_s": 60, "probe_s": 600})
    test_model = ModelTest(load_model(str(checkpoint), "cpu"), golden)
    wrong = replace(bench, test_model=test_model, settings=settings, sandbox=Sandbox())

    child = WorkerChild(wrong, bench.worker_registry, Publisher(settings), Epoch(redis_client))
    child.begin()
    try:
        (seen,) = wait_until(bench.worker_registry.workers)
    finally:
        child.leave()

    reason = why_not_ready([seen], "node-1", 60)
    assert reason is not None
    assert "model_wrong" in reason
    assert seen.state == "withdrawn"


def test_a_test_that_hangs_ends_the_process(bench: Workbench, redis_client: redis.Redis) -> None:
    over, ended, tests = threading.Event(), threading.Event(), []

    def test_model() -> None:
        tests.append(1)
        if len(tests) > 1:
            over.wait(60)

    changed = {"canary_s": 0.05, "model_test_s": 0.01, "load_timeout_s": 0.1}
    settings = bench.settings.model_copy(update=changed)
    hanging = replace(bench, test_model=test_model, settings=settings, sandbox=Sandbox())
    child = WorkerChild(hanging, bench.worker_registry, Publisher(settings), Epoch(redis_client), ended.set)
    child.begin()
    hearing = threading.Thread(target=lambda: wait_until(lambda: child.hear(CANARY) or len(tests) > 1))
    hearing.start()

    try:
        assert ended.wait(30)
    finally:
        over.set()
        hearing.join()
        child.leave()


@pytest.mark.parametrize("is_damaged", [False, True])
def test_doctor_runs_the_same_test(checkpoint: Path, shared_fields: dict[str, str], is_damaged: bool) -> None:
    if is_damaged:
        damage(checkpoint, "mask_decoder.mask_tokens.weight", "zero")
    settings = {f"MASKFLEET_{name.upper()}": value for name, value in shared_fields.items()}

    ran = CliRunner().invoke(main, ["doctor", "--load-model"], env=settings | {"MASKFLEET_MODEL": str(checkpoint)})

    (line,) = [line for line in ran.stdout.splitlines() if line[9:].startswith("model ")]
    assert line.startswith("failed" if is_damaged else "ok")
    assert ("model_wrong" if is_damaged else "finds its golden masks") in line


@pytest.fixture
def folder(tmp_path: Path) -> Path:
    """The two files of a model, as in node_with_a_model_file."""
    folder = tmp_path / "model"
    folder.mkdir()
    (folder / "weights").write_text("wrong")
    (folder / "device").write_text("right")
    return folder


@pytest.fixture
def node_url(redis_client: redis.Redis, shared_fields: dict[str, str], folder: Path, tmp_path: Path) -> Iterator[str]:
    port = free_port()
    settings = {
        **shared_fields,
        "model": "./a-model",
        "node": "node-1",
        "canary_s": "0.2",
        "model_test_s": "0.2",
        "probe_s": "0.1",
        "health_port": str(port),
    }
    with (tmp_path / "node.log").open("wb") as log:
        process = subprocess.Popen(
            [sys.executable, "-m", "tests.worker.node_with_a_model_file"],
            env=os.environ
            | {f"MASKFLEET_{name.upper()}": value for name, value in settings.items()}
            | {"TEST_MODEL": str(folder)},
            stdout=log,
            stderr=log,
        )
        yield f"http://127.0.0.1:{port}"
        process.kill()
        process.wait()


def test_a_node_leaves_the_fleet_with_its_model_and_comes_back_with_it(
    node_url: str,
    folder: Path,
    worker_registry: WorkerRegistry,
    ledger: Ledger,
    store: Store,
    redis_url: str,
    coins: bytes,
    tmp_path: Path,
) -> None:
    def is_out() -> bool:
        answer = requests.get(f"{node_url}/ready", timeout=5)
        return answer.status_code == 503 and "model_wrong" in answer.text

    def is_in() -> bool:
        return requests.get(f"{node_url}/ready", timeout=5).status_code == 200

    def figure(name: str) -> str:
        lines = requests.get(f"{node_url}/metrics", timeout=5).text.splitlines()
        return next((line.rpartition(" ")[2] for line in lines if line.startswith(name + " ")), "")

    # Its weights are damaged: it takes no job.
    wait_until(worker_registry.workers, 60)
    wait_until(is_out)
    queue = queue_name("a-model", Priority.NORMAL)
    upload_id = store.put_upload("ant", coins, "image/png")
    spec = SPEC % upload_id
    job = NewJobs(tenant="ant", queue=queue, specs_json=(spec,), start_deadline_s=60)
    job_id = ledger.create(job, max_in_flight=9, idempotency_ttl_s=60).id
    publisher = Publisher(SharedSettings(redis_url=redis_url))
    publisher.publish(BELL, queue)
    (first,) = worker_registry.workers(loading=True)
    assert ledger.status(job_id) is Status.QUEUED

    # They are repaired: another process loads them, and the job is done.
    (folder / "weights").write_text("right")
    wait_until(is_in, 60)
    publisher.publish(BELL, queue)
    wait_until(lambda: ledger.status(job_id) is Status.SUCCEEDED, 30)
    wait_until(lambda: worker_registry.workers()[0].start_s)
    assert worker_registry.workers()[0].pid != first.pid
    assert figure("maskfleet_worker_model_ok") == "1.0"

    # Its device computes wrongly for a while.
    (folder / "device").write_text("wrong")
    wait_until(is_out, 30)
    assert worker_registry.withdrawn() == {"a-model": 1}
    assert figure("maskfleet_worker_model_ok") == "0.0"
    (folder / "device").write_text("right")
    wait_until(is_in, 60)

    log = (tmp_path / "node.log").read_text()
    for event in ("node_withdrawn", "model_loaded_anew", "worker_started"):
        assert f'"{event}"' in log
    assert float(figure('maskfleet_worker_model_tests_total{result="failed"}')) >= 3
