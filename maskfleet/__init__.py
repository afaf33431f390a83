"""The hand: what a person touches, from the command line to the local stack."""
