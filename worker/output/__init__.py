"""Outputs: a job's masks as the files it requested."""
