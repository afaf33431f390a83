"""Messages that are none of ours, on the queue of a real node: each is refused, and the node goes on."""

from __future__ import annotations

import subprocess
from pathlib import Path

import psutil
import redis

from jobs.ledger import Ledger
from jobs.outbox import Outbox
from jobs.queue import TASK_NAME, celery_app, queue_name
from jobs.roster import Roster
from jobs.settings import SharedSettings
from jobs.spec import Priority
from jobs.status import Status
from jobs.storage import Store
from tests.waiting import wait_until
from tests.worker.test_worker_process import node, publish, the_worker

__all__ = ["node"]

QUEUE = queue_name("sam-demo", Priority.NORMAL)
JOB_ID = f"job_{'1' * 32}"


class Bomb:
    """What a pickle could do: unpacking it makes a file."""

    def __init__(self, path: Path) -> None:
        self.path = path

    def __reduce__(self) -> tuple[object, tuple[object, ...]]:
        return open, (str(self.path), "w")


def test_a_node_refuses_what_is_no_job_of_ours_and_goes_on(
    node: subprocess.Popen[bytes],
    redis_client: redis.Redis,
    redis_url: str,
    ledger: Ledger,
    store: Store,
    outbox: Outbox,
    roster: Roster,
    repository: Path,
    tmp_path: Path,
) -> None:
    child = the_worker(roster)
    app = celery_app(SharedSettings(redis_url=redis_url))

    def send(name: str, *args: object, **options: object) -> None:
        app.send_task(name, args=args, queue=QUEUE, **options)

    # Other names, and Celery's own tasks, which would run ours with what they are told.
    send("os.system", "true")
    send("celery.map", {"task": TASK_NAME}, [JOB_ID])
    send("celery.chain", JOB_ID)
    # Our name, with something else than a job's id.
    texts = ("", "job_", JOB_ID + "\n", "../" + JOB_ID, JOB_ID.upper(), "x" * 9999)
    for argument in (*texts, None, 7, [JOB_ID], {"id": JOB_ID}):
        send(TASK_NAME, argument)
    send(TASK_NAME)
    send(TASK_NAME, JOB_ID, JOB_ID)
    send(TASK_NAME, JOB_ID, kwargs={"job_id": JOB_ID})
    # Our name and a job's id, in a form that may run code.
    app.conf.accept_content = ["pickle"]
    send(TASK_NAME, Bomb(tmp_path / "unpacked"), serializer="pickle")
    # A message of no task, and one without a body.
    with app.connection_for_write() as connection:
        producer = connection.Producer()
        producer.publish({"hello": "there"}, routing_key=QUEUE)
        producer.publish("", routing_key=QUEUE, content_type="text/plain", content_encoding="utf-8")

    photo = (repository / "examples" / "coins.png").read_bytes()
    job_id = publish(ledger, store, redis_url, photo)

    wait_until(lambda: ledger.status(job_id) is Status.SUCCEEDED, 60)
    log = (tmp_path / "node.log").read_text()
    assert log.count('"message_refused"') == 10
    assert log.count("Received unregistered task of type") == 3
    assert "Refusing to deserialize" in log or "disabled content" in log.lower()
    assert not (tmp_path / "unpacked").exists()
    assert node.poll() is None
    assert psutil.Process(child.pid).is_running()
    # None of them comes again.
    wait_until(lambda: redis_client.llen(QUEUE) == redis_client.hlen("unacked") == 0)
