"""What is on disk: a job's folder, its manifest and ledger, and models. It knows no engine and no stage."""
