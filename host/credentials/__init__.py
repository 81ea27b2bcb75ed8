"""Credentials: records, selection, results."""
