"""Cheap checks of a translation. They know one text and its source, and no job."""
