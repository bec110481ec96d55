"""Evaluate: routers against each other on rows whose gain is known."""
