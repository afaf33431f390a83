"""The fault laboratory: a fleet of real processes, faults injected into them, and what must hold throughout."""
