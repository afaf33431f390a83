"""Runs one worker node.

A module of its own: a spawned child imports the parent's main module once more, under another name, and
must not find the task and its signals there.
"""

from maskfleet.worker.app import main

if __name__ == "__main__":
    main()
