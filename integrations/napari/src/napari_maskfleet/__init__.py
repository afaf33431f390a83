"""Segment Anything in napari, run by a maskfleet service."""
