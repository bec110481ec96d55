"""The stages of a job, in order: score, allocate, translate, guard, assemble, audit, report. They exchange
data only through committed files, and know nothing of the command line."""
