"""Segment Anything: from an image and prompts to scored mask candidates, independent of the job service."""
