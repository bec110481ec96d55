"""Jobs on a Ray cluster, through Ray's job submission: submit, find, follow and stop them. It knows no stage:
a submitted job is a command."""
