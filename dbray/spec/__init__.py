"""User input: a job and its sections, and the problems found in them."""
