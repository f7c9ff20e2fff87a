"""Carry out a plan: phases in order, failures, resume, journal."""
