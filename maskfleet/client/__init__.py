"""The client: a server's jobs from Python, and the verification of its webhooks.  ``maskfleet`` exports its names."""
