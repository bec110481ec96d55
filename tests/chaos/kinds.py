"""The kinds of faults, each with what happens."""

from typing import Final

DISK: Final[dict[str, str]] = {
    "kill": "SIGKILL of the driver at a step",
    "late kill": "SIGKILL of the driver after a time",
    "term": "SIGTERM at a step",
    "stop": "SIGSTOP at a step, another run takes the job over, SIGCONT",
    "two": "two runs begin together",
    "full": "no space on the output's disk for some steps",
    "io": "I/O errors of the output's disk at some steps",
    "cut": "a power cut at a step: what was not made durable is lost",
    "input": "an input shard is replaced by another at a step",
    "stderr": "standard error is closed",
}
STORE: Final[dict[str, str]] = {
    "store": "slow, failing and cut answers of an object store",
    "store kill": "the same, and SIGKILL of the driver after a time",
    "store two": "the same, and two runs begin together",
}
KINDS: Final = DISK | STORE
