"""Lists that are kept between questions are those that would be made anew, whatever happened to the rows in between."""

from __future__ import annotations

import json
import random
from collections import Counter
from collections.abc import Iterator, Sequence
from math import fsum
from types import SimpleNamespace
from typing import Any, cast

import msgspec
import numpy as np
import orjson
import pytest

from agents.core import Core
from agents.http import Routes
from agents.registry import schema
from streams.codec import decode
from streams.keys import record_key
from streams.settings import load
from streams.topics import SOURCE_TOPICS
from tables import orders
from tables.fold import BadParameter, NotFound, View, page
from tables.orders import Columns, Exact, ListKeeper, Order, Sheet, Totals, made, parts_of, states_of
from tables.partition import MOST_MARKS, Partition, partitions_of
from tables.reader import PartitionReader
from tables.trust_state import TrustSettings

from ..harness import Rec
from ..simulation.folds import OLD
from ..simulation.world import Profile, World
from ..valid_events import START_US, Maker

NOW_US = START_US + 90_000_000_000
TENANTS = ("acme", "other")
LISTS: tuple[tuple[str, tuple[dict[str, Any], ...]], ...] = (
    (
        "/trust",
        tuple({"kind": k, "sort": s, "order": o} for k in (None, "variable") for s in ("id", "trust", "effective_n", "last_update") for o in ("asc", "desc")),
    ),
    ("/trust/report", ({}, {"min_sample": 0, "limit": 2}, {"kind": "model", "min_sample": 1}, {"at": "2026-03-02T00:30:00Z", "min_sample": 0, "limit": 1})),
    ("/variables", ({}, {"min_count": 2, "exact": True}, {"registered": True}, {"registered": False}, {"kind": "real"})),
    (
        "/variables/rank",
        tuple({"key": k, "order": o, "min_count": n} for k in ("count", "avg_alignment", "trust_weight") for o in ("asc", "desc") for n in (0, 1)),
    ),
    ("/variables/drift", ({}, {"threshold": 0.1}, {"threshold": 0.6, "min_count": 2}, {"recent": True}, {"recent": True, "min_count": 3})),
    ("/variables/volatility", ({}, {"threshold": 0.9}, {"names": ["x0", "x1"]})),
    ("/metrics/series", ({}, {"metric": "train"}, {"metric": "train", "model": "m0"}, {"model": "m0"}, {"run": ""}, {"metric": "train", "run": "r0"})),
    ("/metrics/series", ({"metric": "train", "model": "m0", "run": "r0"}, {"metric": "train", "model": "m0", "run": ""})),
    ("/metrics/watched", ({}, {"metric": "train"}, {"model": "m0", "run": "r0"}, {"metric": "train", "model": "m0", "run": "r0"})),
    ("/metrics/aggregate", ({"metric": "train"}, {"metric": "train", "model": "m0", "window": "5m"}, {"metric": "train", "run": "r0"})),
    ("/performance/trends", ({"metric": "success"}, {"metric": "quality", "agent": "a0"}, {"metric": "success", "task_type": "code", "window": "5m"})),
    ("/agents", ({}, *({"sort": s} for s in ("success_rate", "quality", "latency", "executions")), {"status": "busy"}, {"capability": "code"})),
    ("/agents", ({"task_type": "code", "sort": "quality"}, {"name": "a0"}, {"name": "a0", "status": "available"}, {"name": "nobody"})),
    ("/costs", tuple({"by": by} for by in ("model", "agent", "run", "tag"))),
    ("/learning/metrics", ({}, {"task": "code"}, {"run": "r0"}, {"task": "code", "run": "r0"})),
    ("/learning/report", ({}, {"task": "code"}, {"limit": 3})),
    ("/learning/curve", ({"task": "code"}, {"task": "doc", "run": ""}, {"task": "code", "window": 3})),
    ("/learning/streams", ({}, {"task": "code"}, {"run": "r0"}, {"task": "code", "run": "r0"}, {"task": "nothing"})),
    ("/learning/trend", ({"task": "code"}, {"tasks": ["code", "doc", "none"]}, {"tasks": ["code"], "run": "r0"})),
    ("/learning/convergence", ({}, {"task": "code"}, {"run": "r1"}, {"at": "2026-03-02T01:00:00Z"})),
    ("/learning/panels/{panel}", tuple({"panel": p, **more} for p in ("curves", "scores", "goals") for more in ({}, {"task": "code"}, {"limit": 1}))),
    ("/learning/goals", ({}, {"task_type": "code"}, {"task_type": ""}, {"state": "active"}, {"state": "completed"}, {"state": "regressed"}, {"history": True})),
    ("/goals/{id}", ({"id": "g0"}, {"id": "g1", "task_type": "code"}, {"id": "none"})),
)
PAGED = {
    "/trust",
    "/variables",
    "/variables/drift",
    "/variables/volatility",
    "/metrics/series",
    "/metrics/watched",
    "/agents",
    "/learning/streams",
    "/learning/goals",
}


class Worker:
    """Partitions of every topic, filled with records that lie on any of them, and what a worker does with their rows."""

    def __init__(self, seed: int, partitions: int = 3, settings: Any = lambda struct: struct()) -> None:
        self.rng = random.Random(seed)
        self.schema = schema(settings)
        self.views: dict[str, View] = {view.path: view for fold in self.schema.folds for view in fold.views}
        self.topics = {topic: partitions_of(topic, partitions, self.schema) for topic in SOURCE_TOPICS}
        self.keeper = ListKeeper(self.topics, self.schema.homes)
        self.cursors: dict[str, str] = {}
        self.changelog: dict[tuple[str, int], list[tuple[bytes, bytes]]] = {(topic, n): [] for topic in self.topics for n in range(partitions)}

    def absorb(self, events: Sequence[dict[str, Any]]) -> None:
        """Fold events, each on its home partition or, one in four, on another; now and then what is dirty is written."""
        for event in events:
            raw = json.dumps(event).encode()
            topic = decode(raw).data.TOPIC
            homes = self.topics[topic]
            home = sum(record_key(decode(raw))) if self.rng.random() < 0.75 else self.rng.randrange(len(homes))
            p = homes[home % len(homes)]
            p.absorb([Rec(p.next, START_US // 1000 + 86_400_000, None, raw)])
            p.outputs.clear()
            if self.rng.random() < 0.1:
                self.flush(p)

    def flush(self, p: Partition) -> None:
        """Write what is dirty."""
        self.changelog[p.topic, p.number] += [(key, value) for key, value, _, _ in p.drain()]

    def reader(self, tenant: str) -> PartitionReader:
        """Of a tenant; it keeps nothing."""
        return PartitionReader(self.topics, self.schema.homes, tenant, NOW_US)

    def ask(self, path: str, params: dict[str, Any], keeper: ListKeeper | None, tenant: str = "acme") -> bytes:
        """A view's answer, or its refusal."""
        view = self.views[path]
        asked = msgspec.convert({name: value for name, value in params.items() if value is not None}, view.params, strict=False)
        try:
            return orjson.dumps(view.answer(PartitionReader(self.topics, self.schema.homes, tenant, NOW_US, keeper), asked))
        except (NotFound, BadParameter) as no:
            return repr(no).encode()

    def compare(self, share: float = 1.0) -> Counter[str]:
        """Ask every list of the kept ones and anew; some by pages that go on where those of an earlier look ended."""
        seen: Counter[str] = Counter()
        for path, every in LISTS:
            for params in every:
                if self.rng.random() >= share:
                    continue
                tenant = self.rng.choice(TENANTS)
                if self.rng.random() < 0.3:
                    seen["tended"] += self.keeper.tend(self.reader, self.rng.choice((1, 3, 50)))
                whole = self.ask(path, params, self.keeper, tenant)
                assert whole == self.ask(path, params, None, tenant), (path, params)
                seen[path] += len(whole)
                if path in PAGED and not {"name", "names"} & params.keys():
                    place = f"{tenant} {path} {params}"
                    shown = {**params, "limit": self.rng.choice((1, 2)), "cursor": self.cursors.pop(place, None)}
                    part = self.ask(path, shown, self.keeper, tenant)
                    assert part == self.ask(path, shown, None, tenant), (path, shown)
                    if part.startswith(b"{") and orjson.loads(part)["cursor"]:
                        self.cursors[place] = orjson.loads(part)["cursor"]
                        seen["pages"] += shown["cursor"] is not None
        return seen


def fading(struct: type[msgspec.Struct]) -> Any:
    """Settings by which the evidence on variables fades."""
    return TrustSettings(trust_half_life={"variable": 3600.0, "": None}) if struct is TrustSettings else struct()


@pytest.mark.parametrize(("seed", "settings"), [(1, lambda struct: struct()), (2, fading)])
def test_kept_lists_answer_to_the_byte_as_those_that_are_made_anew_while_rows_change_and_tenants_are_cleared(
    seed: int, settings: Any, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(orders, "FEW_DUE", 1)
    worker = Worker(seed, settings=settings)
    seen: Counter[str] = Counter()
    events = Maker(random.Random(seed), 5_400_000_000).stream(900, TENANTS)
    for begin in range(0, len(events), 60):
        worker.absorb(events[begin : begin + 60])
        if begin == 600:
            for p in (p for of in worker.topics.values() for p in of):
                p.clear("acme")
        seen += worker.compare(0.5)
    assert all(seen[path] > 500 for path, _ in LISTS) and seen["pages"] > 20, seen
    assert worker.keeper.n_again > 500, "no key was looked at again: everything was made anew"
    assert seen["tended"] > 50, "none was looked at between questions"


def test_lists_of_a_follower_are_kept_through_the_rows_that_it_reads() -> None:
    worker, follower = Worker(3), Worker(4)
    core = Core(p for of in follower.topics.values() for p in of)
    position: Counter[Any] = Counter()
    events = Maker(random.Random(3)).stream(500, TENANTS)
    for begin in range(0, len(events), 50):
        worker.absorb(events[begin : begin + 50])
        for p in (p for of in worker.topics.values() for p in of):
            if begin == 350:
                p.clear("acme")
            worker.flush(p)
            log = worker.changelog[p.topic, p.number]
            core.followed(core.shards[(p.topic, p.number)], log[position[p.topic, p.number] :], len(log))
            position[p.topic, p.number] = len(log)
        follower.compare(0.3)
    for path, every in LISTS:
        assert follower.ask(path, every[0], follower.keeper) == worker.ask(path, every[0], worker.keeper)
    assert follower.keeper.n_again > 200


def test_lists_of_a_follower_lose_what_a_clearing_drops_before_its_graves_are_read() -> None:
    worker, follower = filled(20), filled(0)
    core = Core(p for of in follower.topics.values() for p in of)
    for p in worker.topics["judgments"]:
        worker.flush(p)
        core.followed(core.shards["judgments", p.number], worker.changelog["judgments", p.number], 100)
    before = follower.ask("/trust", {}, follower.keeper)
    assert before == worker.ask("/trust", {}, None)
    for p in worker.topics["judgments"]:
        p.clear("acme")
        worker.changelog["judgments", p.number].clear()
        worker.flush(p)
        told = [(key, value) for key, value in worker.changelog["judgments", p.number] if key.startswith(b"cleared.")]
        assert len(told) == 1
        core.followed(core.shards["judgments", p.number], told, 101)
    assert before != follower.ask("/trust", {}, follower.keeper) == follower.ask("/trust", {}, None)


def test_lists_are_right_on_every_worker_at_any_step_of_a_schedule_of_faults() -> None:
    asked = 0
    keys = next(table for table in OLD.tables if table.name == "sim_keys")
    for seed in range(25):
        world = World(seed, profile=Profile(events=60, steps=260))
        source = states_of(keys)
        keepers: dict[int, ListKeeper] = {}

        def look() -> None:
            nonlocal asked
            for worker in world.workers:  # noqa: B023 - asked within the loop
                parts = {"judgments": [worker.shard(n).partition for n in range(world.parts)]}  # noqa: B023
                keeper = keepers.setdefault(id(worker.core), ListKeeper(parts, {}))  # noqa: B023
                keeper.partitions = parts
                for tenant in {tenant for p in parts["judgments"] for tenant in p.spaces[keys.index]}:
                    wanted = {"by n": lambda: Order(lambda _, key, states: (sum(one.n for one in states), max(one.digest for one in states), key))}
                    reader = PartitionReader(parts, {}, tenant, 0)
                    kept = keeper.get(reader, source, wanted)["by n"]  # noqa: B023
                    assert list(kept) == list(made(reader, source, wanted)["by n"])  # noqa: B023
                    asked += len(kept)

        follow, take = world.do_follow, world.do_take

        def then(act: Any) -> Any:
            def both() -> None:
                act()
                look()

            both.__name__ = act.__name__
            return both

        world.do_follow, world.do_take = then(follow), then(take)  # type: ignore[method-assign]
        world.run()
        look()
    assert asked > 10_000


# ---- the parts, against plain Python


def random_changes(rng: random.Random, n: int) -> Iterator[tuple[tuple[str, ...], list[float] | None]]:
    """Keys with their figures: new ones, other ones, and ends."""
    for _ in range(n):
        yield (
            (rng.choice("abcdef|%"), str(rng.randrange(12))),
            None if rng.random() < 0.3 else [rng.choice((0.1, 1e16, -1e16, rng.gauss(0, 1))) for _ in range(3)],
        )


def test_an_order_pages_as_the_sorted_list_does() -> None:
    rng = random.Random(5)
    order = Order(lambda _, key, figures: (figures[0], key) if figures[0] < 1 else None)
    truth: dict[tuple[str, ...], list[float]] = {}
    reader: Any = None

    def name(place: Any) -> str:
        return "|".join(part.replace("%", "%25").replace("|", "%7C") for part in place[-1])

    cursor: str | None = None
    for key, figures in random_changes(rng, 1_500):
        order.take(reader, [(key, figures)])
        truth.pop(key, None)
        if figures is not None:
            truth[key] = figures
        want = sorted((figures[0], key) for key, figures in truth.items() if figures[0] < 1)
        for backwards in (False, True):
            items, limit = want[::-1] if backwards else want, rng.randrange(1, 9)
            for asked in (None, cursor, "a|99", "|"):
                try:
                    right: Any = page(items, limit, asked, name)
                except BadParameter as bad:
                    right = str(bad)
                try:
                    found: Any = order.page(limit, asked, parts_of, name, backwards=backwards)
                except BadParameter as bad:
                    found = str(bad)
                assert found == right
        cursor = name(rng.choice(want)) if want else None
    assert [place for place in order] == want


def test_spans_are_the_places_that_begin_with_the_strings() -> None:
    order = Order(lambda _, key, figures: key)
    keys = [(a, b, c) for a in ("a", "a\0", "ab", "b", "") for b in ("x", "", "\U0010ffff") for c in ("", "z")]
    order.fill(None, ((key, 1) for key in keys))  # type: ignore[arg-type]  # its place function asks no reader
    for prefix in [(), ("a",), ("",), ("a", "x"), ("a", ""), ("ab", "\U0010ffff"), ("c",)]:
        assert list(order.sorted.islice(*order.span(prefix))) == sorted(key for key in keys if key[: len(prefix)] == prefix)


def test_totals_are_those_of_fsum_and_columns_those_of_sum_in_the_order_of_keys() -> None:
    rng = random.Random(6)
    totals = Totals(lambda key, figures: tuple(figures) if key[0] != "a" else None, 3)
    columns = Columns(lambda key, figures: [((key, i), (x, int(x) % 1_000)) for i, x in enumerate(figures) if x < 2], "fi")
    truth: dict[tuple[str, ...], list[float]] = {}
    for at, (key, figures) in enumerate(random_changes(rng, 1_500)):
        for part in (totals, columns):
            part.take(None, [(key, figures)])  # type: ignore[attr-defined]  # both have it
        truth.pop(key, None)
        if figures is not None:
            truth[key] = figures
        if at % rng.choice((1, 2, 17)):
            continue
        mine = [figures for key, figures in truth.items() if key[0] != "a"]
        assert (totals.n, totals.sums()) == (len(mine), [fsum(one[i] for one in mine) for i in range(3)])
        lines = [x for key in sorted(truth) for x in truth[key] if x < 2]
        assert columns.column(0).tolist() == lines and sum(columns.column(0).tolist()) == sum(lines)
        assert columns.column(1).tolist() == [int(x) % 1_000 for x in lines]
        low, high = columns.span("b")
        assert columns.column(0)[low:high].tolist() == [x for key in sorted(truth) if key[0] == "b" for x in truth[key] if x < 2]


def test_a_sheet_is_the_sorted_list_of_its_keys_with_their_figures_and_pages_as_it_does() -> None:
    def work(_: Any, found: Sequence[tuple[tuple[str, ...], list[float]]]) -> tuple[list[tuple[str, ...]], list[Any]]:
        mine = [(key, figures) for key, figures in found if figures[0] < 1]
        return [key for key, _ in mine], [np.array([figures[i] for _, figures in mine], dtype=np.float64) for i in range(2)]

    rng = random.Random(9)
    sheet, reader = Sheet(work), cast("Any", None)
    sheet.fill(reader, [])
    truth: dict[tuple[str, ...], list[float]] = {}
    for _ in range(400):
        changed = {(key[0] + key[1],): figures for key, figures in random_changes(rng, rng.choice((0, 1, 5)))}
        truth = {key: figures for key, figures in {**truth, **changed}.items() if figures is not None}
        sheet.derived["before"] = 1
        if rng.random() < 0.05:
            sheet.fill(reader, truth.items())
        else:
            sheet.take(reader, list(changed.items()))
        assert not changed or not sheet.derived
        want = sorted(key for key, figures in truth.items() if figures[0] < 1)
        assert (
            sheet.keys == want
            and sheet.names_at(range(len(want))) == [key[0] for key in want]
            and [column.tolist() for column in sheet.columns] == [[truth[key][i] for key in want] for i in range(2)]
        )
        chosen = [i for i, key in enumerate(want) if truth[key][1] > 0]
        for items, indices in ((want, None), ([want[i] for i in chosen], np.array(chosen, dtype=np.int64))):
            limit = rng.randrange(1, 9)
            for cursor in (None, "a7", "zz", items[-1][0] if items else "", rng.choice(items)[0] if items else ""):
                try:
                    right: Any = page(items, limit, cursor, lambda key: key[0])
                except BadParameter as bad:
                    right = str(bad)
                try:
                    at, more = sheet.page(limit, cursor, indices)
                    found: Any = [sheet.keys[i] for i in at], more
                except BadParameter as bad:
                    found = str(bad)
                assert found == right
    assert len(want) > 20


def test_an_exact_sum_is_rounded_once() -> None:
    rng = random.Random(7)
    for _ in range(300):
        numbers = [rng.choice((1, -1)) * rng.random() * 10.0 ** rng.randrange(-320, 300) for _ in range(20)] + [5e-324, -0.0]
        total = Exact()
        for x in [*numbers, 1e300]:
            total.add(x, 1)
        total.add(1e300, -1)
        assert total.value() == fsum(numbers)


# ---- bounds


def filled(n: int) -> Worker:
    """A worker with so many keys of trust of the tenant acme."""
    worker = Worker(8, 2)
    worker.absorb(
        [
            {
                "specversion": "1.0",
                "id": f"t{i}",
                "source": "t",
                "type": "trust.observed.v1",
                "tenant": "acme",
                "data": {"kind": "model", "id": f"k{i}", "success": True},
            }
            for i in range(n)
        ]
    )
    return worker


def test_only_what_changed_is_looked_at_again_and_a_row_that_is_dirty_still_once() -> None:
    worker = filled(60)
    first = worker.ask("/trust", {}, worker.keeper)
    assert (worker.keeper.n_made, worker.keeper.n_again) == (1, 0) and worker.ask("/trust", {}, worker.keeper) == first
    worker.absorb([event("k5", 1), event("k5", 2), event("new", 3)])
    for _ in range(3):
        assert worker.ask("/trust", {}, worker.keeper) == worker.ask("/trust", {}, None) != first
    for p in worker.topics["judgments"]:
        worker.flush(p)
    worker.ask("/trust", {}, worker.keeper)
    assert (worker.keeper.n_made, worker.keeper.n_again) == (1, 2)


def rows_fail_once(monkeypatch: pytest.MonkeyPatch, nth: int) -> None:
    """A bug of a view: the rows of a key cannot be read the nth time."""
    rows, n = PartitionReader.rows, [0]

    def fails_once(*args: Any) -> Any:
        n[0] += 1
        if n[0] == nth:
            raise ZeroDivisionError
        return rows(*args)

    monkeypatch.setattr(PartitionReader, "rows", fails_once)


def due(keeper: ListKeeper) -> dict[str, int]:
    """Changed keys of each tenant that wait to be looked at."""
    found: Counter[str] = Counter()
    for held in keeper.held.values():
        found[held.tenant] += len(held.due)
    return found


def test_between_questions_changed_keys_are_looked_at_little_by_little_but_for_a_few() -> None:
    worker, now = filled(400), [0.0]
    keeper = worker.keeper = ListKeeper(worker.topics, worker.schema.homes, lambda: now[0])
    few = orders.FEW_DUE
    worker.ask("/trust", {}, keeper)
    worker.ask("/trust", {}, keeper, "other")
    assert keeper.tend(worker.reader, 50) == 0, "nothing has changed"
    worker.absorb([event(f"k{n}", 1) for n in range(100 + few)])
    worker.absorb([event(f"k{n}", 1, "other") for n in range(80 + few)])
    kept, seen = keeper.n_kept, []
    while keeper.tend(worker.reader, 50):
        seen.append(due(keeper))
        now[0] += 1.0
    assert seen == [
        {"acme": 50 + few, "other": 80 + few}, {"acme": 50 + few, "other": 30 + few}, {"acme": few, "other": 30 + few}, {"acme": few, "other": few - 20}
    ], "those of whom most wait come first"  # fmt: skip
    assert keeper.n_kept - kept == few + 80 + few, "what they take is counted: keys that wait too"
    worker.absorb([event("k0", 2), event("new", 2)])
    assert keeper.tend(worker.reader, 50) > 0 == keeper.tend(worker.reader, 50)
    before = keeper.n_again
    assert worker.ask("/trust", {}, keeper) == worker.ask("/trust", {}, None)
    assert worker.ask("/trust", {}, keeper, "other") == worker.ask("/trust", {}, None, "other")
    assert 0 < keeper.n_again - before <= 2 * few, "the question has the rest"


def test_lists_of_every_source_are_tended_for_a_while_after_the_last_question() -> None:
    worker, now = filled(200), [0.0]
    keeper = worker.keeper = ListKeeper(worker.topics, worker.schema.homes, lambda: now[0])
    inputs = {f"v{n}": 1.0 for n in range(90)}
    forecast = {
        "specversion": "1.0",
        "source": "t",
        "type": "forecast.issued.v1",
        "tenant": "acme",
        "data": {"forecast_id": "f", "model": "m", "inputs": inputs},
    }
    worker.absorb([{**forecast, "id": "f1"}])
    worker.ask("/trust", {}, keeper)
    worker.ask("/variables", {}, keeper)
    worker.absorb([{**forecast, "id": "f2"}, *(event(f"k{n}", 1) for n in range(70))])
    assert [keeper.tend(worker.reader, 90) for _ in range(3)] == [90, 70, 0]
    worker.absorb([event(f"k{n}", 2) for n in range(70)])
    now[0] = orders.TENDED_S
    assert keeper.tend(worker.reader, 10) == 10
    now[0] += 1
    assert keeper.tend(worker.reader, 10) == 0, "to be tended is not to be asked for"
    assert worker.ask("/trust", {}, keeper) == worker.ask("/trust", {}, None)


def test_lists_of_which_so_much_changed_that_they_would_be_made_anew_are_dropped_at_once_whoever_they_are_of() -> None:
    worker, now = filled(400), [0.0]
    keeper = worker.keeper = ListKeeper(worker.topics, worker.schema.homes, lambda: now[0])
    worker.ask("/trust", {}, keeper)
    now[0] = orders.TENDED_S + 1
    worker.ask("/trust", {}, keeper, "other")
    worker.absorb([event(f"n{n}", 4) for n in range(1_000)])
    worker.absorb([event(f"n{n}", 4, "other") for n in range(100)])
    assert keeper.tend(worker.reader, 50) == 50
    assert [tenant for tenant, _ in keeper.held] == ["other"] and keeper.n_kept == 50 + 50, "places, and keys that wait"
    made = keeper.n_made
    for _ in range(3):
        assert worker.ask("/trust", {}, keeper) == worker.ask("/trust", {}, None) and keeper.n_made == made + 1


def test_lists_that_a_question_makes_anew_have_nothing_due_any_more() -> None:
    worker = filled(400)
    worker.ask("/trust", {}, worker.keeper)
    worker.absorb([event(f"n{n}", 4) for n in range(1_000)])
    for _ in range(3):
        assert worker.ask("/trust", {}, worker.keeper) == worker.ask("/trust", {}, None)
    assert worker.keeper.n_made == 2 and due(worker.keeper) == {"acme": 0}


def test_lists_whose_marks_are_given_up_while_they_are_tended_are_no_more(monkeypatch: pytest.MonkeyPatch) -> None:
    worker = filled(400)
    keeper = worker.keeper
    worker.ask("/trust", {}, keeper)
    worker.absorb([event(f"k{n}", 1) for n in range(100)])
    assert keeper.tend(worker.reader, 60) == 60 and keeper.tend(worker.reader, 30) == 30
    monkeypatch.setattr("tables.partition.MOST_MARKS", 10)
    worker.absorb([event(f"k{n}", 2) for n in range(200)])
    for p in worker.topics["judgments"]:
        worker.flush(p)
    assert keeper.tend(worker.reader, 50) == 0 and not keeper.held and keeper.n_kept == 0
    assert worker.ask("/trust", {}, keeper) == worker.ask("/trust", {}, None)


@pytest.mark.parametrize("when", ["a question", "tending"])
def test_where_a_key_cannot_be_looked_at_no_list_is_kept_that_lacks_it(when: str, monkeypatch: pytest.MonkeyPatch) -> None:
    worker = filled(400)
    keeper = worker.keeper
    worker.ask("/trust", {}, keeper)
    worker.absorb([event(f"k{n}", 1) for n in range(100)])
    with monkeypatch.context() as broken:
        rows_fail_once(broken, 40)
        with pytest.raises(ZeroDivisionError):
            worker.ask("/trust", {}, keeper) if when == "a question" else keeper.tend(worker.reader, 64)
    assert not keeper.held and not keeper._using and keeper.n_kept == 0
    assert keeper.tend(worker.reader, 64) == 0
    for _ in range(2):
        assert worker.ask("/trust", {}, keeper) == worker.ask("/trust", {}, None)
    monkeypatch.setattr("tables.partition.MOST_MARKS", 10)
    worker.absorb([event(f"k{n}", 2) for n in range(200)])
    for p in worker.topics["judgments"]:
        worker.flush(p)
    assert keeper.tend(worker.reader, 64) == 0
    assert worker.ask("/trust", {}, keeper) == worker.ask("/trust", {}, None)


def event(id: str, n: int, tenant: str = "acme") -> dict[str, Any]:
    """One more observation of a key."""
    return {
        "specversion": "1.0",
        "id": f"more{n}{id}",
        "source": "t",
        "type": "trust.observed.v1",
        "tenant": tenant,
        "data": {"kind": "model", "id": id, "success": False},
    }


def test_what_is_kept_is_bounded_and_what_is_larger_than_the_bound_is_not_kept() -> None:
    worker = filled(50)
    keeper = worker.keeper = ListKeeper(worker.topics, worker.schema.homes, most=60)
    worker.ask("/trust", {}, keeper)
    worker.absorb([event("x", 1, "other")])
    worker.ask("/trust", {}, keeper, "other")
    assert keeper.n_kept == 51
    worker.ask("/trust", {"sort": "trust"}, keeper, "acme")  # 100 places of one tenant: none is kept
    assert keeper.n_kept == 0 and not any(p.watched for p in worker.topics["judgments"])
    assert worker.ask("/trust", {"sort": "trust"}, keeper) == worker.ask("/trust", {"sort": "trust"}, None)


def test_the_lists_of_one_source_are_bounded_too() -> None:
    worker = filled(10)
    for n in range(2 * orders.MOST_LISTS):
        worker.ask("/variables", {"min_count": n}, worker.keeper)
    (held,) = worker.keeper.held.values()
    assert len(held.parts) == orders.MOST_LISTS and "unknown" in held.parts


def test_lists_that_nobody_asks_for_are_dropped_and_with_the_last_of_them_the_marks() -> None:
    worker, now = filled(20), [0.0]
    keeper = worker.keeper = ListKeeper(worker.topics, worker.schema.homes, lambda: now[0])
    worker.ask("/trust", {}, keeper)
    worker.ask("/variables", {}, keeper)
    now[0] = orders.IDLE_S
    worker.ask("/trust", {}, keeper)
    keeper.forget()
    assert len(keeper.held) == 2
    now[0] = orders.IDLE_S + 1
    keeper.forget()
    assert len(keeper.held) == 1 and [len(p.watched) for of in worker.topics.values() for p in of].count(1) == 2
    now[0] = 3 * orders.IDLE_S
    keeper.forget()
    worker.absorb([event("k1", 1)])
    assert not keeper.held and not keeper._looked and not any(p.watched for of in worker.topics.values() for p in of)


def test_where_too_many_rows_are_marked_the_lists_are_made_anew(monkeypatch: pytest.MonkeyPatch) -> None:
    assert MOST_MARKS >= 10_000
    monkeypatch.setattr("tables.partition.MOST_MARKS", 5)
    worker = filled(30)
    worker.ask("/trust", {}, worker.keeper)
    worker.absorb([event(f"k{i}", i) for i in range(20)])
    for p in worker.topics["judgments"]:
        worker.flush(p)
    assert worker.ask("/trust", {"sort": "trust"}, worker.keeper) == worker.ask("/trust", {"sort": "trust"}, None)
    assert worker.ask("/trust", {}, worker.keeper) == worker.ask("/trust", {}, None)


def test_no_row_is_marked_while_nothing_is_kept() -> None:
    worker = filled(30)
    for p in worker.topics["judgments"]:
        worker.flush(p)
    assert not any(p.watched for of in worker.topics.values() for p in of)


def test_tables_that_are_swapped_have_lists_of_their_own() -> None:
    former, later = filled(5), filled(7)
    engine: Any = SimpleNamespace(partitions=former.topics, schema=former.schema, on_schema=[])
    routes = Routes(engine, None, load({}, {}, None, ()), {}, None)  # type: ignore[arg-type]  # nothing here asks for tokens or the archive
    view = former.views["/trust"]
    assert len(view.answer(routes.reader("acme"), msgspec.convert({}, view.params))["entries"]) == 5
    first = routes.keeper
    assert len(view.answer(routes.reader("acme"), msgspec.convert({}, view.params))["entries"]) == 5 and routes.keeper is first
    engine.partitions, engine.schema = later.topics, later.schema
    view = later.views["/trust"]
    assert len(view.answer(routes.reader("acme"), msgspec.convert({}, view.params))["entries"]) == 7
