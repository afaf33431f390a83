"""The worker: from a job's image to its masks; and the courier, which reports the outcome."""
