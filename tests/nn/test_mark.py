"""Weights, outputs and gradients are sparse by name: under autograd, under torch.compile, and off again."""

import copy
from typing import Any

import pytest
import torch
from torch import Tensor, nn
from torch.nn import functional as F

import sparsewright as sw
from sparsewright.core import KernelError, LayoutError, ModelError, PatternError
from sparsewright.nn import GlobalFraction, NOfM, PackedLinear, SparseFormat, SparseTensor, Threshold

CLOSE = {"rtol": 1e-5, "atol": 1e-5}


def encoder() -> nn.Module:
    torch.manual_seed(0)

    def block() -> nn.Module:
        return nn.ModuleDict({"fc1": nn.Linear(16, 32), "act": nn.ReLU(), "fc2": nn.Linear(32, 16)})

    class Encoder(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.blocks = nn.ModuleList([block(), block()])

        def forward(self, x: Tensor) -> Tensor:
            for each in self.blocks:
                x = x + each["fc2"](each["act"](each["fc1"](x)))
            return x

    return Encoder()


def batch(*shape: int) -> Tensor:
    return torch.randn(*shape, generator=torch.Generator().manual_seed(1))


# Weights.


def test_a_marked_weight_is_sparse_on_every_forward_and_keeps_training() -> None:
    model = encoder()
    parameters = dict(model.named_parameters())
    optimizer = torch.optim.SGD(model.parameters(), lr=0.5)
    marks = sw.mark_(model, weights={"blocks.*.fc1": "2:4"})
    assert list(marks.weights) == ["blocks.0.fc1.weight", "blocks.1.fc1.weight"]
    layer = model.blocks[0]["fc1"]
    before = layer.weight != 0
    for _ in range(3):
        optimizer.zero_grad()
        model(batch(5, 16)).square().mean().backward()
        optimizer.step()
    after = layer.weight != 0
    for kept in (before, after):
        assert kept.unflatten(1, (-1, 4)).sum(-1).unique().tolist() == [2]
    assert not torch.equal(before, after), "what was dropped can come back"
    marks.remove()
    assert type(layer) is nn.Linear
    assert all(parameters[name] is parameter for name, parameter in model.named_parameters())


def test_the_whole_gradient_reaches_a_marked_weight() -> None:
    layer = nn.Linear(16, 8)
    x = batch(5, 16)
    with sw.mark_(layer, weights={"weight": GlobalFraction(0.25)}):
        sparse = layer.weight.detach().clone()
        layer(x).square().sum().backward()
    reference = sparse.requires_grad_()
    F.linear(x, reference, layer.bias.detach()).square().sum().backward()
    torch.testing.assert_close(layer.weight.grad, reference.grad, **CLOSE)


def test_a_tied_weight_is_marked_wherever_it_is_used_and_stays_tied() -> None:
    model = nn.Sequential(nn.Linear(16, 16), nn.Linear(16, 16))
    model[1].weight = model[0].weight
    tied = model[0].weight
    marks = sw.mark_(model, weights={"1": "2:4"})
    assert set(marks.weights) == {"0.weight", "1.weight"}
    assert torch.equal(model[0].weight, model[1].weight)
    assert len({id(parameter) for name, parameter in model.named_parameters() if "bias" not in name}) == 1
    marks.remove()
    assert model[0].weight is tied
    assert model[1].weight is tied
    tied.requires_grad_(False)
    marks = sw.mark_(model, weights={"0": SparseFormat(external=GlobalFraction(0.25), final="vector")})
    assert isinstance(model[1].weight, SparseTensor)
    assert model[0].weight is model[1].weight
    marks.remove()
    assert model[0].weight is tied


def test_a_packed_weight_runs_and_one_that_trains_is_not_frozen_unseen() -> None:
    layer = nn.Linear(16, 8)
    packed = SparseFormat(inline=NOfM(2, 4), final="vector")
    with pytest.raises(ModelError, match="requires a gradient"):
        sw.mark_(layer, weights={"weight": packed})
    assert not isinstance(layer.weight, SparseTensor)
    layer.weight.requires_grad_(False)
    x = batch(5, 16)
    expected = F.linear(x, NOfM(2, 4)(layer.weight), layer.bias)
    sw.mark_(layer, weights={"weight": packed})
    torch.testing.assert_close(layer(x), expected, **CLOSE)
    assert sw.dispatch_report(layer, tokens=5)[0].state == "packed"


def test_inline_and_external_both_act_on_a_weight() -> None:
    layer = nn.Linear(16, 8)
    weight = layer.weight.detach().clone()
    sw.mark_(layer, weights={"weight": SparseFormat(inline=NOfM(2, 4), external=GlobalFraction(0.25))})
    assert torch.equal(layer.weight, GlobalFraction(0.25)(NOfM(2, 4)(weight)))


def test_a_convolution_is_marked_as_the_matrix_that_it_multiplies_by() -> None:
    layer = nn.Conv2d(4, 8, 3)
    matrix = layer.weight.detach().flatten(1)
    sw.mark_(layer, weights={"weight": "2:4"})
    assert torch.equal(layer.weight.flatten(1), NOfM(2, 4)(matrix))


def test_a_conv1d_of_transformers_is_marked_along_its_inputs() -> None:
    from transformers.pytorch_utils import Conv1D

    layer = Conv1D(8, 16)
    weight, x = layer.weight.detach().clone(), batch(5, 16)
    expected = x @ NOfM(2, 4)(weight.T).T + layer.bias
    with sw.mark_(layer, weights={"weight": "2:4"}):
        torch.testing.assert_close(layer(x), expected, **CLOSE)
    layer.weight.requires_grad_(False)
    sw.mark_(layer, weights={"weight": SparseFormat(inline=NOfM(2, 4), final="vector")})
    assert layer.weight.shape == (16, 8)
    torch.testing.assert_close(layer(x), expected, **CLOSE)


def test_the_report_shows_a_marked_weight_as_masked() -> None:
    layer = nn.Linear(16, 8)
    sw.mark_(layer, weights={"weight": "2:4"})
    (row,) = sw.dispatch_report(layer)
    assert (row.state, row.shape, row.kernel) == ("masked", (8, 16), "torch dense")


# Outputs.


@pytest.mark.parametrize("sparsifier", [Threshold(0.5), NOfM(1, 4), GlobalFraction(0.1)], ids=str)
@pytest.mark.parametrize("shape", [(5, 16), (2, 3, 16)])
def test_a_marked_output_is_sparse_and_its_gradient_passes_where_it_keeps(
    sparsifier: Any, shape: tuple[int, ...]
) -> None:
    model = nn.Sequential(nn.Linear(16, 32), nn.ReLU(), nn.Linear(32, 8))
    seen: list[Tensor] = []
    sw.mark_(model, outputs={"1": sparsifier})
    model[2].register_forward_pre_hook(lambda module, inputs: seen.append(inputs[0]))
    x, y = batch(*shape).requires_grad_(), batch(*shape).requires_grad_()
    model(x).square().sum().backward()
    hidden = F.relu(F.linear(y, model[0].weight, model[0].bias))
    F.linear(sparsifier(hidden), model[2].weight, model[2].bias).square().sum().backward()
    assert torch.equal(seen[0], sparsifier(hidden))
    torch.testing.assert_close(x.grad, y.grad, **CLOSE)


def test_a_packed_output_is_multiplied_by_the_sparse_kernels_with_all_gradients() -> None:
    model = nn.Sequential(nn.Linear(16, 32), nn.ReLU(), nn.Linear(32, 8))
    dense = copy.deepcopy(model)
    sw.mark_(model, outputs={"1": SparseFormat(external=GlobalFraction(0.1), final="vector")})
    sw.mark_(dense, outputs={"1": GlobalFraction(0.1)})
    seen: list[Any] = []
    model[2].register_forward_pre_hook(lambda module, inputs: seen.append(inputs[0]))
    x, y = batch(7, 16).requires_grad_(), batch(7, 16).requires_grad_()
    ours, theirs = model(x), dense(y)
    torch.testing.assert_close(ours, theirs, **CLOSE)
    assert isinstance(seen[0], SparseTensor)
    ours.square().sum().backward()
    theirs.square().sum().backward()
    torch.testing.assert_close(x.grad, y.grad, **CLOSE)
    for mine, other in zip(model.parameters(), dense.parameters()):
        torch.testing.assert_close(mine.grad, other.grad, **CLOSE)


def test_an_output_in_torchs_own_sparse_layout_may_have_any_shape() -> None:
    model = nn.Sequential(nn.Linear(16, 32), nn.ReLU())
    sw.mark_(model, outputs={"1": SparseFormat(external=GlobalFraction(0.1), final="coo")})
    y = model(batch(2, 3, 16))
    assert y.layout == torch.sparse_coo
    assert y.shape == (2, 3, 32)
    assert y.coalesce().values().numel() == round(0.1 * 2 * 3 * 32)


def test_a_packed_output_that_is_no_matrix_is_refused_and_told_what_to_do() -> None:
    model = nn.Sequential(nn.Linear(16, 32))
    sw.mark_(model, outputs={"0": SparseFormat(inline=NOfM(2, 4), final="vector")})
    with pytest.raises(LayoutError, match=r"\(2, 3, 32\).*'dense' or 'coo'"):
        model(batch(2, 3, 16))


def test_an_operation_without_a_kernel_on_a_packed_output_raises() -> None:
    model = nn.Sequential(nn.Linear(16, 32), nn.GELU())
    sw.mark_(model, outputs={"0": SparseFormat(inline=NOfM(2, 4), final="vector")})
    with pytest.raises(KernelError, match="no kernel for a packed weight"):
        model(batch(5, 16))


def test_a_module_that_returns_several_tensors_is_named() -> None:
    model = nn.Sequential(nn.LSTM(4, 4))
    sw.mark_(model, outputs={"0": "50%"})
    with pytest.raises(ModelError, match="'0' returns tuple"):
        model(batch(2, 3, 4))


# Gradients.


def test_the_gradient_of_a_weight_is_sparse_in_each_backward() -> None:
    layer, dense = nn.Linear(16, 8), nn.Linear(16, 8)
    dense.load_state_dict(layer.state_dict())
    marks = sw.mark_(layer, weight_gradients={"weight": GlobalFraction(0.25)})
    x = batch(5, 16)
    for _ in range(2):
        layer(x).square().sum().backward()
    dense(x).square().sum().backward()
    torch.testing.assert_close(layer.weight.grad, 2 * GlobalFraction(0.25)(dense.weight.grad), **CLOSE)
    marks.remove()
    layer.weight.grad = None
    layer(x).square().sum().backward()
    torch.testing.assert_close(layer.weight.grad, dense.weight.grad, **CLOSE)


def test_the_gradient_of_a_weight_may_be_torchs_sparse_tensor_that_optimizers_take() -> None:
    layer = nn.Linear(16, 8)
    before = layer.weight.detach().clone()
    sw.mark_(layer, weight_gradients={"weight": SparseFormat(inline=NOfM(1, 4), final="coo")})
    for _ in range(2):
        layer(batch(5, 16)).square().sum().backward()
        assert layer.weight.grad.layout == torch.sparse_coo
    torch.optim.SGD([layer.weight], lr=0.1).step()
    assert int((layer.weight != before).sum()) == 8 * 4


def test_the_gradient_of_an_output_is_sparse_and_the_output_is_not() -> None:
    model = nn.Sequential(nn.Linear(16, 32), nn.Linear(32, 8))
    marks = sw.mark_(model, output_gradients={"0": NOfM(1, 4)})
    x = batch(5, 16)
    y = model(x)
    hidden = model[0].weight @ x.T
    torch.testing.assert_close(y, model[1](hidden.T + model[0].bias), **CLOSE)
    y.square().sum().backward()
    upstream = NOfM(1, 4)((2 * y @ model[1].weight).detach())
    torch.testing.assert_close(model[0].weight.grad, upstream.T @ x, **CLOSE)
    marks.remove()


def test_the_gradient_of_an_output_is_that_of_the_operator_when_both_are_marked() -> None:
    layer = nn.Linear(16, 8)
    sw.mark_(layer, outputs={"": Threshold(0.5)}, output_gradients={"": NOfM(1, 4)})
    x = batch(5, 16)
    y = layer(x)
    y.square().sum().backward()
    torch.testing.assert_close(layer.weight.grad, NOfM(1, 4)(2 * y.detach()).T @ x, **CLOSE)


def test_a_weight_and_its_gradient_can_both_be_marked_in_either_order() -> None:
    for steps in ({"weights": {"fc": "2:4"}, "weight_gradients": {"fc": "25%"}}, None):
        model = nn.Sequential()
        model.fc = nn.Linear(16, 8)
        if steps:
            sw.mark_(model, **steps)  # type: ignore[arg-type]
        else:
            sw.mark_(model, weights={"fc.weight": "2:4"})
            sw.mark_(model, weight_gradients={"fc.weight": "25%"})
        model(batch(5, 16)).square().sum().backward()
        (original,) = [parameter for name, parameter in model.named_parameters() if "original" in name]
        assert int((original.grad != 0).sum()) == 16 * 8 // 4


# Names, errors, compile.


@pytest.mark.parametrize("rule", ["blocks.*.fc1", "re:blocks\\.\\d\\.fc1", "blocks.[01].fc1.weight"])
def test_names_are_exact_globs_or_expressions(rule: str) -> None:
    marks = sw.mark_(encoder(), weights={rule: "2:4"})
    assert list(marks.weights) == ["blocks.0.fc1.weight", "blocks.1.fc1.weight"]


def test_an_exact_name_goes_before_a_pattern() -> None:
    marks = sw.mark_(encoder(), weights={"blocks.*.fc1": "2:4", "blocks.1.fc1": "1:4"})
    assert [fmt.inline for fmt in marks.weights.values()] == [NOfM(2, 4), NOfM(1, 4)]


@pytest.mark.parametrize(
    "wrong",
    [
        {"weights": {"blocks.*.fc3": "2:4"}},
        {"outputs": {"re:(": "2:4"}},
        {"weights": {"blocks.0.fc1": "2:4"}, "outputs": {"nothing": "2:4"}},
        {"weights": {"blocks.0.fc1": "1:4", "blocks.0.fc2": SparseFormat(final="coo")}},
        {"weights": {"blocks.0.fc1": "2:4", "blocks.1.fc1": "1:5"}},
        {"output_gradients": {"blocks.0.fc1": SparseFormat(final="vector")}},
    ],
)
def test_a_mistake_leaves_the_model_as_it_was(wrong: dict[str, Any]) -> None:
    model = encoder()
    before = {name: id(parameter) for name, parameter in model.named_parameters()}
    with pytest.raises((ModelError, PatternError)):
        sw.mark_(model, **wrong)
    assert {name: id(parameter) for name, parameter in model.named_parameters()} == before
    assert not any(module._forward_hooks for module in model.modules())


def test_a_marked_model_can_be_copied() -> None:
    model = encoder()
    sw.mark_(model, weights={"*.fc1": "2:4"}, outputs={"*.act": Threshold(0.1)}, output_gradients={"*.act": "2:4"})
    x = batch(5, 16)
    assert torch.equal(copy.deepcopy(model)(x), model(x))


@pytest.mark.slow
def test_marks_without_packing_compile_as_one_graph() -> None:
    model = encoder()
    sw.mark_(
        model,
        weights={"*.fc1": "2:4", "*.fc2": GlobalFraction(0.25)},
        outputs={"*.act": SparseFormat(inline=Threshold(0.1), external=GlobalFraction(0.5))},
        output_gradients={"*.fc1": NOfM(2, 4)},
        weight_gradients={"*.fc2": GlobalFraction(0.5)},
    )
    x, y = batch(5, 16).requires_grad_(), batch(5, 16).requires_grad_()
    compiled = torch.compile(model, fullgraph=True)
    ours = compiled(x)
    ours.square().sum().backward()
    gradients = [parameter.grad.clone() for parameter in model.parameters()]
    model.zero_grad()
    theirs = model(y)
    theirs.square().sum().backward()
    torch.testing.assert_close(ours, theirs, **CLOSE)
    torch.testing.assert_close(x.grad, y.grad, **CLOSE)
    for mine, parameter in zip(gradients, model.parameters()):
        torch.testing.assert_close(mine, parameter.grad, **CLOSE)


@pytest.mark.slow
def test_packing_an_output_breaks_the_compiled_graph_and_gives_the_same() -> None:
    model = nn.Sequential(nn.Linear(16, 32), nn.ReLU(), nn.Linear(32, 8))
    sw.mark_(model, outputs={"1": SparseFormat(external=GlobalFraction(0.1), final="vector")})
    x = batch(5, 16)
    with torch.no_grad():
        torch.testing.assert_close(torch.compile(model, backend="aot_eager")(x), model(x), **CLOSE)
        torch._dynamo.reset()
        with pytest.raises(torch._dynamo.exc.Unsupported, match="sizes depend on values"):
            torch.compile(model, backend="aot_eager", fullgraph=True)(x)


def test_a_packed_layer_trains_what_its_operator_gives_a_gradient_of() -> None:
    packed = sw.pack(torch.ones(4, 8), torch.ones(4, 8, dtype=torch.bool), layout="masked")
    layer = PackedLinear(packed, torch.zeros(4), trainable=["values"])
    assert [name for name, _ in layer.named_parameters()] == ["packed_values", "bias"]
    layer(batch(3, 8)).sum().backward()
    assert layer.packed_values.grad.shape == (4, 8)
    with pytest.raises(KernelError, match="values can be trained, got index"):
        PackedLinear(packed, trainable=["index"])


# What cannot be marked.


@pytest.mark.parametrize("rules", [{}, {"weights": {}}, {"weights": {}, "outputs": None}])
def test_marking_nothing_is_refused(rules: dict[str, Any]) -> None:
    with pytest.raises(ModelError, match=r"^mark_ was given no rules, so it would mark nothing\. Pass weights="):
        sw.mark_(encoder(), **rules)
    with pytest.raises(ModelError, match=r"A model is a torch\.nn\.Module, got str"):
        sw.mark_("model", weights={"fc1": "2:4"})  # type: ignore[arg-type]


@pytest.mark.parametrize("name", ["in_proj_weight", "out_proj", "q_proj_weight"])
def test_attention_takes_dense_marks_and_refuses_packed_ones_when_they_are_made(name: str) -> None:
    torch.manual_seed(0)
    sizes = {"kdim": 8, "vdim": 8} if name == "q_proj_weight" else {}
    attention = nn.MultiheadAttention(16, 2, batch_first=True, **sizes).requires_grad_(False).eval()
    q = batch(2, 3, 16)
    k = q[..., :8] if sizes else q
    expected = copy.deepcopy(attention)
    weight = expected.get_parameter("out_proj.weight" if name == "out_proj" else name)
    weight.mul_(sw.solve_mask(weight.abs(), "2:4"))
    before = attention(q, k, k)[0]
    with sw.mark_(attention, weights={name: "2:4"}):
        assert torch.equal(attention(q, k, k)[0], expected(q, k, k)[0])
    packed = SparseFormat(inline=NOfM(2, 4), final="vector")
    with pytest.raises(ModelError, match=rf"{name}.* cannot be held in the layout 'vector'.*Use the final layout"):
        sw.mark_(attention, weights={name: packed})
    assert torch.equal(attention(q, k, k)[0], before)
