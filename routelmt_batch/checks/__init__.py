"""Cheap checks of a translation against its source. They know nothing of jobs."""
