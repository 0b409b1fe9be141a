"""A headless Chromium from the system, and a worker with something to show. No Chromium: skipped at home, failed in CI."""

from __future__ import annotations

import os
import shutil
from collections.abc import Iterator
from pathlib import Path

import pytest
from playwright.sync_api import Browser, BrowserContext, Page, expect, sync_playwright

from streams import events
from streams.broker import EmbeddedBroker
from streams.publisher import SyncPublisher

from ..workers import WorkerProcess

NAMES = ("chromium", "chromium-browser", "google-chrome")
HOSTILE = "<img src=x onerror=\"document.title='taken'\">"
PARTITIONS = 2
expect.set_options(timeout=20_000)


@pytest.fixture(scope="package")
def chromium() -> Iterator[Browser]:
    """The browser, one for all tests here. It ends with them: while it lives an event loop runs in this thread, and other tests start their own."""
    path = next(filter(None, map(shutil.which, NAMES)), None)
    if path is None:
        if os.environ.get("CI"):
            pytest.fail("CI has no Chromium: .ci/run must install it")
        pytest.skip("no Chromium here; install Debian's package chromium")
    with sync_playwright() as playwright:
        browser = playwright.chromium.launch(executable_path=path, args=["--no-sandbox"])  # root's Chromium has no sandbox
        yield browser
        browser.close()


class Tab:
    """A page of a worker, with everything that went wrong in it and everything it asked for.

    Attributes:
        problems: console errors, uncaught exceptions, violations of the content security policy.
        requests: URLs.
    """

    def __init__(self, context: BrowserContext, base: str) -> None:
        self.page: Page = context.new_page()
        self.base = base
        self.problems: list[str] = []
        self.requests: list[str] = []
        self.page.on("pageerror", lambda error: self.problems.append(str(error)))
        self.page.on("console", lambda message: self.problems.append(message.text) if message.type in ("error", "warning") else None)
        self.page.on("request", lambda request: self.requests.append(request.url))

    def open(self, path: str = "/", *, state: str | None = "live") -> Page:
        """Load the page and wait until it says `state` and has drawn what it knows."""
        self.page.goto(self.base + path)
        if state is not None:
            self.page.wait_for_selector(f"#state[data-state={state}]", timeout=20_000)
        if state == "live":
            self.page.wait_for_selector("main[data-drawn]", timeout=20_000)
        return self.page


@pytest.fixture
def tab(chromium: Browser, site: WorkerProcess, request: pytest.FixtureRequest) -> Iterator[Tab]:
    """A tab at the worker of the module; by `indirect` parameters: width, height, color_scheme."""
    wanted = getattr(request, "param", {})
    size = {"width": wanted.get("width", 1280), "height": wanted.get("height", 800)}
    context = chromium.new_context(viewport=size, color_scheme=wanted.get("scheme", "light"))
    yield Tab(context, f"http://127.0.0.1:{site.port}")
    context.close()


@pytest.fixture(scope="module")
def broker() -> Iterator[EmbeddedBroker]:
    """One for the module."""
    with EmbeddedBroker(partitions=PARTITIONS, prefix="pulsefold.") as running:
        yield running


@pytest.fixture(scope="module")
def site(broker: EmbeddedBroker, tmp_path_factory: pytest.TempPathFactory) -> Iterator[WorkerProcess]:
    """A worker that has folded `sample` for the tenants default and evil."""
    worker = WorkerProcess(broker.bootstrap, Path(tmp_path_factory.mktemp("site")), partitions=PARTITIONS).start()
    try:
        with publisher(broker) as default:
            sample(default, "m1")
        with publisher(broker, "evil") as evil:
            sample(evil, HOSTILE)
        # 304, and what was derived of them: a hundred observations of the forecasts' models and variables
        worker.until(lambda: worker.absorbed(404) and worker.get("/alerts", headers={"X-Tenant": "evil"})["alerts"])
        yield worker
    finally:
        worker.stop()


def publisher(broker: EmbeddedBroker, tenant: str = "default") -> SyncPublisher:
    """A publisher for a tenant."""
    return SyncPublisher(broker.bootstrap, tenant=tenant, source="browser-test")


def sample(to: SyncPublisher, name: str) -> None:
    """Something for every part of the page, all under one name: a drifting variable, a budget that is used up, a lost goal."""
    to.publish(events.GoalCreated(goal_id=name, description=f"goal of {name}", target=0.9, task_type=name))
    to.publish(events.BudgetSet(scope=f"model:{name}", period="daily", limits=[events.Limit(level="shutdown", at=1)]))
    for n in range(25):
        to.publish(events.MetricRecorded(metric_type="train", model=name, run=name, step=n, values={"loss": 1 / (n + 1)}))
        to.publish(
            events.LearningRecorded(task_type=name, performance_score=0.95 - n / 100, learning_rate=0.1, episode_count=n, convergence_metric=0.5, run=name)
        )
        to.publish(events.GoalProgressed(goal_id=name, current=0.95 - n / 100, task_type=name))
        to.publish(events.ForecastIssued(forecast_id=f"f{n}", model=name, confidence=0.6, fragility=0.4, inputs={name: n}))
        to.publish(events.ForecastResolved(forecast_id=f"f{n}", model=name, success=n % 4 != 0))
        to.publish(events.CostIncurred(cost=0.25, model=name, run=name))
    to.flush(30)
