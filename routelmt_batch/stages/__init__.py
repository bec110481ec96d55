"""The stages of a job: score, allocate, guard, translate, check, assemble, audit, report. They exchange
data only through committed files, and know nothing of the command line."""
