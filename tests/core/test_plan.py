"""Plans travel as JSON, and rules choose layers by name."""

import copy
import pickle

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from sparsewright.core import NM, Dense, LayerPlan, Plan, PlanError, parse_pattern
from sparsewright.testing import PATTERN_TEXTS

NAMES = ["encoder.0.fc1", "encoder.0.fc2", "encoder.1.fc1", "encoder.1.fc2", "head"]

layer_plans = st.builds(
    LayerPlan,
    st.sampled_from(("dense", *PATTERN_TEXTS)).map(parse_pattern),
    layout=st.sampled_from(["auto", "vector"]),
    sparsifier=st.sampled_from([None, "wanda"]),
    value_dtype=st.sampled_from(["fp32", "fp16", "int8"]),
    reason=st.text(max_size=20),
)


@settings(max_examples=40)
@given(st.dictionaries(st.text(min_size=1, max_size=12), layer_plans, max_size=6))
def test_a_plan_survives_json_pickle_and_copy(layers: dict[str, LayerPlan]) -> None:
    plan = Plan(layers)
    for again in (Plan.from_json(plan.to_json()), pickle.loads(pickle.dumps(plan)), copy.deepcopy(plan)):
        assert again == plan
        assert list(again.layers) == list(layers)
        assert hash(again) == hash(plan)


def test_exact_names_win_over_expressions_and_earlier_expressions_over_later_ones() -> None:
    rules = {"re:.*fc2": "1:4", "re:encoder.*": "2:4", "encoder.1.fc2": "dense"}
    plan = Plan.from_rules(rules, NAMES)
    assert [str(pattern) for pattern in plan.patterns().values()] == ["2:4", "1:4", "2:4", "dense"]
    assert list(plan.layers) == NAMES[:4]
    assert list(plan.sparse_layers) == NAMES[:3]


def test_expressions_must_match_the_whole_name() -> None:
    with pytest.raises(PlanError, match="whole name"):
        Plan.from_rules({"re:fc2": "2:4"}, NAMES)


@pytest.mark.parametrize(
    ("rules", "message"),
    [
        ({"encoder.0.fc3": "2:4"}, "Did you mean 'encoder.0.fc"),
        ({"re:(": "2:4"}, "regular expression"),
        ({"head": {"pattern": "2:4", "layuot": "vector"}}, "Did you mean 'layout'"),
        ({"head": {"pattern": "2:4", "value_dtype": "fp61"}}, "Did you mean 'fp16'"),
        ({"head": {"pattern": "2:4", "layout": 3}}, "must be a text"),
        ({"head": 3}, "layer plan"),
    ],
)
def test_wrong_rules_are_refused_with_a_remedy(rules: dict[str, object], message: str) -> None:
    with pytest.raises(PlanError, match=message):
        Plan.from_rules(rules, NAMES)


@pytest.mark.parametrize(
    "text", ["{", "[]", "{}", '{"version": 2, "layers": {}}', '{"version": 1, "layers": {"a": 1}}']
)
def test_texts_that_are_no_plans_are_refused(text: str) -> None:
    with pytest.raises(PlanError):
        Plan.from_json(text)


def test_density_weighs_layers_by_their_size() -> None:
    plan = Plan({"a": LayerPlan(NM(1, 4)), "b": LayerPlan(Dense())})
    assert plan.density({"a": (3, 4), "b": (1, 4)}) == pytest.approx((12 * 0.25 + 4) / 16)


def test_copies_leave_the_first_plan_alone() -> None:
    plan = Plan.uniform(["a", "b"], "2:4")
    other = plan.with_layer("a", LayerPlan(Dense())).with_sparsifier("wanda")
    assert [layer.sparsifier for layer in other.layers.values()] == [None, "wanda"]
    assert plan == Plan.uniform(["a", "b"], "2:4")
    with pytest.raises(TypeError):
        plan.layers["a"] = LayerPlan(Dense())  # type: ignore[index]
