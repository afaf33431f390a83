"""The ledger: every record that is kept in Redis, and every change to one, as one atomic script each."""
