"""One of several processes that train together, started by studio.jobs.ranks: `python -m studio.jobs.rank DATA JOB DEVICE`.

By hand, `accelerate launch` or torchrun start it on one machine or several; DEVICE is `auto` then.

What it says goes to its standard output, one event a line; everything else it or a library prints goes to standard error.
It ends when its standard input does, for whoever started it is gone then. A line `leave` on it asks for a checkpoint and an end.
"""

import os
import stat
import sys
import threading
import traceback
from pathlib import Path

from studio.errors import Cancelled
from studio.events import CancelledEvent, to_line
from studio.jobs.failures import explain, kept
from studio.jobs.folder import FolderRequests, JobFolder
from studio.jobs.handlers import Warm, Work, stepping
from studio.jobs.ranks import BEREAVED
from studio.library.layout import Layout


def main(data: str, job: str, device: str) -> int:
    events = os.fdopen(os.dup(1), "w", encoding="utf-8", buffering=1)
    os.dup2(2, 1)
    device = _own_device() if device == "auto" else device
    layout = Layout(Path(data))
    folder = JobFolder.of(layout.jobs, job)
    requests = FolderRequests(folder.path)
    threading.Thread(target=_listen, args=(requests,), daemon=True).start()
    from studio.training import team

    work = Work(folder, folder.manifest(), layout, requests, Warm(device))
    try:
        main_one = team.join(device).main
        for event in stepping(work):
            if main_one:
                events.write(to_line(event))
    except team.Bereaved:
        return BEREAVED
    except Cancelled:
        checkpoints = folder.checkpoints()
        events.write(to_line(CancelledEvent(step=checkpoints[-1].step if checkpoints else 0, kept=kept(checkpoints))))
    except Exception as error:  # the border of the process: its last words are what the job ends with
        traceback.print_exc()
        events.write(to_line(explain(error, work.manifest.settings, folder.path, folder.checkpoints())))
        return 1
    return 0


def _own_device() -> str:
    """The card that has the number which this process has on its machine, as its launcher tells; the processor where there is none."""
    import torch

    return f"cuda:{os.environ.get('LOCAL_RANK', '0')}" if torch.cuda.is_available() else "cpu"


def _listen(requests: FolderRequests) -> None:
    if not stat.S_ISFIFO(os.fstat(0).st_mode):
        return  # started by hand or by another launcher, which ends it itself
    for line in sys.stdin:
        requests.leave |= line.strip() == "leave"
    os._exit(BEREAVED)


if __name__ == "__main__":
    code = main(*sys.argv[1:4])
    sys.stderr.flush()
    os._exit(code)  # without taking leave of processes that may be gone
