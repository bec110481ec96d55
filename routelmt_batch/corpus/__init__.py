"""Finds, fingerprints and reads Parquet shards of text. It knows nothing of jobs."""
