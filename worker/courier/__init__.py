"""The courier: sends webhooks, looks after leases and deadlines, and sweeps the store; it needs no model."""
