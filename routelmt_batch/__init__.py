"""Translate a corpus with a small and a large LLM under a budget, as an offline batch job."""

__version__ = "0.1.0"
