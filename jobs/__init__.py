"""The contract: what the API and the workers agree a job is."""
