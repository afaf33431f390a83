"""Run the command line: ``python -m maskfleet``."""

from maskfleet.cli import main

main(prog_name="maskfleet")
