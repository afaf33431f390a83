"""Outputs: a job's masks as the files that it asks for."""
