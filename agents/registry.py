"""The one list of tables: a new table is one file in `tables/` and one line here."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from typing import Any

import msgspec

from tables.budgets import CostSettings
from tables.costs import Costs
from tables.fold import Fold
from tables.partition import Schema
from tables.trust import Trust, TrustSettings
from tables.variables import Variables, VariableSettings
from tables.windows import Windows, WindowSettings

FOLDS: Sequence[tuple[Callable[[Any], Fold], type[msgspec.Struct]]] = (
    (Trust, TrustSettings),
    (Variables, VariableSettings),
    (Costs, CostSettings),
    (Windows, WindowSettings),
)
"""Fold and the struct of its settings. Goals come before what else sees a training event: they may refuse it."""

FOLD_SETTINGS = tuple(settings for _, settings in FOLDS)


def schema(settings_of: Callable[[type[msgspec.Struct]], Any] = lambda struct: struct()) -> Schema:
    """All folds with their settings.

    Args:
        settings_of: settings struct -> its instance in force (default: its defaults).
    """
    return Schema([fold(settings_of(struct)) for fold, struct in FOLDS])
