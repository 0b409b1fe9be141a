"""Backtest and what-if over the archive of a real worker: what it says of the present settings is what the worker told."""

from __future__ import annotations

import json
import urllib.error
import urllib.request
from datetime import UTC, datetime, timedelta
from pathlib import Path
from typing import Any

import pytest

from streams.broker import EmbeddedBroker
from streams.publisher import SyncPublisher

from ..workers import WorkerProcess
from .test_past import archiving, command, settle

__all__ = ["archiving"]
TOKENS = {"Authorization": "Bearer acme"}


def history(tenant: str, share: float) -> list[dict[str, Any]]:
    """Three days of costs, verdicts and forecasts that turn bad, from noon to noon: the first and the last day cost half of the others."""
    start = datetime.now(UTC).replace(hour=12, minute=0, second=0, microsecond=0) - timedelta(days=4)
    found = []
    for n in range(240):
        at = (start + timedelta(minutes=18 * n)).isoformat()
        bad = n > 100
        made = [
            ("cost.incurred.v1", {"cost": f"{0.1 * share:.3f}", "model": "m1", "api_calls": 1}),
            ("trust.observed.v1", {"kind": "model", "id": "m1", "success": not bad}),
            (
                "forecast.issued.v1",
                {"forecast_id": f"f{n}", "model": "m1", "fragility": 0.9 if bad else 0.1, "certified": not bad, "inputs": {"vix": 1.0 + n % 5}},
            ),
            ("forecast.resolved.v1", {"forecast_id": f"f{n}", "model": "m2", "success": n % 3 == 0, "inputs": {"vix": 1.0 + n % 5}}),
        ]
        found += [{"id": f"{n}-{kind}", "type": kind, "time": at, "tenant": tenant, "data": data} for kind, data in made]
    return found


@pytest.mark.timeout(200)
def test_the_present_settings_raise_again_what_the_worker_raised_and_changed_ones_something_else(
    embedded: EmbeddedBroker, archiving: WorkerProcess, tmp_path: Path
) -> None:
    with SyncPublisher(embedded.bootstrap, source="test") as publisher:
        made = [*history("acme", 1.0), *history("other", 9.0)]
        for event in made:
            publisher.publish(event)
        assert publisher.flush(30) == 0
    settle(archiving, len(made))
    told = archiving.get("/alerts", headers=TOKENS, state="all", limit=1000)["alerts"]
    rules = tmp_path / "rules.toml"
    rules.write_text("budget_daily_usd = 5\ntrust_low = 0.6\n")
    url = f"http://127.0.0.1:{archiving.port}"
    done = command("backtest", str(rules), "--url", url, "--token", "acme", "--json")
    assert (done.returncode, done.stderr) == (0, "")
    body = json.loads(done.stdout)
    assert body["events"] == 960
    ordered = {"cost.daily", "cost.cumulative", "trust.low", "cost.monthly", "cost.total", "cost.forecast"}
    last = {m["alert_id"]: (m["rule"], m["subject"], m["severity"], m["type"]) for m in body["messages"] if m["settings"] == "present" and m["rule"] in ordered}
    assert last == {a["alert_id"]: (a["rule"], a["subject"], a["severity"], a["type"]) for a in told if a["rule"] in ordered}
    # the worker got all at once and looked at the merged rules a few times; here they are looked at as if it had come in its time
    assert {m["rule"] for m in body["messages"] if m["settings"] == "present"} >= {a["rule"] for a in told}
    assert {m["tenant"] for m in body["messages"]} == {"acme"}
    assert body["rules"]["cost.daily"]["present"]["opened"] < body["rules"]["cost.daily"]["changed"]["opened"]
    low = {row["subject"]: row["in"] for row in body["alerts"] if row["rule"] == "trust.low"}
    assert (low["model|m1"], low["model|m2"]) == ("only changed", "both")

    # the log itself says the same
    done = command("backtest", str(rules), "--from-log", "--tenant", "acme", "--json", environment={"PULSEFOLD_BOOTSTRAP": embedded.bootstrap})
    assert (done.returncode, done.stderr) == (0, "")
    assert {m["alert_id"]: m["time"] for m in json.loads(done.stdout)["messages"]} == {m["alert_id"]: m["time"] for m in body["messages"]}

    done = command("what-if", "budget", "--amount", "5", "--url", url, "--token", "acme", "--json")
    assert done.returncode == 0, done.stderr
    found = json.loads(done.stdout)
    assert found["events"] == 240
    (now,) = (one for one in archiving.get("/costs/status", headers=TOKENS)["budgets"] if one["rule"] == "cost.daily")
    assert found["present"]["limits"] == now["limits"] and found["changed"]["limits"][-1]["at_usd"] == 5.0
    raised = {m["period"]: m["time"] for m in body["messages"] if m["settings"] == "changed" and m["rule"] == "cost.daily" and m["kind"] == "opened"}
    assert {s["period"]: s["time"] for s in found["steps"] if s["settings"] == "changed" and s["kind"] == "opened"} == raised != {}
    # the log of a tenant is its own
    request = urllib.request.Request(f"{url}/api/v1/exports/log?limit=10000", headers={"Authorization": "Bearer other"})
    with urllib.request.urlopen(request, timeout=30) as response:
        records = json.load(response)["records"]
        assert response.status == 200
    assert {record["event"]["tenant"] for record in records} == {"other"}
    assert [(r["topic"], r["partition"], r["offset"]) for r in records] == sorted((r["topic"], r["partition"], r["offset"]) for r in records)
    with pytest.raises(urllib.error.HTTPError, match="400"):
        urllib.request.urlopen(urllib.request.Request(f"{url}/api/v1/exports/log?topics=alerts", headers=TOKENS), timeout=30)
    done = command("backtest", str(rules), "--url", url, "--token", "nobody")
    assert done.returncode == 2 and "401" in done.stderr and len(done.stderr.splitlines()) == 1
