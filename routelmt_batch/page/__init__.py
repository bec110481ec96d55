"""The audit page: a finished job's reports and some of its rows as one HTML file that opens from disk."""
