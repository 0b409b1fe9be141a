"""The functions are scipy's own, to the last bit, and the rest of scipy.special stays where it is."""

from __future__ import annotations

import os
import subprocess
import sys

from tests.workers import ROOT

CODE = """
import sys
import agents.app
from tables import special
import scipy
assert "scipy.special" not in sys.modules
assert "scipy._lib._array_api" not in sys.modules or scipy.__version__ >= "1.18"  # whose compiled module loads it itself
mine = {name: getattr(special, name) for name in special.__all__}
import numpy, scipy.special, scipy.stats
rng = numpy.random.default_rng(5)
a, b, p = 10 ** rng.uniform(-2, 6, 2000), 10 ** rng.uniform(-2, 6, 2000), rng.uniform(0, 1, 2000)
for name in ("betaincc", "betainccinv", "betaincinv"):
    assert numpy.array_equal(mine[name](a, b, p), getattr(scipy.special, name)(a, b, p), equal_nan=True), name
assert numpy.array_equal(mine["stdtr"](a, b), scipy.special.stdtr(a, b), equal_nan=True)
assert numpy.array_equal(mine["stdtrit"](a, p), scipy.special.stdtrit(a, p), equal_nan=True)
assert numpy.allclose(scipy.stats.beta(7, 5).ppf(p), mine["betaincinv"](7, 5, p))
"""
LATER = """
import sys
import scipy.special
from tables import special
assert special.betaincinv is scipy.special.betaincinv
"""


def test_the_functions_are_scipys_and_the_rest_of_its_package_is_not_loaded() -> None:
    for code in (CODE, LATER):
        subprocess.run([sys.executable, "-c", code], cwd=ROOT, env=os.environ, check=True, timeout=100)
