"""The stages of a job, in order: score, allocate, translate, guard, assemble, audit, report. They meet in
committed files alone, and know no command line."""
