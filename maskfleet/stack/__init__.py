"""The local stack: the servers and programs that ``maskfleet up`` starts, watches and stops."""
