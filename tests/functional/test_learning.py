"""Learning and goals on a real worker: several producers at once, restarts, the aliases."""

from __future__ import annotations

import threading

from streams.broker import EmbeddedBroker
from streams.events import GoalCreated, LearningRecorded
from streams.publisher import SyncPublisher

from ..workers import WorkerProcess


def step(n: int, task: str = "t") -> LearningRecorded:
    return LearningRecorded(task_type=task, performance_score=n / 100, learning_rate=0.1, episode_count=n, convergence_metric=0.5 / (n + 1))


def test_three_producers_of_fifty_concurrent_events_each_make_a_hundred_and_fifty(embedded: EmbeddedBroker, worker: WorkerProcess) -> None:
    def produce(name: str) -> None:
        with SyncPublisher(embedded.bootstrap) as publisher:
            threads = [threading.Thread(target=publisher.publish, args=(step(n, name),)) for n in range(50)]
            for thread in threads:
                thread.start()
            for thread in threads:
                thread.join()

    producers = [threading.Thread(target=produce, args=(f"task{n}",)) for n in range(3)]
    for producer in producers:
        producer.start()
    for producer in producers:
        producer.join()
    worker.until(lambda: worker.get("/learning/metrics")["total_learning_events"] == 150)
    assert {one["task"]: one["total_events"] for one in worker.get("/learning/streams")["streams"]} == {"task0": 50, "task1": 50, "task2": 50}
    for name in ("metrics", "report", "goals"):
        alias, view = worker.get(f"/learning/{name}", api="/api"), worker.get(f"/learning/{name}")
        for body in (alias, view):
            body.pop("report_time", None)
            body.get("learning_dynamics", {}).pop("convergence_analysis", None)
        assert alias == view


def test_a_restart_keeps_curve_goals_and_convergence_and_links_go_on(embedded: EmbeddedBroker, worker: WorkerProcess) -> None:
    with SyncPublisher(embedded.bootstrap) as publisher:
        publisher.publish(GoalCreated(goal_id="g", target=0.95, metric="performance_score"))
        publisher.flush()
        worker.until(lambda: worker.get("/learning/goals")["total_goals"] == 1)
        for n in range(80):
            publisher.publish(step(n))
        publisher.flush()
        worker.until(lambda: worker.get("/goals/g")["n_total"] == 80)
        paths = (("/learning/curve", {"task": "t", "window": 1000}), ("/goals/g", {"history": "true"}), ("/learning/trend", {"task": "t"}))
        before = [worker.get(path, **params) for path, params in paths]
        settled = worker.get("/learning/convergence", task="t")
        worker.until(worker.absorbed)
        worker.kill()
        worker.start()
        worker.until(worker.absorbed)
        assert [worker.get(path, **params) for path, params in paths] == before
        again = worker.get("/learning/convergence", task="t")
        assert [again[name] for name in ("total_convergences", "entered", "left", "since")] == [
            settled[name] for name in ("total_convergences", "entered", "left", "since")
        ]
        assert settled["entered"] == 1
        for n in range(80, 100):
            publisher.publish(step(n))
    worker.until(lambda: worker.get("/goals/g")["completed"])
    worker.until(lambda: worker.get("/goals/g")["n_total"] == 100)
