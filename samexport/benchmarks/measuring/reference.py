"""What PyTorch makes of a whole task: the reference of its verdict, made once for all runtimes of a run."""

from __future__ import annotations

from dataclasses import replace
from pathlib import Path

from samexport.benchmarks.contenders.baselines import torch_bundle
from samexport.benchmarks.measuring.tasks import TASKS, TaskSubject
from samexport.benchmarks.results.rows import Job
from samexport.runtimes.bundle import open_bundle


def write_reference(job: Job, path: Path) -> None:
    """Do the job's task once in PyTorch, and write its masks to ``path``.

    Raises:
        SamExportError: the bundle's weights cannot be had.
    """
    plain = torch_bundle(
        open_bundle(Path(job.bundle)), [Path(c) for c in job.checkpoints], detector=TASKS[job.graph].detector
    )
    subject = TaskSubject(replace(job, runtime="pytorch"), bundle=plain)
    subject.prepare()
    subject.open()
    try:
        subject.call()
        subject.as_reference().write(path)
    finally:
        subject.close()
