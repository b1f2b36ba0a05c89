"""Stages: sensitivity, then the search for the fastest plan inside the budget, every true evaluation kept on disk."""

import time
from dataclasses import dataclass
from typing import Any, final

from ..core import BudgetError, Plan, PlanError, read_json, write_json
from ..models.tasks import Quality, paired_difference
from ..search import (
    Budget,
    CostTable,
    Pick,
    Sensitivity,
    best_at_speedup,
    describe,
    fastest_within_drop,
    fastest_within_loss,
    greedy_pick,
    magnitude_errors,
    measure_sensitivity,
    random_picks,
    sweep,
    uniform_picks,
)
from .compress import as_it_runs, base_of, recovered, sparsified
from .folder import RunFolder, digest
from .session import Session

FRONT_POINTS = 12
# Sparsifiers that have a cheaper form of the same kind, to rank patterns with.
RANKED_BY = dict.fromkeys(("sparsegpt", "alps", "learned", "auto"), "sparsegpt-plain")
CHECKPOINT_EVERY_S = 5.0


@final
@dataclass(frozen=True)
class Judgement:
    """One plan, truly evaluated on validation.

    Attributes:
        quality: of the sparse model.
        drop: dense - sparse, mean over the items.
        stderr: paired standard error of the drop.
        worst_slice_drop: largest drop of any slice.
    """

    quality: float
    drop: float
    stderr: float
    worst_slice_drop: float

    def allowed(self, session: Session) -> float:
        """Largest drop that the recipe allows, given how well this one is known."""
        budget = session.recipe.budget
        return max(budget.max_quality_drop or 0.0, budget.or_standard_errors * self.stderr)

    def inside(self, session: Session) -> bool:
        """Whether the budget's quality bounds hold."""
        budget = session.recipe.budget
        worst = budget.worst_slice_drop
        return (budget.max_quality_drop is None or self.drop <= self.allowed(session)) and (
            worst is None or self.worst_slice_drop <= worst
        )


@final
@dataclass(frozen=True)
class Settled:
    """The plan the run ends with.

    Attributes:
        plan: layer name -> layer plan.
        pick: the same as indices into the cost table.
        one_shot, final: before and after recovery.
        stage: the run folder's stage that holds the weights.
        attempts: how many plans were recovered until one held the budget.
    """

    plan: Plan
    pick: Pick
    one_shot: Judgement
    final: Judgement
    stage: str
    attempts: int


def judge(ours: Quality, dense: Quality) -> Judgement:
    """Compare with the dense model item by item."""
    difference = paired_difference(ours, dense)
    slices, reference = ours.by_slice(), dense.by_slice()
    worst = max(reference[name] - slices[name] for name in reference)
    return Judgement(ours.value, -difference.mean, difference.standard_error, worst)


def sensitivity_stage(session: Session, table: CostTable) -> Sensitivity:
    """Errors and weights of every (layer, pattern) in the table; each block's figures survive a kill."""
    # As patterns, because a text would lose how they treat edges.
    patterns = list(dict.fromkeys(c.pattern for row in table.choices for c in row if not c.is_dense))
    method = session.recipe.sparsify.method
    # Only the order of the choices counts here: true evaluations bring the sum into the user's unit.
    ranking = RANKED_BY.get(method, method)
    depends = {
        "patterns": [str(pattern) for pattern in patterns],
        "layers": list(table.names),
        "base": base_of(session),
    }
    figures = KeptFigures(session.folder, digest(depends), expected=len(table.names) * (len(patterns) + 1))

    def work() -> dict[str, Any]:
        found = measure_sensitivity(
            session.dense,
            session.task.calibration(),
            session.candidates,
            patterns,
            sparsifier=ranking,
            int8=any(c.value_dtype == "int8" for row in table.choices for c in row),
            cache=figures,
        )
        return {
            "errors": [[layer, pattern, error] for (layer, pattern), error in found.errors.items()],
            "weights": dict(found.weights),
            "int8_errors": dict(found.int8_errors),
        }

    kept = session.folder.stage("sensitivity", depends, work)
    return Sensitivity(
        errors={(layer, pattern): error for layer, pattern, error in kept["errors"]},
        weights=kept["weights"],
        int8_errors=kept["int8_errors"],
        sparsifier=ranking,
    )


@final
class KeptFigures(dict[str, float]):
    """Figures by name that survive a kill: written to the run folder every few seconds, read back when it resumes.

    Args:
        folder: the run folder.
        key: of what the figures depend on; others are forgotten.
        expected: how many there will be, for the progress.
    """

    def __init__(self, folder: RunFolder, key: str, expected: int) -> None:
        super().__init__()
        self._folder, self._key, self._expected = folder, key, expected
        self._path = folder.file("sensitivity.partial.json")
        self._written = time.monotonic()
        if self._path.exists():
            kept = read_json(self._path)
            if kept["key"] == key:
                self.update(kept["figures"])

    def __setitem__(self, name: str, value: float) -> None:
        super().__setitem__(name, value)
        self._folder.report("sensitivity", name.split("|")[2], min(0.99, len(self) / self._expected))
        if time.monotonic() - self._written > CHECKPOINT_EVERY_S:
            write_json(self._path, {"key": self._key, "figures": dict(self)})
            self._written = time.monotonic()


class PlanSearch:
    """Walks the front and remembers what was truly evaluated."""

    def __init__(self, session: Session, table: CostTable, sensitivity: Sensitivity) -> None:
        self.session = session
        self.table = table
        self.sensitivity = sensitivity
        # A plan of the recipe's own is judged by the budget, not searched under it.
        budget = Budget() if session.given_plan is not None else session.recipe.budget.as_budget()
        self.picks = sweep(table, sensitivity.losses(table), budget, FRONT_POINTS)
        self.judged: dict[tuple[int, ...], Judgement] = {}
        self.recovered: dict[tuple[int, ...], Judgement] = {}
        self.remaining = 1.0 - (session.recipe.search.expected_recovery if session.recipe.recover.enabled else 0.0)

    def plan(self, pick: Pick) -> Plan:
        """The pick as a plan."""
        return self.table.plan(pick.choices, self.session.recipe.sparsify.method)

    def one_shot(self, pick: Pick) -> Judgement:
        """Sparsify a copy and score it on validation; kept in the run folder."""
        if pick.choices not in self.judged:
            plan = self.plan(pick)
            name = f"trial-{digest(plan.to_data())[:12]}"
            self.judged[pick.choices] = evaluate_stage(self.session, plan, name)
        return self.judged[pick.choices]

    def expected_drop(self, pick: Pick) -> float:
        """Drop expected after recovery, scaled so that the budget is always the same number."""
        found = self.one_shot(pick)
        budget = self.session.recipe.budget
        allowed = found.allowed(self.session)
        unit = (budget.max_quality_drop or 0.0) / allowed if allowed > 0 else 1.0
        drop = found.drop * self.remaining * unit
        if budget.worst_slice_drop:
            worst = found.worst_slice_drop * self.remaining / budget.worst_slice_drop
            drop = max(drop, worst * (budget.max_quality_drop or 0.0))
        return drop

    def choose(self) -> Pick:
        """The recipe's own plan, the fastest expected to hold the budget, or the least lossy at the asked speed."""
        recipe = self.session.recipe
        if self.session.given_plan is not None:
            return self._given(self.session.given_plan)
        budget = recipe.budget
        if budget.max_quality_drop is None:
            pick = self.picks[0] if budget.speedup or budget.size_bytes else self.picks[-1]
            self.one_shot(pick)
            return pick
        pick, self.sensitivity = fastest_within_drop(
            self.picks,
            self.table,
            self.sensitivity,
            self.expected_drop,
            budget.max_quality_drop,
            recipe.search.evaluations,
            budget.size_bytes,
        )
        self.one_shot(pick)
        return pick

    def _given(self, plan: Plan) -> Pick:
        """The recipe's own plan as a pick."""
        choices = self.table.pick_of(plan)
        for name, number in zip(self.table.names, choices):
            layer = plan.layers.get(name)
            if layer is not None and (not layer.is_dense or layer.value_dtype == "int8") and number == 0:
                why = "; ".join(self.table.reasons.get(name, ("it cannot run on this target",)))
                raise PlanError(
                    f"The recipe plans {layer.pattern} with {layer.value_dtype} values for {name}, which does not win "
                    f"here: {why}. Leave it out."
                )
        pick = describe(self.table, self.sensitivity.losses(self.table), choices, "the recipe's own", "search")
        self.one_shot(pick)
        return pick

    def settle(self) -> Settled:
        """Recover the chosen plan; where the budget does not hold, recover a milder one. A plan of the recipe's own is
        taken as it is, and the report says whether it holds the budget.

        Raises:
            BudgetError: no plan holds the quality budget; names the least drop that was seen.
        """
        pick = self.choose()
        for attempt in range(1, self.session.recipe.search.attempts + 1):
            settled = self.recover(pick, attempt)
            if settled.final.inside(self.session) or self.session.given_plan is not None:
                return settled
            one_shot = settled.one_shot.drop
            self.remaining = min(1.0, settled.final.drop / one_shot) if one_shot > 0 else 1.0
            milder = self._milder(pick, settled)
            if milder is None or milder.choices == pick.choices:
                break
            pick = milder
        return self._fallback()

    def recover(self, pick: Pick, attempt: int) -> Settled:
        """Sparsify and recover one pick, then score it on validation."""
        plan = self.plan(pick)
        one_shot = self.one_shot(pick)
        mark = digest(plan.to_data())[:12]
        stage = f"recovered-{mark}"
        model, named = sparsified(self.session, plan, f"sparse-{mark}")
        model = recovered(self.session, model, plan, stage)
        if not self.session.recipe.recover.enabled or not plan.sparse_layers:
            return Settled(named, pick, one_shot, one_shot, f"sparse-{mark}", attempt)

        def work() -> dict[str, Any]:
            dense = self.session.score("dense", self.session.dense, "validation")
            return vars(judge(self.session.score(stage, as_it_runs(model, plan), "validation"), dense))

        depends = {"stage": stage, "base": base_of(self.session), "plan": plan.to_data()}
        depends["recover"] = self.session.recipe.recover.model_dump()
        final = Judgement(**self.session.folder.stage(f"judged-{mark}", depends, work))
        return Settled(named, pick, one_shot, final, stage, attempt)

    def _milder(self, pick: Pick, settled: Settled) -> Pick | None:
        """The fastest plan whose predicted loss, after the recovery just seen, is nine tenths of the budget."""
        budget = self.session.recipe.budget
        goal = 0.9 * settled.final.allowed(self.session)
        losses = self.sensitivity.losses(self.table)
        predicted = describe(self.table, losses, pick.choices, "", "").loss
        if settled.final.drop <= 0 or predicted <= 0:
            return None
        allowed = predicted * goal / settled.final.drop
        if budget.speedup is not None:
            try:
                slowest = best_at_speedup(self.table, losses, budget.speedup, budget.size_bytes)
            except BudgetError:
                return None
            if slowest.loss > allowed:
                return None if slowest.choices == pick.choices else slowest
        try:
            return fastest_within_loss(self.table, losses, allowed, budget.size_bytes)
        except BudgetError:
            return None

    def _fallback(self) -> Settled:
        """The fastest plan that held the budget one-shot, as it stands."""
        inside = [pick for pick in self._known_picks() if self.judged[pick.choices].inside(self.session)]
        wanted = self.session.recipe.budget.speedup or 1.0
        inside = [pick for pick in inside if pick.speedup >= wanted * (1 - 1e-9)]
        if not inside:
            least = min((found.drop for found in self.judged.values()), default=float("nan"))
            raise BudgetError(
                f"No plan kept the quality budget: the least drop seen on validation is {least:.4f}. Allow a larger "
                "drop, ask for less speed, give recovery more time, or add milder patterns such as 4x1@75%."
            )
        pick = max(inside, key=lambda pick: pick.speedup)
        plan = self.plan(pick)
        stage = f"sparse-{digest(plan.to_data())[:12]}"
        _, named = sparsified(self.session, plan, stage)
        found = self.judged[pick.choices]
        return Settled(named, pick, found, found, stage, self.session.recipe.search.attempts)

    def _known_picks(self) -> list[Pick]:
        losses = self.sensitivity.losses(self.table)
        return [describe(self.table, losses, choices, "", "search") for choices in self.judged]

    def judge_best_uniform(self, settled: Settled) -> None:
        """Evaluate the mildest uniform plan that is at least as fast as the settled one: the one it must beat.

        One-shot, or recovered like the settled one where the recipe asks for it.
        """
        losses = self.sensitivity.losses(self.table)
        as_fast = [pick for pick in uniform_picks(self.table, losses) if pick.speedup >= settled.pick.speedup]
        if as_fast:
            rival = min(as_fast, key=lambda pick: pick.loss)
            self.one_shot(rival)
            if self.session.recipe.search.recover_uniform:
                self.recovered[rival.choices] = self.recover(rival, 1).final

    def front_rows(self, settled: Settled) -> list[dict[str, Any]]:
        """Front, uniform plans and baselines for the report, with what is known of each."""
        losses = self.sensitivity.losses(self.table)
        front = [describe(self.table, losses, pick.choices, pick.label, pick.kind) for pick in self.picks]
        for choices in self.judged:
            if choices not in {pick.choices for pick in front}:
                front.append(describe(self.table, losses, choices, "tried", "search"))
        guess = magnitude_errors(self.session.candidates, self.table)
        baselines = [*uniform_picks(self.table, losses), *random_picks(self.table, losses)]
        baselines.append(greedy_pick(self.table, losses, guess, settled.pick.speedup))
        rows = [self._front_row(pick, settled) for pick in [*front, *baselines]]
        if not any(row["chosen"] for row in rows):
            rows.append(self._front_row(settled.pick, settled))
        return rows

    def _front_row(self, pick: Pick, settled: Settled) -> dict[str, Any]:
        chosen = pick.choices == settled.pick.choices and pick.kind == "search"
        recovered = None if chosen else self.recovered.get(pick.choices)
        found = settled.final if chosen else recovered or self.judged.get(pick.choices)
        counts: dict[str, int] = {}
        for layer, number in enumerate(pick.choices):
            text = self.table.choices[layer][number].text
            counts[text] = counts.get(text, 0) + 1
        return {
            "label": (pick.label or "search") + (" (recovered)" if recovered else ""),
            "kind": pick.kind,
            "chosen": chosen,
            "predicted_s": pick.seconds[0],
            "measured_s": None,
            "predicted_speedup": pick.speedup,
            "predicted_drop": pick.loss,
            "quality": None if found is None else found.quality,
            "drop": None if found is None else found.drop,
            "size_bytes": pick.size_bytes,
            "patterns": counts,
        }


def evaluate_stage(session: Session, plan: Plan, name: str) -> Judgement:
    """One-shot quality of a plan on validation, kept in the run folder."""

    def work() -> dict[str, Any]:
        dense = session.score("dense", session.dense, "validation")
        if not plan.sparse_layers and not plan.int8_layers:
            return vars(judge(dense, dense))
        sparse, _ = sparsified(session, plan, name.replace("trial-", "sparse-"))
        model = as_it_runs(sparse, plan)
        return vars(judge(session.score(name, model, "validation"), dense))

    return Judgement(**session.folder.stage(name, {"plan": plan.to_data(), "base": base_of(session)}, work))
