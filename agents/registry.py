"""The one list of tables: a new table is one file in `tables/` and one line here."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import msgspec

from streams.settings import Settings
from tables.budgets import CostSettings
from tables.calibration import Forecasts
from tables.costs import Costs
from tables.fold import Fold
from tables.learning import Learning
from tables.learning_state import LearningSettings
from tables.metric_alerts import MetricAlerts, MetricAlertSettings
from tables.metric_costs import MetricCosts, MetricCostSettings
from tables.metric_summary import MetricSummary, SummarySettings
from tables.partition import Bounds, Schema
from tables.performance import Performance
from tables.performance_rows import PerformanceSettings
from tables.trust import Trust, TrustSettings
from tables.trust_rules import TrustByRule, TrustRuleSettings
from tables.variable_states import VariableSettings
from tables.variables import Variables
from tables.windows import Windows, WindowSettings

FOLD_SETTINGS: tuple[type[msgspec.Struct], ...] = (
    TrustSettings,
    VariableSettings,
    CostSettings,
    LearningSettings,
    WindowSettings,
    MetricAlertSettings,
    MetricCostSettings,
    PerformanceSettings,
    TrustRuleSettings,
    SummarySettings,
)
"""What the folds declare as settings."""
FOLD_NAMES = frozenset(name for struct in FOLD_SETTINGS for name in struct.__struct_fields__)
RULE_NAMES = FOLD_NAMES | {"alert_interval_s", "max_future_s", "dedupe_window"}
"""Settings that figures and alerts follow from."""


def folds(settings_of: Callable[[type[msgspec.Struct]], Any] = lambda struct: struct()) -> list[Fold]:
    """All folds, in the order in which they see an event.

    Args:
        settings_of: settings struct -> its instance in force (default: its defaults).
    """
    trust, variables = Trust(settings_of(TrustSettings)), Variables(settings_of(VariableSettings))
    performance = Performance(settings_of(PerformanceSettings), settings_of(WindowSettings), trust)
    costs = Costs(settings_of(CostSettings))
    return [
        trust,
        variables,
        Forecasts(variables.settings, variables.kept.models),
        costs,
        Learning(settings_of(LearningSettings)),  # with the goals, which may refuse a training event: before what else sees it
        Windows(settings_of(WindowSettings)),
        MetricAlerts(settings_of(MetricAlertSettings), settings_of(WindowSettings).max_series),
        MetricSummary(settings_of(SummarySettings), costs.kept.ledgers),
        MetricCosts(settings_of(MetricCostSettings)),
        performance,
        performance.rl,
        TrustByRule(settings_of(TrustRuleSettings), performance.settings.criteria_pass),  # last: what another fold refuses does not speak of anything
    ]


def schema(settings_of: Callable[[type[msgspec.Struct]], Any] = lambda struct: struct(), bounds: Bounds | None = None, generation: str | None = None) -> Schema:
    """Tables and handlers of all folds; `generation` as `tables.partition.Schema` has it."""
    given = {name: value for struct in FOLD_SETTINGS for name, value in msgspec.to_builtins(settings_of(struct)).items()}
    return Schema(folds(settings_of), bounds, generation, given)


def schema_of(settings: Settings) -> Schema:
    """Tables and handlers as a worker's settings make them."""
    return schema(settings.fold, Bounds(max_future_us=int(settings.get("max_future_s") * 1e6), dedupe_window=settings.get("dedupe_window")))
