"""`python -m routelmt_batch` is the command `routelmt-batch`."""

from routelmt_batch.cli.main import main

if __name__ == "__main__":
    main()
