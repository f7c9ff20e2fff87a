"""Job -> plan: checks, identifiers, what remains and what it costs. Knows no Ray."""
