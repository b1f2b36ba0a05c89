"""Every verb does its work, prints JSON on request, and ends with code 0."""

import json
import subprocess
import sys
from pathlib import Path

import pytest
import torch
from cli_runs import Command
from safetensors.torch import load_file, save_file

import sparsewright
from sparsewright.cli.app import app
from sparsewright.nn import SparseTensor
from sparsewright.pipeline.session import load_weights

VERBS = [
    *("init", "run", "doctor", "profile", "targets", "search", "sparsify", "train", "pack", "bench"),
    *("inspect", "export", "verify", "report", "list"),
]


def test_the_verbs_are_those_of_the_manual(command: Command) -> None:
    assert [verb.name for verb in app.registered_commands] == VERBS
    for verb in VERBS:
        done = command(verb, "--help")
        assert done.code == 0
        assert "--json" in done.out


def test_help_and_version(command: Command) -> None:
    assert "sparsify" in command("--help").out
    assert command("--version").out.startswith("sparsewright ")
    assert command("--no-such-option").code == 2


def test_run_without_a_recipe_says_how_to_write_one(command: Command) -> None:
    assert "sparsewright init MODEL" in command("run").sentence


def test_the_module_runs_as_a_program(workplace: Path) -> None:
    done = subprocess.run(
        [sys.executable, "-m", "sparsewright.cli", "verify", "nowhere"], capture_output=True, text=True, check=False
    )
    assert done.returncode == 2
    assert done.stderr.count("\n") == 1
    assert done.stderr.startswith("sparsewright: nowhere cannot be read")


def test_list_shows_every_registry_with_a_line_on_each(command: Command) -> None:
    told = command("list", "--json").json
    assert {"solvers", "layouts", "sparsifiers", "adapters", "tasks", "targets", "kernels"} <= set(told)
    assert {"name": "vector", "about": told["layouts"][-1]["about"]} in told["layouts"]
    assert all(row["about"] for rows in told.values() for row in rows)
    assert "token_lane" in command("list", "kernels").out
    assert "Did you mean 'solvers'" in command("list", "solver").sentence


def test_targets(command: Command) -> None:
    assert {"this"} <= {row["name"] for row in command("targets", "--json").json}


def test_sparsify_pack_inspect_verify_and_load(command: Command, workplace: Path, weights: Path, packed: Path) -> None:
    told = command("inspect", packed, "--json").json
    patterns = {row["name"]: row["pattern"] for row in told["rows"]}
    assert patterns["blocks.0.up"] == "2:4x4"
    assert patterns["stem.weight"] == "dense"
    assert told["manifest"]["model"]["source"] == "python:mine:build"
    assert "blocks.0.up" in command("inspect", packed).out
    assert command("inspect", packed, "--manifest").json["format"] == "sparsewright"
    assert command("verify", packed, "--json").json["ok"] is True
    assert "good" in command("verify", packed).out
    model = sparsewright.load(packed, model=sparsewright.load_model("python:mine:build").model)
    assert isinstance(model.blocks[0].up.weight, SparseTensor)
    x = torch.randn(3, 64)
    with torch.no_grad():
        masked = sparsewright.load_model("python:mine:build").model
        load_weights(masked, weights)
        torch.testing.assert_close(model(x), masked(x), rtol=1e-4, atol=1e-5)


def test_export_writes_what_onnxruntime_runs_as_torch_does(command: Command, packed: Path) -> None:
    pytest.importorskip("onnxscript", reason="ONNX files need the extra `onnx`")
    told = command("export", packed, "--out", "model.onnx", "--json").json
    assert Path(told["path"]).stat().st_size == told["size_bytes"]
    assert told["packed_layers"]["VectorLinear"] >= 1
    assert told["error"] < 1e-4
    assert "onnxruntime answers as torch does" in command("export", packed, "--out", "model.onnx").out


def test_sparsify_takes_a_plan_file_and_tells_each_layer(command: Command, workplace: Path) -> None:
    plan = sparsewright.Plan.uniform(["blocks.0.up", "blocks.1.down"], "1:4")
    (workplace / "plan.json").write_text(plan.to_json())
    told = command("sparsify", "python:mine:build", "--plan", "plan.json", "--json").json
    assert set(told["layers"]) == {"blocks.0.up", "blocks.1.down"}
    assert told["layers"]["blocks.0.up"]["pattern"] == "1:4"
    assert "blocks.0.down" in told["skipped"]
    assert "1:4" in command("sparsify", "python:mine:build", "--plan", "plan.json").out


def test_bench_times_a_bundle_against_the_model_it_came_from(command: Command, packed: Path) -> None:
    told = command("bench", packed, "--batches", "1,4", "--seconds", "0.2", "--rivals", "none", "--json").json
    assert set(told) == {"1", "4"}
    assert {row["name"] for row in told["4"]["rows"]} == {"torch fp32", "ours"}
    assert command("bench", packed, "--batches", "2", "--seconds", "0.2", "--rivals", "none").code == 0


def test_profile_measures_and_travels(command: Command, workplace: Path) -> None:
    asked = ("--shapes", "64x64", "--patterns", "2:4x4", "--tokens", "8", "--minutes", "0.01", "--out", "board.json")
    told = command("profile", *asked, "--json").json
    assert {row["pattern"] for row in told["rows"]} == {"dense", "2:4x4"}
    shown = command("profile", "board.json", "--json").json
    assert shown["rows"] == told["rows"]
    assert "64x64" in command("profile", "board.json").out


def test_doctor_tells_the_machine_and_a_verdict(command: Command, workplace: Path) -> None:
    told = command("doctor", "python:mine:build", "--minutes", "0.05", "--batches", "4", "--json").json
    assert told["machine"]["cores"] >= 1
    assert told["model"]["verdict"] in {"worth a proof of concept", "only for size", "not on this machine"}
    assert told["model"]["best_cases"]


def test_report_writes_again_what_results_say(command: Command, workplace: Path) -> None:
    (workplace / "results.json").write_text(
        json.dumps({"version": 1, "tool": {"name": "sparsewright", "version": "0"}})
    )
    assert [Path(path).name for path in command("report", workplace, "--json").json["written"]] == [
        "report.html",
        "report.md",
    ]
    assert command("report", workplace, "--summary").out.strip()


def test_dry_run_lists_the_stages_and_writes_nothing(command: Command, workplace: Path) -> None:
    (workplace / "r.yaml").write_text("model: python:mine:build\ntask: python:mine:task\n")
    before = set(workplace.iterdir())
    stages = command("run", "r.yaml", "--dry-run", "--json").json["stages"]
    assert any(stage.startswith("search") for stage in stages)
    assert set(workplace.iterdir()) == before


def test_debug_shows_where_a_refusal_comes_from(command: Command, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("SPARSEWRIGHT_DEBUG", "1")
    assert "Traceback" in command("verify", "nowhere").err


def test_masks_made_elsewhere_are_taken_over_and_packed(command: Command, workplace: Path) -> None:
    command("sparsify", "python:mine:build", "--plan", "2:4", "--out", "first.safetensors", "--values", "int8")
    tensors = load_file(workplace / "first.safetensors")
    masks = {name: mask for name, mask in tensors.items() if name.endswith("weight_mask")}
    save_file(masks, workplace / "masks.safetensors")
    done = command("sparsify", "python:mine:build", "--masks", "masks.safetensors", "--out", "second.safetensors")
    assert "adopted" in done.out
    again = load_file(workplace / "second.safetensors")
    assert all(torch.equal(again[name], mask) for name, mask in masks.items())
    assert "2:4" in (workplace / "second.plan.json").read_text()
    assert "either --plan" in command("sparsify", "python:mine:build").sentence
    assert (
        "--masks takes weights"
        in command("sparsify", "python:mine:build", "--masks", "m.npz", "--edge", "dense").sentence
    )
    assert "is no file" in command("sparsify", "python:mine:build", "--masks", "m.npz").sentence
    assert "No layer" in command("sparsify", "python:mine:build", "--masks", "zeros").sentence
