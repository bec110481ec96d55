"""The flow of `run` and `plan`, and operations on a finished job. It knows no command line."""
