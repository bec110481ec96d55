"""The stages of a job, in the data's order: score, allocate, translate, assemble, report."""
