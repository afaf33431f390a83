"""Rasters larger than a job: cut into tiles that overlap, and masks of all tiles joined at the seams."""
