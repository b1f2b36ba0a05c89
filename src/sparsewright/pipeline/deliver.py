"""Stages that make the file: pack, save, reload in a fresh process, verify, and judge what was reloaded."""

from pathlib import Path
from typing import Any

import torch
from safetensors.torch import load_file, save_file
from torch import Tensor, nn

from ..bundle import load, save, verify
from ..core import BundleError, atomic_write
from ..hardware import pack_
from ..models.tasks.base import first_tensor
from .compress import base_of
from .folder import file_digest
from .fresh import reload_in_fresh_process
from .plan_search import Judgement, Settled, judge
from .session import Session, load_weights

BUNDLE = "model.safetensors"


def packed_model(session: Session, settled: Settled) -> nn.Module:
    """The settled weights in the plan's packed layouts."""
    model = session.copy_of_dense()
    load_weights(model, session.folder.file(f"{settled.stage}.safetensors"))
    if settled.plan.sparse_layers or settled.plan.int8_layers:
        # The plan holds what wins by the measured costs; pack_ is not asked to decide again.
        pack_(model, plan=settled.plan, force=True)
    return model.eval()


def save_stage(session: Session, settled: Settled) -> dict[str, Any]:
    """Write the bundle; dense tensors in fp16 where validation still holds the budget, else in fp32."""
    path = session.folder.path / BUNDLE
    recipe = session.recipe

    def work() -> dict[str, Any]:
        model = packed_model(session, settled)
        dense = session.score("dense", session.dense, "validation")
        kinds = ["fp16", "fp32"] if recipe.save.dense == "fp16" else ["fp32"]
        for kind in kinds:
            temporary = session.folder.file(f"bundle-{kind}.safetensors")
            _write(session, model, temporary, kind, settled)
            reloaded = reload_here(session, temporary)
            found = judge(session.score(f"bundle-{kind}", reloaded, "validation"), dense)
            # The same yardstick as the search's; a plan that missed the budget is reported as such, in fp16.
            if found.inside(session) or kind == kinds[-1] or not settled.final.inside(session):
                break
        temporary.replace(path)
        return {
            "dense_dtype": kind,
            "sha256": file_digest(path),
            "size_bytes": path.stat().st_size,
            "validation": vars(found),
        }

    depends = {"plan": settled.plan.to_data(), "save": recipe.save.model_dump(), "base": base_of(session)}
    weights = file_digest(session.folder.file(f"{settled.stage}.safetensors"))
    kept = session.folder.stage("save", {**depends, "weights": weights}, work)
    if not path.exists() or file_digest(path) != kept["sha256"]:
        # The stage ran, but its file was moved or spoiled since: write it again from the same weights.
        _write(session, packed_model(session, settled), path, kept["dense_dtype"], settled)
    return kept


def _write(session: Session, model: nn.Module, path: Path, kind: str, settled: Settled) -> None:
    quality = {"validation": vars(settled.final), "metric": session.task.metric}
    save(
        model,
        path,
        dense_dtype=kind,  # type: ignore[arg-type]
        value_dtype=session.recipe.save.values,
        plan=settled.plan,
        quality=quality,
        source=session.recipe.model,
    )


def reload_here(session: Session, path: Path) -> nn.Module:
    """The bundle as a user gets it, in this process."""
    return load(path, model=session.copy_of_dense()).eval()


def final_judgement(kept: dict[str, Any]) -> Judgement:
    """Validation quality of the model in the file."""
    return Judgement(**kept["validation"])


def verify_stage(session: Session, kept: dict[str, Any]) -> dict[str, Any]:
    """Check every byte of the file, reload it in a fresh process and compare the answers bit by bit.

    Raises:
        BundleError: the file does not verify, or answers differently.
    """
    path = session.folder.path / BUNDLE

    def work() -> dict[str, Any]:
        report = verify(path)
        report.require()
        section = session.recipe.measure
        batch = session.task.bench_batch(min(section.batches), section.length)
        inputs = session.folder.file("fresh_inputs.safetensors")
        with atomic_write(inputs) as temporary:
            save_file({name: tensor.contiguous() for name, tensor in batch.items()}, temporary)
        fresh = reload_in_fresh_process(path, session.recipe.model, inputs, session.folder.file(""), section.threads)
        before = torch.get_num_threads()
        torch.set_num_threads(section.threads)
        try:
            with torch.inference_mode():
                here: Tensor = first_tensor(reload_here(session, path)(**batch))
        finally:
            torch.set_num_threads(before)
        there = load_file(fresh["outputs"])["output"]
        if not torch.equal(here.contiguous(), there):
            worst = float((here - there).abs().max())
            raise BundleError(
                f"{path} answers differently in a fresh process (largest difference {worst:.3g}). "
                "Do not deploy it; run again with --fresh."
            )
        return {"verified": True, "tensors": report.tensors, "fresh": {**fresh, "bit_equal": True}}

    return session.folder.stage("verify", {"sha256": kept["sha256"], "measure": session.recipe.measure.threads}, work)
