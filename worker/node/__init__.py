"""The node: one supervised worker process for each device of this machine, and its health."""
