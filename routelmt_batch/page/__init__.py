"""The audit page: a finished job as one HTML file that opens from disk. It starts nothing."""
