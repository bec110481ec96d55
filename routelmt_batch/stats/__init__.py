"""Pure functions of arrays: selection, resampling, correlation, drift. It knows no files and no jobs."""
