"""The door: a thin Flask API that validates, records, enqueues and answers."""
