"""The command line: ``maskfleet`` and its commands, each imported when it is called."""
