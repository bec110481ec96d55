"""Jobs on a Ray cluster, through Ray's job submission: submit, find, follow and stop them. A submitted job is
a command; only progress.py reads its output."""
