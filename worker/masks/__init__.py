"""Masks: from candidates' logits to measured, filtered and run-length-encoded masks of the image's size."""
