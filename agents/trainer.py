"""One trainer process of the demo: trains a real classifier with numpy and publishes what it measures.

Nothing here is made up: losses and accuracies are those of the model being trained, forecasts carry its own predicted
probabilities on held-out samples, their resolutions compare with the true label, and costs are CPU seconds measured of this
process. Each epoch is a task: a judge that sees only the training loss says what it thinks of it, the evaluation on held-out
data says what is so. No trust is published: the worker derives it. Run as ``python -m agents.trainer NAME``; `PLANS` says what each one does.
"""

from __future__ import annotations

import argparse
import sys
import time
from dataclasses import dataclass
from decimal import Decimal

import numpy as np
from numpy.typing import NDArray

from streams import events
from streams.publisher import SyncPublisher

USD_PER_CPU_SECOND = 0.25
"""The demo's price of a CPU second, so that a run of seconds shows cents."""


@dataclass(frozen=True)
class Plan:
    """What a trainer trains and what befalls it.

    Attributes:
        drift_at: share of the epochs after which its held-out inputs are shifted; None = never.
        budget_usd: warning and shutdown level of its own daily budget.
    """

    dataset: str
    seed: int
    learning_rate: float
    drift_at: float | None = None
    budget_usd: tuple[float, float] | None = None


PLANS = {
    "digits-a": Plan("digits", 1, 0.5),
    "cancer-b": Plan("cancer", 2, 0.2, budget_usd=(0.002, 0.005)),
    "digits-drifting": Plan("digits", 3, 0.5, drift_at=0.4),
}
EPOCHS = 40
FADED = 0.05
"""What is left of the inputs' scale once the drifting trainer's sensor fades."""
STEPS = 16
FORECASTS = 14
PASSING_ACCURACY = 0.9
"""Held-out accuracy from which an epoch's evaluation passes."""
PASSING_LOSS = 0.3
"""Training loss up to which the judge thinks that it will."""


def data(plan: Plan) -> tuple[NDArray[np.float64], NDArray[np.int64], NDArray[np.float64], NDArray[np.int64], dict[str, NDArray[np.float64]], int]:
    """Standardised train and held-out halves, named inputs of the held-out samples, number of classes."""
    from sklearn.datasets import load_breast_cancer, load_digits  # here: the demo reads `PLANS` and must not wait for it

    rng = np.random.default_rng(plan.seed)
    bunch = load_digits() if plan.dataset == "digits" else load_breast_cancer()
    x, y = np.asarray(bunch.data, dtype=np.float64), np.asarray(bunch.target, dtype=np.int64)
    order = rng.permutation(len(x))
    x, y = x[order], y[order]
    cut = int(len(x) * 0.6)
    mean, std = x[:cut].mean(0), x[:cut].std(0) + 1e-9
    x = (x - mean) / std
    held = x[cut:]
    if plan.dataset == "digits":
        tiles = held.reshape(-1, 8, 8)
        named = {
            "ink_top": tiles[:, :4].mean((1, 2)),
            "ink_bottom": tiles[:, 4:].mean((1, 2)),
            "ink_left": tiles[:, :, :4].mean((1, 2)),
            "ink_centre": tiles[:, 2:6, 2:6].mean((1, 2)),
        }
    else:
        named = {str(name).replace(" ", "_"): held[:, i] for i, name in enumerate(bunch.feature_names[:4])}
    return x[:cut], y[:cut], held, y[cut:], named, int(y.max()) + 1


def softmax(z: NDArray[np.float64]) -> NDArray[np.float64]:
    """Rows of probabilities."""
    e = np.exp(z - z.max(1, keepdims=True))
    return np.asarray(e / e.sum(1, keepdims=True))


def train(name: str, publisher: SyncPublisher, *, pace_s: float = 0.0) -> None:
    """Train and publish until the last epoch.

    Args:
        pace_s: pause after each step, for people who watch.
    """
    plan = PLANS[name]
    x, y, held_x, held_y, named, classes = data(plan)
    rng = np.random.default_rng(plan.seed + 100)
    weights, bias = np.zeros((x.shape[1], classes)), np.zeros(classes)
    prefix = name.rsplit("-", 1)[-1] + "_"
    publisher.publish(events.AgentRegistered(agent=name, capabilities=["train", plan.dataset]))
    publisher.publish(events.GoalCreated(goal_id=f"{name}-accuracy", description=f"{name} reaches 95 % accuracy on held-out data", target=0.95, task_type=name))
    publisher.publish(events.GoalCreated(goal_id=f"{name}-loss", description=f"{name} gets its loss to 0.15", target=0.15, direction="at_most", task_type=name))
    if plan.budget_usd:
        low, high = plan.budget_usd
        limits = [events.Limit(level="warning", at=Decimal(str(low))), events.Limit(level="shutdown", at=Decimal(str(high)))]
        publisher.publish(events.BudgetSet(scope=f"model:{name}", period="daily", limits=limits))
    spent_cpu = time.process_time()
    cursor = 0
    last_loss = None
    for epoch in range(EPOCHS):
        task, began = f"{name}-epoch-{epoch}", time.perf_counter()
        publisher.publish(events.TaskStarted(execution_id=task, task=task, agent=name, task_type="epoch"))
        rate = plan.learning_rate / (1 + 0.05 * epoch)
        order = rng.permutation(len(x))
        losses = []
        for step, batch in enumerate(np.array_split(order, STEPS)):
            p = softmax(x[batch] @ weights + bias)
            losses.append(float(-np.log(p[np.arange(len(batch)), y[batch]] + 1e-12).mean()))
            p[np.arange(len(batch)), y[batch]] -= 1
            gradient = x[batch].T @ p / len(batch)
            weights -= rate * gradient
            bias -= rate * p.mean(0)
            publisher.publish(
                events.MetricRecorded(
                    metric_type="train",
                    model=name,
                    run=name,
                    epoch=epoch,
                    step=epoch * STEPS + step,
                    values={"loss": losses[-1], "grad_norm": float(np.linalg.norm(gradient))},
                    tags=[plan.dataset],
                )
            )
            if pace_s:
                time.sleep(pace_s)
        drifting = plan.drift_at is not None and epoch >= EPOCHS * plan.drift_at
        shown = held_x * (FADED if drifting else 1.0)
        chances = softmax(shown @ weights + bias)
        accuracy, loss = float((chances.argmax(1) == held_y).mean()), float(np.mean(losses))
        publisher.publish(events.MetricRecorded(metric_type="held_out", model=name, run=name, epoch=epoch, values={"accuracy": accuracy}, tags=[plan.dataset]))
        change = abs(loss - last_loss) if last_loss is not None else loss
        judge(name, publisher, task, loss, accuracy, better=last_loss is None or loss <= last_loss, began=began)
        last_loss = loss
        publisher.publish(
            events.LearningRecorded(
                task_type=name, performance_score=accuracy, learning_rate=rate, episode_count=(epoch + 1) * STEPS, convergence_metric=change, run=name
            )
        )
        publisher.publish(events.GoalProgressed(goal_id=f"{name}-accuracy", current=accuracy, task_type=name))
        publisher.publish(events.GoalProgressed(goal_id=f"{name}-loss", current=loss, task_type=name))
        forecast(name, publisher, chances, held_y, named, prefix, cursor, epoch, shift=drifting)
        cursor += FORECASTS
        now = time.process_time()
        publisher.publish(events.CostIncurred(cost=Decimal(f"{(now - spent_cpu) * USD_PER_CPU_SECOND:.6f}"), model=name, run=name, tags=[plan.dataset]))
        spent_cpu = now


def judge(name: str, publisher: SyncPublisher, task: str, loss: float, accuracy: float, *, better: bool, began: float) -> None:
    """The end of an epoch: whether it made the loss smaller, what a judge expects by the training loss, what the held-out data say."""
    at = time.perf_counter()
    publisher.publish(
        events.TaskCompleted(execution_id=task, task=task, agent=name, task_type="epoch", success=better, quality=accuracy, duration_ms=(at - began) * 1000)
    )
    expected = float(np.exp(-loss))
    publisher.publish(
        events.JudgmentRecorded(
            task=task,
            judge=f"{name}-train-loss",
            agent=name,
            overall_score=expected,
            overall_confidence=0.5,
            all_criteria_pass=loss <= PASSING_LOSS,
            criteria={"training_loss": expected},
            evaluation_time_ms=(time.perf_counter() - at) * 1000,
        )
    )
    publisher.publish(events.EvaluationCompleted(task=task, agent=name, passed=accuracy >= PASSING_ACCURACY, score=accuracy))


def forecast(
    name: str,
    publisher: SyncPublisher,
    chances: NDArray[np.float64],
    truth: NDArray[np.int64],
    named: dict[str, NDArray[np.float64]],
    prefix: str,
    cursor: int,
    epoch: int,
    *,
    shift: bool,
) -> None:
    """Forecasts on held-out samples with the model's probabilities, and how they turned out."""
    for i in range(FORECASTS):
        sample = (cursor + i) % len(truth)
        p = np.sort(chances[sample])
        guess = int(chances[sample].argmax())
        success = guess == int(truth[sample])
        inputs = {prefix + key: round(float(values[sample]) * (FADED if shift else 1.0), 6) for key, values in named.items()}
        identity = f"{name}-{epoch}-{i}"
        confidence, margin = float(p[-1]), float(p[-1] - p[-2])
        publisher.publish(
            events.ForecastIssued(
                forecast_id=identity, model=name, confidence=confidence, fragility=1 - margin, certified=margin > 0.5, prediction=guess, inputs=inputs
            )
        )
        publisher.publish(events.ForecastResolved(forecast_id=identity, model=name, success=success, actual=int(truth[sample]), probability=confidence))


def main() -> int:
    """Command line of the demo's trainer."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("name", choices=sorted(PLANS))
    parser.add_argument("--bootstrap", required=True)
    parser.add_argument("--prefix", default="pulsefold.")
    parser.add_argument("--tenant", default="default")
    parser.add_argument("--pace-s", type=float, default=0.0)
    words = parser.parse_args()
    with SyncPublisher(words.bootstrap, prefix=words.prefix, tenant=words.tenant, source=f"trainer/{words.name}") as publisher:
        train(words.name, publisher, pace_s=words.pace_s)
        publisher.flush(30)
        report = publisher.report()
    print(f"{words.name}: {report}")
    return 0 if report.failed == 0 and report.dropped == 0 else 1


if __name__ == "__main__":
    sys.exit(main())
