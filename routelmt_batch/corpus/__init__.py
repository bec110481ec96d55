"""Parquet shards of text: found, read unit by unit, fingerprinted. It knows no job."""
