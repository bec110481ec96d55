"""`python -m routelmt_batch` is the command `routelmt-batch`."""

from routelmt_batch.cli import main

if __name__ == "__main__":
    main()
