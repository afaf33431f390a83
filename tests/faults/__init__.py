"""The fault laboratory: a fleet of real processes, what is done to them, and what must hold all the while."""
