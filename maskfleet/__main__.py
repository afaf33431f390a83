"""Run the command line: ``python -m maskfleet``."""

from maskfleet.cli.main import main

main(prog_name="maskfleet")
