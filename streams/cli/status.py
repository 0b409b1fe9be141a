"""``pulsefold status``: whether a worker is well, and how far tables are that it builds beside those that serve."""

from __future__ import annotations

import json
import os
from typing import Any

from .options import AsJson, Config, Tenant, Token, Url
from .output import clean
from .query import ask, worker_url


def status(
    *,
    url: Url = None,
    token: Token = None,
    tenant: Tenant = None,
    as_json: AsJson = False,
    config: Config = None,
) -> int:
    """Say in a few lines whether a worker is ready, how far behind, and how far a rebuild is; --json has everything."""
    body = ask(worker_url(url, config), "/status", (), token or os.environ.get("PULSEFOLD_TOKEN"), tenant)
    if as_json:
        print(json.dumps(body, indent=2))
    else:
        for line in lines(body):
            print(clean(line))
    return 0


def lines(body: dict[str, Any]) -> list[str]:
    """What is told of an answer of ``/status``."""
    found = [f"{body['app_id']}: {'ready' if body['ready'] else 'not ready'}, {body['lag']} records behind"]
    told = body.get("rebuild")
    if not told:
        return found
    if told["state"] == "swapped":
        return [*found, f"rebuilt: generation {told['serving']} serves since {told['swapped']}, in place of {told['former']} ({'; '.join(told['differs'])})"]
    if told["state"] == "failed":
        return [*found, f"not rebuilt ({'; '.join(told['differs'])}): {told['error']}"]
    end = "" if told["estimated_end"] is None else f", done about {told['estimated_end']}"
    if "folded" not in told:
        return [*found, f"the tables are being rebuilt; {told['served_by']} with the former ones answer{end}"]
    share = 100 * told["folded"] // told["to_fold"] if told["to_fold"] else 100
    rate = "" if told["per_s"] is None else f", {told['per_s']:g} a second"
    found.append(
        f"rebuilding: {told['folded']} of {told['to_fold']} records ({share} %){rate}{end}; until then {told['served_by']} answers by the former tables"
    )
    found.append(f"  because: {'; '.join(told['differs'])}")
    for one in told["partitions"]:
        if one["to_fold"]:
            found.append(f"  {one['topic']}/{one['partition']}: {one['folded']} of {one['to_fold']}")
    for one in told["tables"]:
        if one["keys"] or one["serving_keys"]:
            found.append(f"  {one['name']}: {one['keys']} keys" + ("" if one["serving_keys"] is None else f" of {one['serving_keys']} in the former"))
    return found
