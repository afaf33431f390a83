"""What is put into ``.env`` to run docker-compose.yml in tests."""

from __future__ import annotations

import base64
import secrets

#: Names the engine to the tests: its driver and folder.
ENGINE_VARIABLE = "MASKFLEET_TEST_ENGINE"
KEY = secrets.token_urlsafe(24)
ENV = {
    "MASKFLEET_API_KEYS": f"me:{KEY}",
    "MASKFLEET_WEBHOOK_MASTER_SECRETS": f"whsec_{base64.b64encode(secrets.token_bytes(24)).decode()}",
    "MASKFLEET_S3_ACCESS_KEY": "tests",
    "MASKFLEET_S3_SECRET_KEY": secrets.token_hex(16),
    **{f"MASKFLEET_REDIS_PASSWORD_{user}": secrets.token_hex(16) for user in ("API", "WORKER", "COURIER", "OPERATOR")},
    "MASKFLEET_MODEL": "/models/sam-demo",
}
