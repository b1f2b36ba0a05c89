"""A recipe, or `train` on the command line, may let masks move while it recovers; patterns stay what the plan says."""

from collections.abc import Callable
from pathlib import Path

import pytest
import torch
from safetensors.torch import load_file

from sparsewright import parse_pattern
from sparsewright.cli import main
from sparsewright.pipeline.single_steps import sparsify_to


@pytest.mark.parametrize("where", ["recipe", "command line"])
def test_masks_move_within_the_patterns_of_the_plan(
    small_recipe: Callable[..., Path], tmp_path: Path, monkeypatch: pytest.MonkeyPatch, where: str
) -> None:
    monkeypatch.syspath_prepend(str(Path(__file__).parent))
    moves = {"schedule": "rigl", "every": 1}
    recipe = small_recipe(recover={"steps": 6, **(moves if where == "recipe" else {})})
    start, end = tmp_path / "sparse.safetensors", tmp_path / "trained.safetensors"
    sparsify_to(str(recipe), "2:4x4", start)
    options = ["--schedule", "rigl", "--every", "1"] if where == "command line" else []
    assert main(["train", str(recipe), str(start), "--out", str(end), "--json", *options]) == 0
    before, after = load_file(start), load_file(end)
    names = [name for name in before if name.endswith("weight_mask")]
    assert names
    for name in names:
        assert not torch.equal(before[name], after[name])
        assert parse_pattern("2:4x4").check_mask(after[name]) == []
        assert not after[name.removesuffix("_mask")][~after[name]].any()


def test_a_schedule_that_starts_dense_is_refused_on_the_command_line(
    small_recipe: Callable[..., Path],
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
    capsys: pytest.CaptureFixture[str],
) -> None:
    monkeypatch.syspath_prepend(str(Path(__file__).parent))
    recipe = small_recipe()
    start = tmp_path / "sparse.safetensors"
    sparsify_to(str(recipe), "2:4x4", start)
    arguments = ["train", str(recipe), str(start), "--schedule", "gradual"]
    assert main([*arguments, "--out", str(tmp_path / "trained.safetensors")]) == 2
    assert "starts dense" in " ".join(capsys.readouterr().err.split())
