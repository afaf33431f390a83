"""Segment Anything: from an image and prompts to scored mask candidates, with no part of the job service."""
