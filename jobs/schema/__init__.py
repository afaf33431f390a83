"""The schema: requests, responses, records and manifests, as frozen pydantic models."""
