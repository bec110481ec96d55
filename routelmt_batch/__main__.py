"""Runs the command `routelmt-batch` as `python -m routelmt_batch`."""

from routelmt_batch.cli.main import main

if __name__ == "__main__":
    main()
