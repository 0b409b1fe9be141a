"""Views over all tenants, for an admin's ``X-Tenant: *`` (common.md §8): the sums, and each tenant's own answer beside them."""

from __future__ import annotations

from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from typing import Any

from tables.alerting import LEVELS
from tables.fold import NotFound, View
from tables.partition import Partition
from tables.reader import PartitionReader
from tables.rows import S, Table

SUMMED: dict[str, tuple[str, ...]] = {
    "/performance/stats": ("collecting", "collection_reason"),
    "/metrics/summary": (),
    "/costs": (),
    "/costs/status": ("budgets", "rates"),
}
"""Views that have sums -> what each tenant has of its own, and no sum tells."""


class TenantsReader(PartitionReader):
    """A `tables.fold.Reader` of several tenants at once: states are merged over tenants as they are over partitions.

    Args:
        tenants: whose rows are read. Each (tenant, partition) has a number of its own.
    """

    def __init__(self, partitions: Mapping[str, Sequence[Partition]], homes: Mapping[str, tuple[str, ...]], tenants: Sequence[str], now_us: int) -> None:
        super().__init__(partitions, homes, "*", now_us)
        self.each = [PartitionReader(partitions, homes, tenant, now_us) for tenant in tenants]

    def _numbered(self) -> Iterator[tuple[int, PartitionReader]]:
        most = max((len(of_topic) for of_topic in self.partitions.values()), default=0)
        return ((at * most, reader) for at, reader in enumerate(self.each))

    def rows(self, table: Table[S], key: tuple[str, ...]) -> list[S]:
        """States of a key of every tenant."""
        return [state for reader in self.each for state in reader.rows(table, key)]

    def placed(self, table: Table[S], key: tuple[str, ...]) -> list[tuple[int, S]]:
        """The same, each with its number."""
        return [(first + number, state) for first, reader in self._numbered() for number, state in reader.placed(table, key)]

    def everywhere(self, table: Table[S]) -> Iterator[tuple[int, S]]:
        """Every state of any tenant, with its number."""
        return ((first + number, state) for first, reader in self._numbered() for number, state in reader.everywhere(table))

    def beside(self, home: Table[Any], key: tuple[str, ...], table: Table[S], keys: Iterable[tuple[str, ...]]) -> Iterator[S]:
        """States of many keys of a table whose rows are only where a row of `key` is."""
        return (state for other in keys for reader in self.each for state in reader.beside(home, key, table, (other,)))

    def scan(self, table: Table[S]) -> Iterator[tuple[tuple[str, ...], list[S]]]:
        """Every key of any tenant with its states."""
        merged: dict[tuple[str, ...], list[S]] = {}
        for reader in self.each:
            for key, states in reader.scan(table):
                merged.setdefault(key, []).extend(states)
        return iter(merged.items())

    def watermarks(self, topic: str) -> dict[int, int]:
        """Greatest event time of each tenant in each partition, microseconds."""
        return {first + number: time_us for first, reader in self._numbered() for number, time_us in reader.watermarks(topic).items()}

    def as_of(self) -> int | None:
        """Greatest event time absorbed in the topics read so far."""
        return max((time_us for reader in self.each if (time_us := reader.as_of()) is not None), default=None)


def summed(view: View, params: Any, tenants: Sequence[str], reader_of: Callable[[str], PartitionReader]) -> dict[str, Any]:
    """A view's sums over tenants, and under ``tenants`` what it answers each of them that it knows something of.

    Raises:
        NotFound: it knows nothing of any.
    """
    shown = []
    for tenant in tenants:
        try:
            shown.append({"tenant": tenant, **view.answer(reader_of(tenant), params)})
        except NotFound:
            continue
    if not shown:
        raise NotFound("no tenant has any")
    first = reader_of(shown[0]["tenant"])
    body = view.answer(TenantsReader(first.partitions, first.homes, [one["tenant"] for one in shown], first.now_us), params)
    for name in SUMMED[view.path]:
        body.pop(name, None)
    if "status" in body:
        body["status"] = max((one["status"] for one in shown), key=LEVELS.index)
    return {**body, "tenant": "*", "tenants": shown}
