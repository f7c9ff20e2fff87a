"""Shared parts of tests: small worlds, a registry to serve, a fake of S3."""
