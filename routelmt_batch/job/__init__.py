"""The flow of run and plan, and what is done with a finished job. It knows no command line."""
