"""Metrics, logs and the decision trace."""
