"""Run one worker node.

A separate module: a spawned child imports the parent's main module again under another name, and must not
find the task and its signal handlers there.
"""

from maskfleet.worker.app import main

if __name__ == "__main__":
    main()
