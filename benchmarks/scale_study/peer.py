"""A run of the plain Flower app, to be watched as a run of ours is.

python -m benchmarks.scale_study.peer '{"workload": …, "output": "…"}'
"""

from __future__ import annotations

import json
import shutil
import sys
import time
from pathlib import Path
from tempfile import TemporaryDirectory

from benchmarks.scale_study.plain_flower import DONE
from benchmarks.scale_study.workload import Workload
from fedkron.commands.run import FILE_POLL_SECONDS, STATUS_POLL_SECONDS
from fedkron.flower.superlink import COMPLETED, FINISHED, private_superlink
from fedkron.settings import run_config

_PYPROJECT = """\
[project]
name = "plain"
version = "1.0.0"
dependencies = []

[tool.flwr.app]
publisher = "plain"

[tool.flwr.app.components]
serverapp = "plain_flower:server"
clientapp = "plain_flower:client"

[tool.flwr.app.config]
"""


def main(workload: Workload, output: Path) -> None:
    """Run to the end; prints how it ended as JSON, and raises when it did not complete."""
    config = run_config(workload.settings(output, kind="lora"))
    lines = "".join(f"{key} = {json.dumps(value)}\n" for key, value in config.items())
    with TemporaryDirectory() as folder, private_superlink() as link:
        app = Path(folder)
        (app / "pyproject.toml").write_text(_PYPROJECT + lines, encoding="utf-8")
        shutil.copy(Path(__file__).with_name("plain_flower.py"), app)
        changes = app / "changes.toml"
        changes.write_text(lines, encoding="utf-8")
        nodes = f"num-supernodes={workload.nodes} client-resources-num-cpus=1"
        run = link.submit(app, changes, nodes)
        status = ""
        while not status.startswith(FINISHED):
            asked = time.monotonic()
            while not (output / DONE).exists() and time.monotonic() - asked < STATUS_POLL_SECONDS:
                time.sleep(FILE_POLL_SECONDS)
            status, _ = link.status(run)
        if status != COMPLETED:
            raise RuntimeError(f"the plain app ended as {status}:\n{link.log(run)[-3000:]}")


if __name__ == "__main__":
    order = json.loads(sys.argv[1])
    main(Workload(**order["workload"]), Path(order["output"]))
