"""Floor 7: plans under budgets. Gets `evaluate` passed in, never trains, never opens the test split."""

from .bisection import fastest_within_drop
from .budget import Budget
from .front import dominates, pareto_front
from .knapsack import Window, choose
from .search import PlanResult, SearchResult, costs_of, measure_plan, search
from .sensitivity import Sensitivity, magnitude_errors, measure_sensitivity
from .space import CPU_PATTERNS, Choice, CostTable, cost_table, make_choices, table_data
from .sweep import (
    Pick,
    best_at_speedup,
    describe,
    fastest_speedup,
    fastest_within_loss,
    greedy_pick,
    random_picks,
    sweep,
    uniform_picks,
)

__all__ = [
    "CPU_PATTERNS",
    "Budget",
    "Choice",
    "CostTable",
    "Pick",
    "PlanResult",
    "SearchResult",
    "Sensitivity",
    "Window",
    "best_at_speedup",
    "choose",
    "cost_table",
    "costs_of",
    "describe",
    "dominates",
    "fastest_speedup",
    "fastest_within_drop",
    "fastest_within_loss",
    "greedy_pick",
    "magnitude_errors",
    "make_choices",
    "measure_plan",
    "measure_sensitivity",
    "pareto_front",
    "random_picks",
    "search",
    "sweep",
    "table_data",
    "uniform_picks",
]
