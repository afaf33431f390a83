"""The courier: sends webhooks, enforces leases and deadlines, and sweeps the store; it needs no model."""
