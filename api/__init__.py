"""The API: a thin Flask app that validates jobs, records them, enqueues them and reports on them."""
