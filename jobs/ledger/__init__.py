"""The ledger: every record kept in Redis, and every change to one, each as one atomic script."""
