"""Jobs on a Ray cluster through Ray's own job submission: submitted, found again, watched, stopped. It knows
no stage: a submitted job is a command."""
