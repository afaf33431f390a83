"""The work: from a job's image to its masks, and the courier that tells of it."""
