"""What lies on disk: a job's folder, its manifest and ledger, models. It knows no engine and no stage."""
