"""Masks: from candidates' logits to measured, chosen and run-length-encoded masks of the image's size."""
