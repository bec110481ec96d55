"""The error tree and its exit codes. It imports nothing of the package.

RoutelmtError            1  the job failed
├── UsageError           2  the command line, the spec or a file that it names must be corrected
│   ├── SpecError           a key or a value of the spec
│   ├── ModelError          a model or router folder
│   ├── InputError          the input shards
│   │   └── InputChanged        a shard is no longer the file that the job first read
│   └── OutputError         the output folder: locked, or not a job's
│       └── WorkChanged        its committed work is damaged or was made from something else
├── EngineError          1  an engine did not start or died
├── StoreError           1  an object store does not answer
│   └── StoreRefused     2    it refuses what it is asked: no such bucket, no access, no credentials
└── DiskFull             1  no space where a part or a shard was to be written
Interrupted          130/143  stopped by a signal, or at its time limit (124); resumable. It is no Exception,
                              so that a library's `except Exception` does not catch it
"""


class RoutelmtError(Exception):
    """A failure whose message tells the operator the value, the rule and the next move."""

    exit_code = 1

    def __reduce__(self) -> tuple[type, tuple[object, ...]]:
        # Ray pickles errors between processes: only the message is kept.
        return type(self), self.args


class UsageError(RoutelmtError):
    exit_code = 2


class SpecError(UsageError):
    pass


class ModelError(UsageError):
    pass


class InputError(UsageError):
    pass


class OutputError(UsageError):
    pass


class WorkChanged(OutputError):
    pass


class EngineError(RoutelmtError):
    pass


class InputChanged(InputError):
    pass


class DiskFull(RoutelmtError):
    pass


class StoreError(RoutelmtError):
    pass


class StoreRefused(StoreError):
    exit_code = 2


class Interrupted(BaseException):
    """The job was stopped by a signal (`exit_code` is 128 + its number) or at its time limit."""

    def __init__(self, message: str, exit_code: int = 130) -> None:
        super().__init__(message, exit_code)
        self.exit_code = exit_code

    def __str__(self) -> str:
        return str(self.args[0])
