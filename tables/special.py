"""The few functions of `scipy.special` that figures follow from, without what that package loads for arrays of other libraries.

Loading all of it costs every worker 11 MB and a tenth of a second of its start more than the compiled module that has the functions. Where scipy
keeps it elsewhere one day, the whole package is loaded instead.
"""

from __future__ import annotations

import sys
from importlib import import_module
from types import ModuleType
from typing import Any

import scipy  # type: ignore[import-untyped]  # scipy ships no types

PACKAGE = "scipy.special"


def _loaded() -> Any:
    if PACKAGE in sys.modules:
        return import_module(PACKAGE)
    stand_in = ModuleType(PACKAGE)
    stand_in.__path__ = [f"{folder}/special" for folder in scipy.__path__]
    sys.modules[PACKAGE] = stand_in
    try:
        found = import_module(f"{PACKAGE}._ufuncs")
    except (ImportError, AttributeError):
        found = None
    finally:
        del sys.modules[PACKAGE]  # who imports the package later gets the package
    return found if found is not None and all(hasattr(found, name) for name in NAMES) else import_module(PACKAGE)


NAMES = ("betaincc", "betainccinv", "betaincinv", "stdtr", "stdtrit")
_found = _loaded()
betaincc, betainccinv, betaincinv = _found.betaincc, _found.betainccinv, _found.betaincinv
stdtr, stdtrit = _found.stdtr, _found.stdtrit

__all__ = ["betaincc", "betainccinv", "betaincinv", "stdtr", "stdtrit"]
