"""The ground all handlers of performance events stand on: whether events are collected, which names are kept, who was seen.

The rule this file keeps: a name is kept from its first event on, while there is room; what has no room is counted as
overflow and goes to `_other` where sums must still add up. Whether a name is new is asked of the rows as they were before
the record: a row made by this very record (absorbed again after a crash) is still new.
"""

from __future__ import annotations

from typing import TYPE_CHECKING, Any, NamedTuple

from .performance_rows import OTHER, Agent, PerformanceSettings, PerformanceTables, Register, Totals

if TYPE_CHECKING:
    from .partition import Partition
    from .rows import Table

MOST_TASK_TYPES = 500
MOST_VERSIONS = 200
"""Task types and model versions an agent."""
MOST_NAME_BYTES = 48_000
"""Bytes of those names an agent."""
MOST_TENANT_TYPES = 5_000
MOST_TENANT_PAIRS = 20_000
"""Task types, and pairs of task type and model version, of a tenant in a partition."""
MOST_JUDGED_PAIRS = 50_000
"""Pairs of agent and judge of a tenant in a partition."""
MOST_CUSTOM = 1_000
"""Names of generic events of a tenant in a partition."""


class Admitted(NamedTuple):
    """Names under which an execution is counted.

    Attributes:
        agent: whether the agent is kept.
        task_type, version: in the tenant's rows; version "" for none.
        own_type, own_version: in the agent's rows.
    """

    agent: bool
    task_type: str
    version: str
    own_type: str
    own_version: str


class Ground:
    """What every performance event needs.

    Args:
        kept: the tables.
        settings: bounds.
    """

    def __init__(self, kept: PerformanceTables, settings: PerformanceSettings) -> None:
        self.kept = kept
        self.settings = settings

    def collecting(self, p: Partition, tenant: str) -> bool:
        """Whether the tenant's performance events count; if not, the record is counted as skipped."""
        state = p.read(self.kept.switch, tenant, ())
        if state is None or not state.off:
            return True
        p.skip("collection_off")
        return False

    def moment(self, p: Partition, tenant: str) -> int:
        """The tenant's time here, microseconds: that of the record, or of the newest before it."""
        watermark_us = p.watermark(tenant)
        time_us = p.time_us
        return time_us if watermark_us is None or watermark_us < time_us else watermark_us

    # ---- names

    def settled(self, p: Partition, table: Table[Any], tenant: str, key: tuple[str, ...]) -> bool:
        """Whether a name was kept before this record."""
        space = p.spaces[table.index].get(tenant)
        row = space.get(key) if space is not None else None
        if row is None:
            return False
        state = row.state
        if state.__class__ is bytes:
            state = table.load(row)
        return 0 <= state.born < p.offset  # type: ignore[attr-defined]  # tables of names have it

    def admits(self, p: Partition, tenant: str, agent: str) -> bool:
        """Whether an agent is kept, or there is room for it."""
        if self.settled(p, self.kept.agents, tenant, (agent,)):
            return True
        rooms = Rooms(p, self.kept, tenant)
        admitted = rooms.take("agents", self.settings.max_agents)
        rooms.close()
        return admitted

    def admit(self, p: Partition, tenant: str, agent: str, task_type: str, version: str) -> Admitted:
        """Names under which an execution of an agent is counted."""
        kept = self.kept
        if self.settled(p, kept.pairs, tenant, (agent, task_type, version)):
            return Admitted(True, task_type, version, task_type, version)
        rooms = Rooms(p, kept, tenant)
        admitted = self.settled(p, kept.agents, tenant, (agent,)) or rooms.take("agents", self.settings.max_agents)
        if task_type != OTHER and not self.settled(p, kept.task_types, tenant, (task_type,)) and not rooms.take("task_types", MOST_TENANT_TYPES):
            task_type = OTHER
        asked = version
        if not self.settled(p, kept.sums, tenant, (task_type, version)) and not rooms.take("pairs", MOST_TENANT_PAIRS):
            version = OTHER if version else ""
        rooms.close()
        if not admitted:
            return Admitted(False, task_type, version, task_type, version)
        own = self._own(p, tenant, agent, task_type, asked)
        return Admitted(True, task_type, version, *own)

    def _own(self, p: Partition, tenant: str, agent: str, task_type: str, version: str) -> tuple[str, str]:
        """Names in the agent's own rows."""
        names = p.read(self.kept.names, tenant, (agent,))
        pairs = names.pairs if names is not None else []
        size = names.size if names is not None else 0
        if (task_type, version) in pairs:
            return task_type, version
        types = {one for one, _ in pairs}
        versions = {one for _, one in pairs}
        full = size + len(task_type.encode()) + len(version.encode()) > MOST_NAME_BYTES
        kept_type, kept_version = task_type, version
        if full or (task_type not in types and len(types - {OTHER}) >= MOST_TASK_TYPES):
            kept_type = OTHER
        if version and (full or (version not in versions and len(versions - {OTHER, ""}) >= MOST_VERSIONS)):
            kept_version = OTHER
        if (kept_type, kept_version) != (task_type, version):
            p.count_as(overflow=1)
        if (kept_type, kept_version) not in pairs:
            state = p.open(self.kept.names, tenant, (agent,))
            if state is not None:
                state.pairs.append((kept_type, kept_version))
                state.size += len(kept_type.encode()) + len(kept_version.encode())
        return kept_type, kept_version

    def known(self, p: Partition, tenant: str, agent: str, task_type: str, version: str) -> Admitted:
        """Names under which the other half of an execution was counted before: its own where they have rows, else `_other`."""
        kept = self.kept
        pairs, sums, types = p.space(kept.pairs, tenant), p.space(kept.sums, tenant), p.space(kept.task_types, tenant)
        if (agent, task_type, version) in pairs:
            return Admitted(True, task_type, version, task_type, version)
        other = OTHER if version else ""
        type_of = task_type if (task_type,) in types else OTHER
        version_of = version if (type_of, version) in sums else other
        own = next((key for key in ((type_of, version), (type_of, other), (OTHER, version)) if (agent, *key) in pairs), (OTHER, other))
        return Admitted(True, type_of, version_of, *own)

    # ---- who was seen

    def count(self, p: Partition, tenant: str, kind: int) -> Totals | None:
        """Count an event for the tenant; None where this row, and so all below, has it already."""
        state = p.open(self.kept.totals, tenant, ())
        if state is not None:
            state.events[kind] += 1
            time_us = p.time_us
            if time_us < state.first_us:
                state.first_us = time_us
            if time_us > state.last_us:
                state.last_us = time_us
        return state

    def seen(self, p: Partition, tenant: str, agent: str, kind: int) -> Agent | None:
        """Count an event for the agent; None where this row, and so all below, has it already."""
        state = p.open(self.kept.agents, tenant, (agent,))
        if state is not None:
            if state.born < 0:
                state.born = p.offset
            state.events[kind] += 1
            time_us = p.time_us
            if time_us < state.first_us:
                state.first_us = time_us
            if time_us > state.last_us:
                state.last_us = time_us
        return state


class Rooms:
    """Room for new names in one partition; the register is read once, and written once if a name moved in or was turned away.

    Args:
        p, tenant: where.
        kept: the tables.
    """

    def __init__(self, p: Partition, kept: PerformanceTables, tenant: str) -> None:
        self.p = p
        self.tenant = tenant
        self.table = kept.register
        self.register = p.read(kept.register, tenant, ()) or Register()
        self.taken: dict[str, int] = {}
        self.overflow = False

    def take(self, name: str, most: int) -> bool:
        """Whether there is room for one more of this kind of name; then it is taken."""
        if getattr(self.register, name) + self.taken.get(name, 0) >= most:
            self.overflow = True
            return False
        self.taken[name] = self.taken.get(name, 0) + 1
        return True

    def close(self) -> None:
        """Write what was taken."""
        if not self.taken and not self.overflow:
            return
        if self.overflow:
            self.p.count_as(overflow=1)
        state = self.p.open(self.table, self.tenant, ())
        if state is not None:
            for name, n in self.taken.items():
                setattr(state, name, getattr(state, name) + n)
            if self.overflow:
                state.overflow += 1
