"""The public face: its names are a contract, and importing it costs little and changes nothing."""

import json
import subprocess
import sys
import textwrap
from pathlib import Path
from typing import Any

import pytest

import sparsewright

NAMES = set(
    """
    Budget BudgetError BundleError Data DataError FileError KernelError LayerPlan LayoutError MissingPackageError
    ModelError NumericError PackedWeight PatternError Plan PlanError ProfileError RecipeError SearchResult SparseFormat
    SparseTensor SparsewrightError __version__ dispatch_report doctor inspect linear load load_model load_recipe mark_
    masks measure on_missing pack pack_ parse_pattern profile recover run save search solve_mask sparsify_ verify
    why_not sparsify_file export_onnx keep_masks_ register_transformers train_packed_ adopt_masks_ from_prune_n
    """.split()  # noqa: SIM905 (forty quoted names would hide the list)
)

# Heavy, or able to reach the network or a compiler; each is loaded by the one function that needs it.
HEAVY = sorted(
    """
    scipy scipy.optimize optuna transformers accelerate timm torchvision altair vl_convert onnx onnxscript onnxruntime
    sklearn pydantic yaml typer rich psutil matplotlib pandas ray torch._inductor torch._dynamo
    torch.utils.cpp_extension
    """.split()  # noqa: SIM905
)


def in_fresh_python(code: str) -> Any:
    """What the code prints as JSON in a process of its own."""
    done = subprocess.run(
        [sys.executable, "-c", textwrap.dedent(code)], capture_output=True, text=True, check=False, cwd=Path.cwd()
    )
    assert done.returncode == 0, done.stderr
    return json.loads(done.stdout)


def test_the_names_are_the_contract() -> None:
    assert set(sparsewright.__all__) == NAMES
    assert len(sparsewright.__all__) == len(NAMES)
    assert all(getattr(sparsewright, name) is not None for name in NAMES)


def test_every_error_is_one_of_ours() -> None:
    for name in NAMES:
        if name.endswith("Error"):
            assert issubclass(getattr(sparsewright, name), sparsewright.SparsewrightError)


def test_names_that_share_a_package_are_the_functions() -> None:
    code = """
        import json, sparsewright
        import sparsewright.search, sparsewright.pipeline, sparsewright.report, sparsewright.cli
        print(json.dumps([callable(getattr(sparsewright, name)) for name in ("search", "run", "profile", "inspect")]))
    """
    assert all(in_fresh_python(code))


def test_importing_loads_nothing_heavy() -> None:
    code = f"""
        import json, sys, torch
        before = set(sys.modules)
        import sparsewright
        print(json.dumps([name for name in {HEAVY} if name in sys.modules and name not in before]))
    """
    assert in_fresh_python(code) == []


def test_importing_replaces_no_attribute_of_torch() -> None:
    code = """
        import json, torch
        owners = [torch, torch.nn, torch.nn.functional, torch.Tensor, torch.nn.Module, torch.nn.Linear, torch.autograd,
                  torch.nn.init, torch.optim, torch.serialization, torch.library, torch.nn.Parameter]
        before = [dict(vars(owner)) for owner in owners]
        import sparsewright
        changed = []
        for owner, held in zip(owners, before):
            changed += [f"{owner.__name__}.{key}" for key, value in held.items() if vars(owner).get(key) is not value]
        print(json.dumps(changed))
    """
    assert in_fresh_python(code) == []


def test_importing_and_packing_start_no_process() -> None:
    code = """
        import json, sys
        started = []
        def watch(event, arguments):
            if event in ("subprocess.Popen", "os.system", "os.posix_spawn", "os.exec", "os.fork", "socket.connect"):
                started.append([event, str(arguments[0])])
        import torch
        sys.addaudithook(watch)
        import sparsewright
        weight = torch.randn(64, 64)
        packed = sparsewright.pack(weight, sparsewright.solve_mask(weight.abs(), "2:4x4"), pattern="2:4x4")
        sparsewright.linear(torch.randn(3, 64), packed)
        print(json.dumps(started))
    """
    assert in_fresh_python(code) == []


def test_an_unknown_name_is_an_attribute_error() -> None:
    with pytest.raises(AttributeError, match="nothing"):
        sparsewright.__getattr__("nothing")
