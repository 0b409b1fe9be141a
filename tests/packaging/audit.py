"""Known vulnerabilities of what is installed: ``make audit``, by pip-audit.

The rule this file keeps: it never passes silently. It says "none known" only after every package was looked up; 1 is its exit code where
there are some; where the service that knows them cannot be asked, or does not know a package, it says NOT DONE, with exit code 0, or 3 with
``--required``, as a release asks for it.
"""

from __future__ import annotations

import json
import subprocess
import sys
import tempfile
import urllib.request
import venv
from collections.abc import Mapping
from pathlib import Path
from typing import Any

PROBE = "https://pypi.org/pypi/requests/2.19.0/json"
"""A release that is known to be vulnerable: who tells nothing of it (a mirror, a proxy) is not asked about the others."""
PIP_AUDIT = "pip-audit>=2.9,<3"
OURS = "pulsefold"
NOT_DONE = 3


def unreachable(url: str = PROBE, timeout_s: float = 20.0) -> str | None:
    """Why nobody can be asked, None where somebody can."""
    try:
        with urllib.request.urlopen(url, timeout=timeout_s) as response:
            page = json.load(response)
    except (OSError, ValueError) as failed:
        return f"{url}: {failed}"
    return None if isinstance(page, dict) and page.get("vulnerabilities") else f"{url} tells of no vulnerability, though there is one"


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


def ask() -> Mapping[str, Any]:
    """pip-audit's report of what is installed beside this interpreter; it runs in an environment of its own and changes nothing."""
    with tempfile.TemporaryDirectory(prefix="pulsefold-audit-") as folder:
        venv.create(folder, with_pip=True)
        python = str(Path(folder) / "bin" / "python")
        subprocess.run([python, "-m", "pip", "install", "--quiet", "--disable-pip-version-check", PIP_AUDIT], check=True)
        paths = [word for path in sys.path if path.endswith("site-packages") for word in ("--path", path)]
        words = [python, "-m", "pip_audit", *paths, "--skip-editable", "--progress-spinner", "off", "--format", "json"]
        done = subprocess.run(words, stdout=subprocess.PIPE, text=True, check=False)
    return dict(json.loads(done.stdout))


def main(words: list[str]) -> int:
    """Returns the exit code."""
    why = unreachable()
    code, said = (NOT_DONE, f"audit: NOT DONE, nobody can be asked ({why})") if why is not None else verdict(ask())
    print(said, flush=True)
    return 0 if code == NOT_DONE and "--required" not in words else code


if __name__ == "__main__":
    sys.exit(main(sys.argv[1:]))
