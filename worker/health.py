"""``python -m worker.health``: exit status 0 if a worker of this machine is in the ledger, with its model loaded."""

from __future__ import annotations

import socket
import sys

from jobs.errors import JobError
from jobs.ledger import Ledger, connect
from jobs.settings import WorkerSettings


def main() -> None:
    settings = WorkerSettings()
    try:
        seen = Ledger(connect(settings), settings.retention_s).workers()
    except JobError as error:
        sys.exit(str(error))
    if not any(worker.node.endswith(f"@{socket.gethostname()}") for worker in seen):
        sys.exit("No worker of this machine has announced itself lately.")


if __name__ == "__main__":
    main()
