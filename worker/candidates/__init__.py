"""Everything mode's candidates, kept before the thresholds, and filtered again with others."""
