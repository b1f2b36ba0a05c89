"""Contract of model adapters, for ours and for plug-ins.

Subclass it in a test file and give it three fixtures: `adapter`, `model` (one that the adapter handles, small) and
`batch` (what the model is called with: a tensor, a tuple or a dict).
"""

import copy
from typing import Any

import pytest
import torch
from torch import nn

from ..core import Plan
from ..models import AbstractAdapter, layers, sparsify_
from ..models.data import as_batch
from ..models.flow import chains


class AdapterContract:
    """Every adapter meets these laws."""

    @pytest.fixture
    def adapter(self) -> AbstractAdapter:
        """The adapter under test."""
        raise pytest.UsageError("An AdapterContract needs a fixture `adapter`.")

    @pytest.fixture
    def model(self) -> nn.Module:
        """A small model of the adapter's family."""
        raise pytest.UsageError("An AdapterContract needs a fixture `model`.")

    @pytest.fixture
    def batch(self) -> Any:
        """One call of the model."""
        raise pytest.UsageError("An AdapterContract needs a fixture `batch`.")

    def test_it_handles_its_model_and_says_no_to_nothing_else_by_an_error(
        self, adapter: AbstractAdapter, model: nn.Module
    ) -> None:
        assert adapter.handles(model)
        assert adapter.handles(nn.Identity()) in (True, False)

    def test_layer_names_are_unique_and_lead_to_their_modules(self, adapter: AbstractAdapter, model: nn.Module) -> None:
        found = adapter.layers(model)
        assert len({ref.name for ref in found}) == len(found)
        assert all(model.get_submodule(ref.name) is ref.module for ref in found)

    def test_every_linear_layer_takes_part_or_has_a_reason(self, adapter: AbstractAdapter, model: nn.Module) -> None:
        listed = {ref.module for ref in adapter.layers(model)}
        assert all(module in listed for module in model.modules() if isinstance(module, nn.Linear))

    def test_some_layer_takes_part(self, adapter: AbstractAdapter, model: nn.Module) -> None:
        assert any(not ref.skipped_reason for ref in adapter.layers(model, mask_only=True))

    def test_a_weight_written_back_is_the_weight_that_was_read(
        self, adapter: AbstractAdapter, model: nn.Module
    ) -> None:
        for ref in adapter.layers(model):
            if ref.skipped_reason:
                continue
            before = copy.deepcopy(ref.module.state_dict())
            weight = ref.get_weight()
            assert tuple(weight.shape) == ref.shape
            ref.set_weight(weight.clone())
            after = ref.module.state_dict()
            assert all(torch.equal(before[key], after[key]) for key in before)

    def test_rows_times_weight_is_the_layers_output(
        self, adapter: AbstractAdapter, model: nn.Module, batch: Any
    ) -> None:
        ref = next(ref for ref in adapter.layers(model, mask_only=True) if not ref.skipped_reason)
        seen: list[tuple[torch.Tensor, torch.Tensor]] = []
        hook = ref.module.register_forward_hook(lambda module, args, output: seen.append((args[0], output)))
        with torch.no_grad():
            as_batch(batch).run(model.eval())
        hook.remove()
        inputs, output = seen[0]
        product = ref.view.rows(inputs, ref.module) @ ref.get_weight().T
        bias = ref.module._parameters.get("bias")
        product = product if bias is None else product + bias.detach()
        channels_last = output.movedim(1, -1) if output.dim() == 4 and ref.kind == "conv2d" else output
        torch.testing.assert_close(product, channels_last.reshape(product.shape), rtol=1e-4, atol=1e-4)

    def test_blocks_run_in_the_order_in_which_they_are_listed(
        self, adapter: AbstractAdapter, model: nn.Module, batch: Any
    ) -> None:
        listed = [name for name, _ in adapter.blocks(model)]
        with torch.no_grad():
            found = chains(model.eval(), adapter.blocks(model), as_batch(batch))
        run = [name for chain in found for name, _ in chain]
        assert run == [name for name in listed if name in run]

    def test_looking_changes_nothing(self, adapter: AbstractAdapter, model: nn.Module) -> None:
        before = copy.deepcopy(model.state_dict())
        adapter.layers(model)
        adapter.blocks(model)
        adapter.heads(model)
        after = model.state_dict()
        assert list(before) == list(after)
        assert all(torch.equal(before[key], after[key]) for key in before)

    def test_its_model_can_be_sparsified_with_calibration(self, model: nn.Module, batch: Any) -> None:
        refs = [ref for ref in layers(model, mask_only=True) if not ref.skipped_reason]
        planned = Plan.uniform([ref.name for ref in refs], "50%")
        result = sparsify_(model, planned, method="wanda", data=[batch])
        assert sorted(result.layers) == sorted(planned.layers)
        for ref in refs:
            mask = ref.get_mask()
            assert mask is not None
            assert int(mask.sum()) == round(0.5 * mask.numel())
            assert bool((ref.get_weight()[~mask] == 0).all())
