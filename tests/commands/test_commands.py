"""What a user sees: exit codes, figures for machines, and one line that names the trouble and the remedy."""

import json
import shutil
import subprocess
import sys
from pathlib import Path

import pytest
from command_cases import Finished
from federation_cases import federate, grid_of, run_config_for
from transformers import DistilBertConfig, MistralConfig

from fedkron.cli import main
from fedkron.compression import codec, encode
from fedkron.exchange import load_adapter
from fedkron.ledger import read_ledger
from fedkron.socketlog import Crossing, SocketLog

Capture = pytest.CaptureFixture[str]


def output_of(capsys: Capture, *arguments: object) -> object:
    capsys.readouterr()
    assert main([*map(str, arguments), "--json"]) == 0
    return json.loads(capsys.readouterr().out)


def error_of(capsys: Capture, *arguments: object) -> str:
    capsys.readouterr()
    assert main(list(map(str, arguments))) == 1
    captured = capsys.readouterr()
    assert captured.out == ""
    assert captured.err.startswith("fedkron: ")
    assert captured.err.count("\n") == 1
    return captured.err


@pytest.mark.parametrize(
    "command",
    [
        "run",
        "report",
        "export",
        "predict",
        "serve",
        "inspect",
        "convert",
        "meter",
        "plan",
        "federation",
        "keys",
    ],
)
def test_every_command_explains_itself(command: str, capsys: Capture) -> None:
    with pytest.raises(SystemExit) as ended:
        main([command, "--help"])
    assert ended.value.code == 0
    assert f"usage: fedkron {command}" in capsys.readouterr().out


def test_the_commands_help_needs_neither_torch_nor_flower() -> None:
    heavy = {"torch", "flwr", "onnx", "transformers"}
    code = f"import sys, fedkron.cli; print(sorted({heavy} & sys.modules.keys()))"
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True)
    assert done.stdout.strip() == "[]"


def test_plan_counts_as_the_paper_does(tmp_path: Path, capsys: Capture) -> None:
    # Table 1 of arXiv 2508.01961 without the 591,361 parameters of DistilBERT's trained heads.
    DistilBertConfig().save_pretrained(tmp_path)
    plan = output_of(capsys, "plan", tmp_path)
    assert plan["kinds"]["kron_lora"]["parameters"] == 840_481 - 591_361
    assert plan["kinds"]["lora"]["parameters"] == 1_254_913 - 591_361
    assert plan["baseline_bytes"] == 4 * (1_254_913 - 591_361)
    assert len(plan["layers"]) == 36


def test_plan_names_a_layer_that_does_not_divide(tmp_path: Path, capsys: Capture) -> None:
    DistilBertConfig(dim=30, n_heads=2, hidden_dim=60).save_pretrained(tmp_path)
    error = error_of(capsys, "plan", tmp_path, "--d-a2", "16")
    assert "transformer.layer.0.attention.q_lin" in error
    assert "1, 2, 3, 5, 6, 10, 15, 30" in error


def test_plan_needs_no_weights_of_a_7b_model(tmp_path: Path, capsys: Capture) -> None:
    MistralConfig().save_pretrained(tmp_path)
    plan = output_of(capsys, "plan", tmp_path)
    # The paper's count has the lm_head in it: 16·2 + 2000·8 + 8·2048.
    assert plan["kinds"]["kron_lora"]["parameters"] == 5_708_448 - (32 + 16_000 + 16_384)


def test_plan_says_when_there_is_no_such_base(tmp_path: Path, capsys: Capture) -> None:
    assert "nowhere" in error_of(capsys, "plan", tmp_path / "nowhere")


def test_report_adds_up_what_the_ledger_holds(finished: Finished, capsys: Capture) -> None:
    figures = output_of(capsys, "report", finished.run)
    lines = [json.loads(line) for line in (finished.run / "ledger.jsonl").read_text().splitlines()[1:]]
    assert figures["total_bytes"]["message_up"] == sum(
        line["message_bytes"] for line in lines if line["direction"] == "up"
    )
    assert [entry["round"] for entry in figures["rounds"]] == [1, 2]
    assert main(["report", str(finished.run)]) == 0
    assert "animals" in capsys.readouterr().out


def test_report_of_something_else_is_refused(tmp_path: Path, capsys: Capture) -> None:
    assert "not a run folder" in error_of(capsys, "report", tmp_path)


def test_export_never_overwrites(finished: Finished, capsys: Capture) -> None:
    before = sorted(path.name for path in finished.bundle.parent.iterdir())
    assert "exists already" in error_of(capsys, "export", finished.run, "-o", finished.bundle)
    assert sorted(path.name for path in finished.bundle.parent.iterdir()) == before


def test_export_without_heads_says_where_they_are(
    finished: Finished, tmp_path: Path, capsys: Capture
) -> None:
    shutil.copytree(finished.run, tmp_path / "run", ignore=shutil.ignore_patterns("nodes"))
    assert "--head" in error_of(capsys, "export", tmp_path / "run")


def test_a_shared_head_of_choices_is_exported_and_answers(
    tmp_path: Path, tiny_bert: Path, tasks: Path, capsys: Capture
) -> None:
    config = run_config_for(tmp_path, tiny_bert, tasks / "quiz", changes={"head": "shared"})
    run = federate(config, grid_of(config, 2)).folder
    agreement = output_of(capsys, "export", run)["agreement"]
    assert all(form["difference"] < 1e-4 for form in agreement)
    (answer,) = output_of(capsys, "predict", run / "bundle", "the _", "--choice", "rose", "--choice", "milk")
    assert (answer["task"], len(answer["probabilities"])) == ("quiz", 2)


def test_inspect_describes_each_of_our_files(finished: Finished, tmp_path: Path, capsys: Capture) -> None:
    adapter = load_adapter(finished.run / "adapter.safetensors")
    payload = tmp_path / "update.fkrn"
    payload.write_bytes(encode(adapter.state, adapter.layout, codec("int4"), round=7))
    head = finished.run / "nodes" / "animals-0" / "head.safetensors"
    transfers = read_ledger(finished.run / "ledger.jsonl")

    described = output_of(capsys, "inspect", finished.run / "adapter.safetensors")
    assert (described["format"], described["parameters"]) == ("adapter", adapter.layout.size)
    assert output_of(capsys, "inspect", head)["labels"] == ["cat", "dog"]
    described = output_of(capsys, "inspect", payload)
    assert (described["codec"], described["round"], described["contract"]) == (
        "int4",
        7,
        adapter.layout.contract,
    )
    described = output_of(capsys, "inspect", finished.run / "ledger.jsonl")
    assert described["baseline"] == sum(transfer.baseline_bytes for transfer in transfers)
    sockets = tmp_path / "sockets.jsonl"
    log = SocketLog(sockets, listen="127.0.0.1:1", to="127.0.0.1:2")
    log.record(Crossing(1, 0.0, 1.0, up=3, down=5))
    log.close()
    assert output_of(capsys, "inspect", sockets) == {
        "format": "socket log",
        "up": 3,
        "down": 5,
        "connections": 1,
    }
    assert output_of(capsys, "inspect", finished.bundle)["contract"] == adapter.layout.contract
    assert output_of(capsys, "inspect", finished.run)["status"] == "completed"
    checkpoint = output_of(capsys, "inspect", finished.run / "checkpoint.safetensors")
    assert (checkpoint["format"], checkpoint["contract"]) == ("checkpoint", adapter.layout.contract)
    assert checkpoint["round"] == len(output_of(capsys, "inspect", finished.run)["rounds"])
    (state, *_) = sorted((finished.run / "nodes").rglob("round-*.safetensors"))
    assert output_of(capsys, "inspect", state)["format"] == "node state"
    assert main(["inspect", str(head)]) == 0


def test_inspect_refuses_a_corrupt_payload(finished: Finished, tmp_path: Path, capsys: Capture) -> None:
    adapter = load_adapter(finished.run / "adapter.safetensors")
    blob = bytearray(encode(adapter.state, adapter.layout, codec("int4"), round=1))
    blob[-5] ^= 1
    (tmp_path / "update").write_bytes(blob)
    assert "checksum" in error_of(capsys, "inspect", tmp_path / "update")


def test_inspect_refuses_what_is_not_ours(tmp_path: Path, capsys: Capture) -> None:
    (tmp_path / "note.txt").write_text("hello")
    assert "note.txt" in error_of(capsys, "inspect", tmp_path / "note.txt")
    assert "neither a bundle" in error_of(capsys, "inspect", tmp_path)
    assert "does not exist" in error_of(capsys, "inspect", tmp_path / "gone")
