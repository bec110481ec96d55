"""The process that ends what a job leaves behind. tests/engines/test_kill.py tries it on jobs."""

import subprocess
import sys

import pytest

JOB = """
import os, subprocess, sys
from routelmt_batch.engines.reaper import Reaper

reaper = Reaper(os.environ)
left = subprocess.Popen([sys.executable, "-c", "import time; time.sleep(60)"])
reaper._process.kill()
reaper._process.wait()
reaper.look()
reaper.finish()
print(left.wait(10))
"""


@pytest.mark.slow
def test_a_reaper_that_was_killed_is_replaced():
    job = subprocess.run([sys.executable, "-c", JOB], capture_output=True, text=True, timeout=50)
    assert job.stdout == "-9\n", job.stderr
