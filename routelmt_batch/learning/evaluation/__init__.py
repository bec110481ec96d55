"""Compares routers on rows whose gain is known."""
