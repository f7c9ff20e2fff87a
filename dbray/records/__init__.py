"""Stored records: models, prior sets, results of jobs."""
