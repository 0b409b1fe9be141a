"""How good the answers are: intervals of trust, alert rules beside river's detectors, predictions beside simpler ones.

Run: ``python -m benchmarks.quality [--streams 20] [--part intervals|alerts|predictions] [--only RULE] [--write]``. No broker is needed; seeds
are fixed, so the figures come out the same. `--write` puts the tables of the parts measured into benchmarks/quality.md and leaves the rest of
that page as it is.
"""

from __future__ import annotations

import argparse
import re
from pathlib import Path

from . import quality_alerts, quality_intervals, quality_predictions

HERE = Path(__file__).with_suffix(".md")


def write(name: str, text: str) -> None:
    """Put a part between its marks."""
    page = HERE.read_text()
    begin, end = f"<!-- {name} -->\n", f"<!-- end of {name} -->"
    HERE.write_text(re.sub(f"{begin}.*?{end}", lambda _: f"{begin}{text}\n{end}", page, flags=re.DOTALL))


def main() -> None:
    """Measure and print."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--streams", type=int, default=20)
    parser.add_argument("--part", choices=["intervals", "alerts", "predictions"])
    parser.add_argument("--only", default="")
    parser.add_argument("--write", action="store_true")
    words = parser.parse_args()
    parts = {
        "intervals": quality_intervals.report,
        "alerts": lambda: quality_alerts.report(words.streams, words.only),
        "predictions": quality_predictions.report,
    }
    for name, part in parts.items():
        if words.part in (None, name):
            lines = []
            for line in part():
                print(line, flush=True)
                lines.append(line)
            if words.write and not words.only:
                write(name, "\n".join(lines))


if __name__ == "__main__":
    main()
