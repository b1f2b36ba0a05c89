"""A user's mistakes and broken inputs: one clear sentence each, exit code 2, nothing written."""

import json
import os
import subprocess
import sys
from collections.abc import Callable
from pathlib import Path

import pytest
import yaml
from small_disk import ROOT

from sparsewright.cli import main

Refused = Callable[..., str]


@pytest.fixture
def refused(capsys: pytest.CaptureFixture[str], seed: Path, monkeypatch: pytest.MonkeyPatch) -> Refused:
    """Runs a command in the seed folder and gives its one sentence; nothing may have been written."""
    monkeypatch.chdir(seed)
    monkeypatch.syspath_prepend(str(ROOT / "tests" / "pipeline"))
    monkeypatch.setenv("SPARSEWRIGHT_CACHE", str(seed.parent / "cache"))

    def run(*arguments: object) -> str:
        before = {path for path in seed.rglob("*") if path.is_file() and "__pycache__" not in path.parts}
        capsys.readouterr()
        assert main([str(argument) for argument in arguments]) == 2
        taken = capsys.readouterr()
        lines = [line for line in taken.err.splitlines() if line.startswith("sparsewright: ")]
        assert len(lines) == 1, taken.err
        assert "Traceback" not in taken.err
        after = {path for path in seed.rglob("*") if path.is_file() and "__pycache__" not in path.parts}
        # A log, and stages that had ended before the mistake was met: whole files of the run folder.
        for path in after - before:
            assert path.name == "events.jsonl" or json.loads(path.read_text())["key"], path
        return lines[0]

    return run


def change(seed: Path, /, **changes: object) -> None:
    recipe = yaml.safe_load((seed / "recipe.yaml").read_text())
    (seed / "recipe.yaml").write_text(yaml.safe_dump({**recipe, **changes}))


@pytest.mark.parametrize(
    ("changes", "words"),
    [
        ({"budgt": {"speedup": 2}}, "Did you mean 'budget'"),
        ({"search": {"evalutions": 3}}, "Did you mean 'evaluations'"),
        ({"recover": {"step": 3}}, "Did you mean 'steps'"),
        ({"budget": {"max_quality_drop": "little"}}, "budget.max_quality_drop"),
        ({"measure": {"batches": [0]}}, "measure.batches"),
        ({"sparsify": {"patterns": ["2:3:"]}}, "is no pattern"),
        ({"target": []}, "target"),
        ({"seed": -1}, "seed"),
        ({"measure": {"batches": []}}, "measure.batches"),
        ({"task": {"name": "python:small_model:make_task", "x": 1}}, "unexpected keyword argument 'x'"),
        ({"target": "thsi"}, "Did you mean 'this'"),
        ({"model": "hff:name"}, "Did you mean 'hf'"),
        ({"model": "python:small_model:bild"}, "Did you mean 'build'"),
        ({"task": "docstrings-retrieval"}, "Did you mean 'docstring-retrieval'"),
        ({"sparsify": {"method": "sparsgpt"}}, "Did you mean 'sparsegpt'"),
    ],
)
def test_a_wrong_recipe_names_the_key_and_what_was_meant(
    refused: Refused, seed: Path, changes: dict[str, object], words: str
) -> None:
    change(seed, **changes)
    assert words in refused("run", "recipe.yaml")


def test_a_recipe_that_is_not_there_or_no_yaml(refused: Refused, seed: Path) -> None:
    assert "nowhere.yaml" in refused("run", "nowhere.yaml")
    (seed / "recipe.yaml").write_text("model: [")
    assert "not valid YAML" in refused("run", "recipe.yaml")
    (seed / "recipe.yaml").write_text("- model")
    assert "mapping" in refused("run", "recipe.yaml")
    (seed / "recipe.yaml").write_bytes(b"\xff\xfe\x00")
    refused("run", "recipe.yaml")


def test_a_weight_that_is_no_number_is_named_with_its_place(refused: Refused, seed: Path) -> None:
    sentence = refused("sparsify", "python:small_model:build_with_nan", "--plan", "2:4")
    assert "nan" in sentence
    assert "[3, 5]" in sentence
    change(seed, model="python:small_model:build_with_nan")
    sentence = refused("run", "recipe.yaml")
    assert "[3, 5]" in sentence or "nan" in sentence.lower()


def test_a_corrupt_bundle_is_one_sentence_for_every_verb(refused: Refused, seed: Path) -> None:
    assert main(["sparsify", "python:small_model:build", "--plan", "2:4", "--out", "s.safetensors"]) == 0
    assert main(["pack", "python:small_model:build", "s.safetensors", "--force", "--out", "m.safetensors"]) == 0
    whole = (seed / "m.safetensors").read_bytes()
    (seed / "m.safetensors").write_bytes(whole[:-1])
    for verb in ("verify", "inspect", "bench"):
        assert "cannot be used as a bundle" in refused(verb, "m.safetensors")
    changed = bytearray(whole)
    changed[-1] ^= 1
    (seed / "m.safetensors").write_bytes(changed)
    assert "sha256 differs" in refused("verify", "m.safetensors")
    (seed / "s.safetensors").write_bytes(whole[:100])
    assert "s.safetensors" in refused("pack", "python:small_model:build", "s.safetensors", "--out", "n.safetensors")


@pytest.mark.parametrize("content", ["", "{", "[]", '{"version": 9}', '{"version": 1, "layers": {"a": {"patern": 1}}}'])
def test_a_broken_plan_is_one_sentence(refused: Refused, seed: Path, content: str) -> None:
    (seed / "plan.json").write_text(content)
    refused("sparsify", "python:small_model:build", "--plan", "plan.json")


def test_a_broken_profile_and_broken_results_are_one_sentence(refused: Refused, seed: Path) -> None:
    (seed / "fixed.json").write_text('{"rows": [')
    assert "fixed.json" in refused("run", "recipe.yaml")
    assert "fixed.json" in refused("profile", "fixed.json")
    (seed / "results.json").write_text('{"version": 1, "table": 3}')
    refused("report", seed)
    refused("report", seed / "nowhere")


@pytest.mark.parametrize(
    ("arguments", "words"),
    [
        (("profile", "--values", "fp99", "--shapes", "64x64"), "no 'fp99' values"),
        (("profile", "--patterns", "2:4", "--shapes", "7x13"), "2:4 cannot be measured at 7x13"),
        (("doctor", "python:broken:build"), "raised ValueError: no such luck. Repair the factory"),
        (("sparsify", "python:small_model:build", "--plan", "0:4"), "Write for instance 2:4"),
        (("sparsify", "python:small_model:build", "--plan", "2:4", "--out", "."), "Check the path"),
        (("bench", "nowhere.safetensors"), "looks like a file"),
        (("bench", "python:small_model:build", "--threads", "0"), "at least one thread, got 0"),
    ],
)
def test_a_wrong_argument_is_one_sentence(refused: Refused, seed: Path, arguments: tuple[str, ...], words: str) -> None:
    (seed / "broken.py").write_text("def build():\n    raise ValueError('no such luck')\n")
    assert words in refused(*arguments)


HIDDEN = """
import sys
for name in {names}:
    sys.modules[name] = None
from sparsewright.cli import main
sys.exit(main({arguments}))
"""


@pytest.mark.parametrize(
    ("hidden", "arguments", "words"),
    [
        ("transformers", ["doctor", "hf:some/model"], "sparsewright[hf]"),
        ("timm", ["sparsify", "timm:vit_tiny_patch16_224", "--plan", "2:4"], "sparsewright[timm]"),
        ("sklearn", ["run", "digits.yaml"], "scikit-learn"),
    ],
)
def test_a_missing_package_is_named_with_the_command_that_installs_it(
    seed: Path, hidden: str, arguments: list[str], words: str
) -> None:
    (seed / "digits.yaml").write_text("model: python:small_model:build\ntask: digits\nrecover: {steps: 1}\n")
    path = os.pathsep.join([str(ROOT / "tests" / "pipeline"), os.environ.get("PYTHONPATH", "")])
    done = subprocess.run(
        [sys.executable, "-c", HIDDEN.format(names=[hidden], arguments=arguments)],
        capture_output=True,
        text=True,
        check=False,
        cwd=seed,
        env={**os.environ, "PYTHONPATH": path, "SPARSEWRIGHT_CACHE": str(seed / "cache")},
    )
    assert done.returncode == 2, done.stderr
    sentences = [line for line in done.stderr.splitlines() if line.startswith("sparsewright: ")]
    assert len(sentences) == 1
    assert words in sentences[0]
    assert "Traceback" not in done.stderr
    assert not list(seed.glob("*.safetensors"))
