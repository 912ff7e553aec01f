"""The disk of the run folder fills up while a run goes on.

`python -m simulations.chaos_study.full_disk TINY OUTPUT` runs in a mount namespace of its own
(`unshare`) and makes OUTPUT a small file system: nobody else sees it, and it is gone with the process.
"""

from __future__ import annotations

import json
import shutil
import subprocess
import sys
from contextlib import suppress
from dataclasses import asdict
from pathlib import Path

from fedkron.commands.interruption import interruptible
from fedkron.errors import RunError
from fedkron.exchange import load_adapter
from fedkron.rundir import ADAPTER
from simulations.chaos_study.scenarios import VICTIM, Case, Scenario, perform
from simulations.chaos_study.stage import Outcome, Stage
from simulations.chaos_study.verdict import Verdict

SIZE = "1m"
NAME = "disk-full"
EXPECTED = "the run ends as failed, says that the disk is full, and all files that are there are whole"
NAMESPACE = ("unshare", "--map-root-user", "--mount")


def full_disk(tiny: Path, output: Path) -> Verdict | None:
    """Perform it; None where this machine allows no mount namespace."""
    if not shutil.which(NAMESPACE[0]) or subprocess.run([*NAMESPACE, "true"], check=False).returncode:
        return None
    output.mkdir(parents=True)
    command = (*NAMESPACE, sys.executable, "-m", __name__, str(tiny), str(output))
    with subprocess.Popen(command, stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True) as process:
        try:
            said, errors = process.communicate()
        except BaseException:
            process.terminate()  # it has a federation to put away
            process.wait()
            raise
    if process.returncode != 0:
        raise RunError(f"{NAME} broke: {errors.strip()[-2000:]}")
    fields = json.loads(said.splitlines()[-1])
    return Verdict(**{k: tuple(value) if isinstance(value, list) else value for k, value in fields.items()})


def fill(running: Stage, case: Case) -> None:
    """Leave not a byte, while a node trains."""
    running.training(VICTIM, case.struck)
    with (running.folder.parent / "filler").open("wb", buffering=0) as file:
        for size in (1 << 16, 1 << 10, 1):
            with suppress(OSError):
                while file.write(bytes(size)):
                    pass
    case.findings.note(f"the disk filled up in round {case.struck}")


def judge(case: Case, outcome: Outcome) -> None:
    """It failed, and says so in words that help; what was saved before is still good."""
    error = outcome.exception()
    said = str(error)
    failed = isinstance(error, RunError) and "finished:failed" in said
    case.findings.check(failed, "the run ended as failed", f"the run did not end as failed: {error!r}")
    named = "No space left on device" in said
    case.findings.check(named, f"it says: {said.splitlines()[0]}", f"it does not say why: {said[-1000:]}")
    saved = load_adapter(case.folder / ADAPTER).info["round"]
    kept = saved == str(case.struck - 1)
    case.findings.check(kept, "the adapter of the round before is whole", f"the adapter is of round {saved}")


def main() -> int:
    """Called by `full_disk` in a namespace of its own."""
    tiny, output = map(Path, sys.argv[1:])
    subprocess.run(["mount", "-t", "tmpfs", "-o", f"size={SIZE}", "tmpfs", str(output)], check=True)
    with interruptible():
        print(json.dumps(asdict(perform(Scenario(NAME, EXPECTED, fill, judge), tiny, output))))
    return 0


if __name__ == "__main__":
    sys.exit(main())
