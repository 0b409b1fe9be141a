"""Known vulnerabilities of what is installed: ``make audit``, by pip-audit.

The rule this file keeps: it never passes silently. It says "none known" only after every package was looked up; 1 is its exit code where
there are some; where no service that knows them can be asked (PyPI's, then OSV), or it does not know a package, it says NOT DONE, with exit code 0
at home, and 3 in CI (the variable ``CI`` is set) or with ``--required``.
"""

from __future__ import annotations

import json
import os
import subprocess
import sys
import tempfile
import venv
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

CANARY = "requests==2.19.0"
"""A release that is known to be vulnerable: who tells nothing of it (a mirror, a proxy) is not asked about the others."""
PIP_AUDIT = "pip-audit>=2.9,<3"
SERVICES = ("pypi", "osv")
OURS = "pulsefold"
NOT_DONE = 3


def mute(report: Mapping[str, Any] | None) -> str | None:
    """Why nobody can be asked, by pip-audit's report on `CANARY` (None = it made none); None where somebody can."""
    if report is None:
        return "pip-audit could not ask"
    return None if any(one.get("vulns") for one in report["dependencies"]) else f"who was asked knows nothing of {CANARY}, which is vulnerable"


def verdict(report: Mapping[str, Any]) -> tuple[int, str]:
    """Exit code and sentence for pip-audit's JSON: 1 some are vulnerable, `NOT_DONE` some were not looked up, 0 none is known."""
    found = [one for one in report["dependencies"] if one["name"] != OURS]
    bad = [f"{one['name']} {one['version']}: {', '.join(hole['id'] for hole in one['vulns'])}" for one in found if one.get("vulns")]
    skipped = [one["name"] for one in found if "skip_reason" in one]
    if bad:
        return 1, "audit: " + "; ".join(bad)
    if skipped or not found:
        return NOT_DONE, f"audit: NOT DONE for {len(skipped)} of {len(found)} packages, which the service does not know: {', '.join(skipped[:5])} …"
    return 0, f"audit: none known in {len(found)} packages"


def run(python: str, *words: str) -> Mapping[str, Any] | None:
    """pip-audit's report, None where it made none; why, is told on stderr in a line."""
    done = subprocess.run([python, "-m", "pip_audit", *words, "--progress-spinner", "off", "--format", "json"], capture_output=True, text=True, check=False)
    try:
        return dict(json.loads(done.stdout))
    except ValueError:
        print(f"audit: {next(iter(done.stderr.splitlines()[-1:]), f'pip-audit ended with {done.returncode}')}", file=sys.stderr)
        return None


def audit() -> tuple[int, str]:
    """Exit code and sentence; pip-audit runs in an environment of its own and changes nothing."""
    with tempfile.TemporaryDirectory(prefix="pulsefold-audit-") as folder:
        venv.create(folder, with_pip=True)
        python = str(Path(folder) / "bin" / "python")
        if subprocess.run([python, "-m", "pip", "install", "--quiet", "--disable-pip-version-check", PIP_AUDIT], check=False).returncode:
            return NOT_DONE, "audit: NOT DONE, pip-audit cannot be installed"
        canary = Path(folder) / "canary.txt"
        canary.write_text(CANARY + "\n")
        why = {one: mute(run(python, "--requirement", str(canary), "--no-deps", "--disable-pip", "--vulnerability-service", one)) for one in SERVICES}
        service = next((one for one in SERVICES if why[one] is None), None)
        if service is None:
            return NOT_DONE, "audit: NOT DONE, no database of vulnerabilities can be asked (" + "; ".join(f"{one}: {why[one]}" for one in SERVICES) + ")"
        paths = [word for path in sys.path if path.endswith("site-packages") for word in ("--path", path)]
        report = run(python, *paths, "--skip-editable", "--vulnerability-service", service)
        return (NOT_DONE, "audit: NOT DONE, pip-audit made no report") if report is None else verdict(report)


def code_of(code: int, words: Sequence[str], ci: bool) -> int:
    """Exit code: what was not done passes at home alone, where nobody asked for more."""
    return 0 if code == NOT_DONE and not ci and "--required" not in words else code


def main(words: list[str]) -> int:
    """Returns the exit code."""
    code, said = audit()
    print(said, flush=True)
    return code_of(code, words, bool(os.environ.get("CI")))


if __name__ == "__main__":
    sys.exit(main(sys.argv[1:]))
