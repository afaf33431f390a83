"""Objects that go up to the store side by side, in bounded number and memory."""

from __future__ import annotations

import hashlib
import threading
from collections.abc import Callable, Iterable
from concurrent.futures import Future, ThreadPoolExecutor

from maskfleet.jobs.schema.manifest import ManifestFile
from maskfleet.jobs.storage import Store
from maskfleet.jobs.tracing import context_outside
from maskfleet.worker.output.artifacts import Artifact
from maskfleet.worker.stages import StageName, turns

#: While the objects under way hold this many bytes, none is added, so that memory is bounded by this and one object.
BYTES_UNDER_WAY = 64 * 2**20
#: How often ``check`` is called while uploads are waited for.
LOOK_S = 0.1
#: The uploads of a job that have spans of their own: one with thousands of files would drown its trace.
MOST_SPANS = 64


def put_all(
    artifacts: Iterable[Artifact],
    prefix: str,
    store: Store,
    check: Callable[[], None],
    *,
    at_once: int,
    bytes_under_way: int = BYTES_UNDER_WAY,
) -> tuple[ManifestFile, ...]:
    """Write artifacts to the store under ``prefix/``, and return what a manifest says of each, in their order.

    The next artifact is made, in this thread, only when there is room for it.  After the first failure, whether of an
    upload, of ``check`` or of making an artifact, nothing more is made or sent; it is raised once the uploads under way
    have ended, so that nothing is written after this returns.
    check: called before each artifact and while waiting; it may raise to stop.
    """
    uploads = _Uploads(prefix, store, check, at_once, bytes_under_way)
    with turns(StageName.UPLOAD) as waiting, ThreadPoolExecutor(at_once, thread_name_prefix="upload") as pool:
        files: list[Future[ManifestFile]] = []
        making = iter(artifacts)
        while True:
            with waiting.turn():
                uploads.await_room()
            artifact = next(making, None)
            if artifact is None:
                break
            uploads.begin(artifact)
            context = waiting.context() if len(files) < MOST_SPANS else context_outside()
            files.append(pool.submit(context.run, uploads.put, artifact))
            del artifact  # held by its upload alone
        with waiting.turn():
            uploads.await_all()
        return tuple(file.result() for file in files)


class _Uploads:
    """Those under way: how many, of how many bytes, and the first failure."""

    def __init__(self, prefix: str, store: Store, check: Callable[[], None], most: int, most_bytes: int) -> None:
        self._prefix = prefix
        self._store = store
        self._check = check
        self._most = most
        self._most_bytes = most_bytes
        self._count = self._bytes = 0
        self._failure: BaseException | None = None
        self._changed = threading.Condition()

    def begin(self, artifact: Artifact) -> None:
        with self._changed:
            self._count += 1
            self._bytes += len(artifact.data)

    def put(self, artifact: Artifact) -> ManifestFile:
        """Write one object.  Runs in a thread of the pool."""
        key = f"{self._prefix}/{artifact.name}"
        try:
            self._store.put(key, artifact.data, artifact.content_type)
            return ManifestFile(
                name=artifact.name,
                key=key,
                size=len(artifact.data),
                sha256=hashlib.sha256(artifact.data).hexdigest(),
                content_type=artifact.content_type,
            )
        except BaseException as error:
            with self._changed:
                self._failure = self._failure or error
            raise
        finally:
            with self._changed:
                self._count -= 1
                self._bytes -= len(artifact.data)
                self._changed.notify()

    def await_room(self) -> None:
        """Wait until another upload may begin.  Raises the first failure, and what ``check`` raises."""
        self._await(lambda: self._count < self._most and self._bytes < self._most_bytes)

    def await_all(self) -> None:
        """Wait until none is under way.  Raises like ``await_room``."""
        self._await(lambda: self._count == 0)

    def _await(self, reached: Callable[[], bool]) -> None:
        while True:
            self._check()
            with self._changed:
                done = self._changed.wait_for(lambda: self._failure or reached(), LOOK_S)
                if self._failure:
                    raise self._failure
                if done:
                    return
