"""`ldm evaluate --num-processes N`: several processes, each with its share of the chunks.

As `ldm.cli.generate_processes`, whose reports and messages it uses.
"""

import os
import signal
import sys
from pathlib import Path
from typing import TYPE_CHECKING

from ldm.cli.generate_processes import Report, end_as_one, report_name, run_watched
from ldm.errors import UserError
from ldm.io.messages import own_warnings, say_error

if TYPE_CHECKING:
    from ldm.evaluation.evaluation_job import EvaluationJob


def measure_in_processes(job: "EvaluationJob", num_processes: int, *, quiet: bool = False) -> None:
    """Make the features of a job in several processes. Errors as `make_in_processes`."""
    failure, _ = run_watched(job, "ldm.cli.evaluate_processes", num_processes, "image", quiet=quiet)
    if failure:
        end_as_one(
            failure,
            num_processes,
            f"the features made so far are in {job.folder}",
            "if memory ran out, use fewer processes; the same command continues",
        )


def main(folder: Path, rank: int, num_processes: int) -> int:
    """One process of several; returns the exit code."""
    from ldm.evaluation.evaluation_job import read_job, run_rank

    try:
        with (folder / report_name(rank)).open("ab") as stream:
            report = Report(stream)
            with own_warnings(report.warn):
                run_rank(read_job(folder), rank, num_processes, say=report.say, on_progress=report.show)
    except UserError as error:
        say_error(str(error))
        return 2
    except KeyboardInterrupt:
        return 128 + signal.SIGINT
    return 0


if __name__ == "__main__":
    signal.signal(signal.SIGTERM, signal.default_int_handler)
    sys.exit(main(Path(sys.argv[1]), int(os.environ["RANK"]), int(os.environ["WORLD_SIZE"])))
