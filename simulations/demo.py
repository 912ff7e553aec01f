"""The main job, small but real, from federated training to answers on an edge CPU.

Four sites, each with one real task, fine-tune Kron-LoRA factors of a real pretrained encoder under
`flwr run`; low-bit updates, aggregated by the server; the result goes to ONNX and answers without torch.
"""

from __future__ import annotations

import argparse
import json
import sys
from dataclasses import asdict
from datetime import datetime
from importlib import import_module
from pathlib import Path
from threading import Thread
from typing import Any

from rich.console import Console

from fedkron.commands.export import agreement_table, export_bundle
from fedkron.commands.progress import progress_for
from fedkron.commands.run import federate
from fedkron.commands.run_settings import localized, read_settings
from fedkron.demo import prepare_demo
from fedkron.edge.runtime import Bundle
from fedkron.errors import FedKronError, RunError
from fedkron.flower.superlink import private_superlink
from fedkron.report import figures, show

ROOT = Path(__file__).resolve().parent.parent
QUICK = (
    'tasks="demo:trec,demo:spam" num-server-rounds=1 train.max-train-examples=16 train.max-test-examples=16'
)
QUESTIONS = {
    "trec": "Which river flows through Vienna ?",
    "spam": "Congratulations! You have won a free ticket, call 09061 now to claim",
    "film": "a warm , funny and beautifully acted film .",
    "tweets": "best concert of my life, still smiling :)",
}


def main() -> int:
    """Run the demo; exit code 0 only when every step worked."""
    parser = argparse.ArgumentParser(prog="python -m simulations.demo", description=__doc__)
    parser.add_argument("--output-dir", type=Path, default=Path("runs"), help="where the run folder goes")
    parser.add_argument("--json", metavar="PATH", help="write all figures as JSON (- for standard output)")
    parser.add_argument("--quick", action="store_true", help="two tasks, few texts, one round (under 50 s)")
    options = parser.parse_args()
    # Standard output belongs to the machine when it is asked for there.
    console = Console(stderr=options.json == "-")
    try:
        results = run_demo(options.output_dir.absolute(), quick=options.quick, console=console)
    except FedKronError as error:
        print(f"demo: {error}", file=sys.stderr)
        return 1
    if options.json == "-":
        print(json.dumps(results, indent=1))
    elif options.json:
        Path(options.json).write_text(json.dumps(results, indent=1), encoding="utf-8")
    return 0


def run_demo(output_dir: Path, *, quick: bool, console: Console) -> dict[str, Any]:
    """Train, export and predict; prints tables and returns their figures."""
    prepare_demo(report=lambda line: console.print(line, highlight=False))
    name = f"demo-{datetime.now():%Y%m%d-%H%M%S}"
    settings = localized(
        read_settings(
            ROOT,
            [
                str(ROOT / "simulations" / "demo.toml"),
                *([QUICK] if quick else []),
                f'output-dir={json.dumps(str(output_dir))} run-name="{name}"',
            ],
        )
    )
    sites = len(settings.task_sources)
    console.print(
        f"{sites} sites fine-tune {settings.base} for {settings.num_server_rounds} round(s): "
        f"{settings.codec.upload} uploads, {settings.codec.broadcast} broadcasts.",
        highlight=False,
    )
    simulation = f"num-supernodes={sites} client-resources-num-cpus=1"
    # torch and the exporter take seconds to import: do it while the federation starts.
    Thread(target=import_module, args=("fedkron.edge.check",), daemon=True).start()
    log = federate(
        ROOT, settings, simulation, progress_for(console, settings, sites), link=private_superlink()
    )
    if log is None:
        raise RunError(f"the run completed, but wrote nothing to {output_dir / name}")
    show(log, console)

    folder, agreements = export_bundle(
        log.folder, None, report=lambda line: console.print(line, highlight=False)
    )
    console.print(agreement_table(agreements))

    answers = _ask(folder)
    for answer in answers:
        console.print(
            f"{answer['task']}: [bold]{answer['label']}[/bold] "
            f"({answer['probability']:.2f})  {answer['text']}",
            highlight=False,
        )
    console.print(
        f"Run folder (adapter.safetensors, ledger.jsonl, report.json, …): {log.folder}",
        highlight=False,
        soft_wrap=True,
    )
    console.print(f"ONNX bundle: {folder}", highlight=False, soft_wrap=True)
    console.print(f'Ask it yourself: .venv/bin/fedkron predict {folder} "some text"', soft_wrap=True)
    return {
        **figures(log),
        "bundle": str(folder),
        "agreement": [asdict(agreement) for agreement in agreements],
        "predictions": answers,
    }


def _ask(folder: Path) -> list[dict[str, Any]]:
    bundle = Bundle.open(folder)
    return [
        {"task": task, "text": text, **asdict(bundle.predict([text], task)[0])}
        for task, text in QUESTIONS.items()
        if task in bundle.tasks()
    ]


if __name__ == "__main__":
    sys.exit(main())
