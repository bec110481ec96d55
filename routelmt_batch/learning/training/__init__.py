"""Trains a router on label tables."""
