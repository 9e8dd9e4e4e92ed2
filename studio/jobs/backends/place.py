"""One job on a machine of a Ray cluster: the actor that is a worker for as long as the job runs."""

import os
import shutil
import signal
import socket
import threading
from pathlib import Path

import studio
from studio.errors import RunError
from studio.jobs.processes import WorkerFolder
from studio.library.layout import Layout

ANSWER_SECONDS = 1.0  # for what `run` raises to reach whoever asked


class Place:
    """Has the devices that Ray gave it; ends with its job."""

    def run(self, data: str, name: str, node: str, cluster: str, version: str) -> None:
        """Take the job from the inbox of the worker folder `name` and run it as any worker does.

        Raises RunError if this machine does not see the data folder, or has another version of the program.
        """
        import ray

        try:
            if version != studio.__version__:
                raise RunError(f"{socket.gethostname()} has LoRA Studio {studio.__version__}, the studio is {version}; install the same one there")
            if not (Path(data) / "workers").is_dir():
                raise RunError(f"{socket.gethostname()} does not see the data folder {data}; it must lie on storage that all machines share")
            from studio.jobs.worker import Worker

            layout = Layout(Path(data))
            cards = ",".join(f"cuda:{i}" for i in range(len(ray.get_gpu_ids())))
            home = WorkerFolder(layout.workers, name, node)
            worker = Worker(layout, cards or "cpu", home, cluster)
            signal.signal(signal.SIGTERM, worker.leave)
            worker.run(idle_seconds=0.0)
            shutil.rmtree(home.path, ignore_errors=True)
        finally:
            end = threading.Timer(ANSWER_SECONDS, os._exit, (0,))  # the actor would wait for more work, its devices held
            end.daemon = True
            end.start()
