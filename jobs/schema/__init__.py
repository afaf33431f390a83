"""The schema: what callers send and get, what records and manifests hold, as frozen pydantic models."""
