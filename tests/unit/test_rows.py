"""Names of rows: what few values are made of is in memory once."""

from __future__ import annotations

from streams.derive import event_bytes
from tables.partition import Partition, Schema
from tables.rows import MOST_SHARED, Table
from tables.trust import Trust
from tables.trust_state import Keys

from ..harness import Rec


def fresh(text: str) -> str:
    """An equal string that is another object."""
    return (text + " ")[:-1]


def test_places_with_few_values_share_them_and_others_are_given_up() -> None:
    table = Table("t", Keys, rank=1)
    found = [table.names(fresh("tenant"), (fresh("model"), f"id{n}", fresh("3"))) for n in range(MOST_SHARED + 2)]
    tenant, key = table.names(fresh("tenant"), (fresh("model"), fresh("id0"), fresh("3")))
    assert (tenant, key) == found[0]
    assert tenant is found[0][0] and key[0] is found[0][1][0] and key[2] is found[0][1][2]
    assert key[1] is not found[0][1][1], "ids are too many to be kept twice"
    assert table.names("tenant", ()) == ("tenant", ()) and table.names("tenant", ("a", "b", "c", "d")) == ("tenant", ("a", "b", "c", "d"))


def test_rows_of_a_table_share_their_tenant_and_kind() -> None:
    trust = Trust()
    p = Partition("judgments", 0, Schema([trust]))
    bodies = [{"kind": "model", "id": f"m{n}", "success": True} for n in range(50)]
    raws = [event_bytes(type="trust.observed.v1", id=f"e{n}", source="t", time_us=10**15 + n, tenant="acme", data=body) for n, body in enumerate(bodies)]
    p.absorb([Rec(n, 10**12, b"k", raw) for n, raw in enumerate(raws)])
    rows = list(p.space(trust.rows, "acme").values())
    assert len(rows) == 50
    assert {id(row.tenant) for row in rows} == {id(rows[0].tenant)}
    assert {id(row.key[0]) for row in rows} == {id(rows[0].key[0])}
