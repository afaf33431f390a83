"""The client: a server's jobs from Python, and the check of the webhooks that it sends."""

from maskfleet.client.client import Client, JobFields, Photo
from maskfleet.client.webhooks import verify_webhook

__all__ = ["Client", "JobFields", "Photo", "verify_webhook"]
