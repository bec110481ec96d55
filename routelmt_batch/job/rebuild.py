"""`verify --rebuild` mends what the committed work of a job suffices for.

It works as the job's writer, so that no run is disturbed. `_SUCCESS` and the audit page are written again.
Everything else is removed: a run writes it again, or it was only a copy.
"""

from __future__ import annotations

from routelmt_batch.errors import OutputError
from routelmt_batch.files.write import write_json
from routelmt_batch.job.findings import Found, Remedy
from routelmt_batch.page.page import write_page
from routelmt_batch.progress import Bars
from routelmt_batch.stages.finished import FinishedJob
from routelmt_batch.stages.outputs import success

_COPY = "it only repeated other segments"


def rebuild(found: Found, bars: Bars) -> list[str]:
    """Mend what was found, and return what was done, a line for each file. It writes nothing if it can mend
    nothing.

    Raises:
        OutputError: another process holds the job, or wrote it since it was verified.
    """
    ledger, folder = found.ledger, found.folder
    mends = [finding.where for finding in found.findings if finding.remedy is Remedy.REBUILD]
    if ledger is None or not mends:
        return []
    done = []
    seen = ledger.log.next
    with ledger.writing(bars.warn):
        ledger.take()
        if ledger.log.next > seen + 1:
            raise OutputError(
                f"{folder.root}: another run worked on this job while it was verified: verify it again"
            )
        for path in mends:
            before = path.stat()
            ledger.check()
            if path == folder.success and found.output_is_whole:
                contents = success(ledger, sum(found.rows.values()), found.unreadable)
                write_json(path, contents, "success", ledger.check)
                done.append(f"{path}: written again from the log")
            elif path == folder.page:
                job = FinishedJob.read(folder)
                write_page(job, job.spec.page, check=ledger.check)
                done.append(f"{path}: drawn again")
            elif before:
                path.remove(only=before)
                is_copy = path.is_below(ledger.log.folder)
                done.append(
                    f"{path}: removed; " + (_COPY if is_copy else "the job's command writes it again")
                )
    return done
