"""The page as people use it: at a desk, on a phone, in the dark, by keyboard, with hostile names, with a broken connection."""

from __future__ import annotations

import json
import re
from pathlib import Path
from urllib.parse import urlsplit

import pytest
from playwright.sync_api import Browser, Page, expect

from streams import events
from streams.broker import EmbeddedBroker

from ..workers import WorkerProcess
from .conftest import HOSTILE, PARTITIONS, Tab, publisher, sample

ROOT = Path(__file__).parent.parent.parent
PHONE = {"width": 390, "height": 844}
PARTS = ("alerts", "trust", "drift", "goals", "costs", "learning", "metrics", "worker")

SCRIPT = (ROOT / "tests" / "browser" / "essentials.js").read_text()
"""Defines what `page.evaluate` calls below."""


def rows(page: Page, part: str) -> list[str]:
    return [text.replace("\n", " ") for text in page.locator(f"#{part} tbody tr").all_inner_texts()]


def test_every_part_shows_what_was_published(tab: Tab) -> None:
    page = tab.open()
    expect(page.locator("#alerts-open")).to_contain_text("reached the shutdown limit of 1.00 USD")
    assert any("m1" in row and "0.704" in row and "27" not in row.split("\t") for row in rows(page, "trust")), rows(page, "trust")  # (1 + 18) / (2 + 25)
    assert any("drifting" in row and "0.400" in row and "0.600" in row for row in rows(page, "drift")), rows(page, "drift")
    assert any("lost again" in row and "≥ 0.9" in row and "0.71" in row for row in rows(page, "goals")), rows(page, "goals")
    assert any("shutdown" in row and "625 %" in row and "$6.25" in row and "$1.00" in row for row in rows(page, "costs")), rows(page, "costs")
    assert any("declining" in row for row in rows(page, "learning")), rows(page, "learning")
    assert any("25" in row for row in rows(page, "metrics"))
    assert [row.split()[0] for row in rows(page, "worker")][:4] == [f"pulsefold.{name}" for name in ("forecasts", "training", "costs", "judgments")]
    assert "goals reached" in page.locator("#tiles").inner_text()
    page.select_option("#metric", "learning.performance_score")
    expect(page.locator("#chart svg")).to_have_attribute("aria-label", re.compile("^learning.performance_score by window"))


def test_the_spread_of_trust_and_the_learning_rates_are_pictures_of_what_the_views_say(tab: Tab, broker: EmbeddedBroker) -> None:
    with publisher(broker, "pictures") as to:
        to.observe_many([events.Observation(kind="agent", id=f"a{n}", success=n < 9) for n in range(12)])  # 2/3 nine times, 1/3 three times
        for n in range(5):
            for run in ("one", "two"):
                data = {"performance_score": 0.5, "convergence_metric": 0.5, "episode_count": n}
                to.publish(events.LearningRecorded(task_type="t", run=run, learning_rate=0.1 / (n + 1) if run == "one" else 0.05, **data))
    page = tab.open("/#tenant=pictures")
    spread, rates = page.locator("#trust-chart svg"), page.locator("#rates-chart svg")
    expect(spread).to_have_attribute("aria-label", "Trust of 12 keys: most of them, 9, from 0.65 to 0.7")
    assert [one.text_content() for one in spread.locator("rect.pillar title").all()] == ["0.3 to 0.35: 3", "0.65 to 0.7: 9"]
    expect(rates).to_have_attribute("aria-label", re.compile(r"^Learning rate: t run one from 0.1 to 0.02; t run two from 0.05 to 0.05$"))
    assert [rates.locator(f".c{n} circle").count() for n in (0, 1, 2)] == [5, 5, 0]
    low, high = (page.evaluate("(n) => Number(document.querySelectorAll('#trust-chart .pillar')[n].getAttribute('height'))", n) for n in (0, 1))
    assert high == pytest.approx(3 * low, abs=0.2)
    page.set_viewport_size(PHONE)
    expect(spread).to_have_attribute("viewBox", re.compile(r"^0 0 3\d\d "))  # drawn again, so that letters keep their size
    assert page.evaluate("document.documentElement.scrollWidth <= innerWidth")
    page.fill("#tenant", "nobody")
    page.click("text=Show >> nth=0")
    expect(page.locator("#trust-chart")).to_have_text("None so far.")
    expect(page.locator("#rates-chart")).to_have_text("None so far.")
    assert tab.problems == []


def test_nothing_is_asked_of_anybody_else_and_nothing_breaks_the_policy(tab: Tab) -> None:
    page = tab.open()
    hosts = {urlsplit(url).netloc for url in tab.requests}
    assert hosts == {urlsplit(tab.base).netloc}
    policy = page.request.get(tab.base + "/").headers["content-security-policy"]
    assert "unsafe" not in policy and "default-src 'none'" in policy and "frame-ancestors 'none'" in policy
    page.evaluate("document.body.insertAdjacentHTML('beforeend', '<script>window.ran = 1</script><p id=styled style=\"color: red\">x</p>')")
    assert page.evaluate("window.ran") is None
    assert any("style" in problem for problem in tab.problems)  # the policy refused what was just put in, and nothing before it
    assert len(tab.problems) == 1, tab.problems


def test_names_from_events_are_text_wherever_they_are_shown(tab: Tab) -> None:
    page = tab.open("/#tenant=evil")
    expect(page.locator("#alerts-open")).to_contain_text(HOSTILE)
    for part in ("alerts", "trust", "drift", "goals", "costs", "learning", "metrics"):
        assert HOSTILE in page.locator(f"#{part}").inner_text().replace("\n", ""), part
    assert page.locator("main img").count() == 0
    assert page.title() == "pulsefold"
    assert tab.problems == []


def test_what_is_recorded_shows_without_a_reload_and_an_alert_is_said_aloud(tab: Tab, broker: EmbeddedBroker) -> None:
    page = tab.open("/#tenant=live")
    expect(page.locator("#trust tbody")).to_contain_text("No observations yet")
    with publisher(broker, "live") as to:
        sample(to, "newcomer")
    expect(page.locator("#trust tbody")).to_contain_text("newcomer")
    expect(page.locator("#costs tbody").first).to_contain_text("$6.25")
    expect(page.locator("#news")).to_have_text(re.compile(r"(shutdown|critical|warning|info): \S"))
    expect(page.locator("#alerts-open li").first).to_contain_text("shutdown")
    assert tab.problems == []


def test_a_tenant_without_events_is_told_what_would_fill_each_part(tab: Tab) -> None:
    page = tab.open("/#tenant=nobody")
    for part, words in (
        ("alerts", "nothing needs you now"),
        ("trust", "trust.observed"),
        ("drift", "forecast.issued"),
        ("goals", "goal.created"),
        ("learning", "learning.recorded"),
        ("metrics", "metric.recorded"),
    ):
        expect(page.locator(f"#{part}")).to_contain_text(words)
    expect(page.locator("#costs")).to_contain_text("$0.00 in 0 events")
    assert tab.problems == []


def test_show_more_shows_more(tab: Tab, broker: EmbeddedBroker) -> None:
    with publisher(broker, "many") as to:
        to.observe_many([events.Observation(kind="agent", id=f"agent-{n:03}", success=True) for n in range(50)])
    page = tab.open("/#tenant=many")
    table = page.locator("#trust tbody tr")
    expect(table).to_have_count(12)
    for expected in (32, 50):
        page.click("[data-more=trust]")
        expect(table).to_have_count(expected)
    expect(page.locator("[data-more=trust]")).to_be_hidden()


@pytest.mark.parametrize("path", ["/", "/#tenant=evil", "/#tenant=nobody"])
@pytest.mark.parametrize("tab", [{}, PHONE, {"width": 320, "height": 640}, {**PHONE, "scheme": "dark"}, {"scheme": "dark"}], indirect=True, ids=str)
def test_everything_fits_can_be_read_and_is_named_for_screen_readers(tab: Tab, path: str) -> None:
    page = tab.open(path)
    assert page.evaluate("document.documentElement.scrollWidth <= innerWidth")
    assert page.evaluate(f"({SCRIPT})().unnamed()") == []
    assert page.evaluate(f"({SCRIPT})().faint()") == []
    assert page.evaluate(f"({SCRIPT})().small(24)") == []
    assert page.evaluate(f"({SCRIPT})().stuck()") == []


def test_the_page_is_used_by_keyboard_alone(tab: Tab) -> None:
    page = tab.open()
    page.keyboard.press("Tab")
    assert page.evaluate("document.activeElement.textContent") == "Skip to the figures"
    page.keyboard.press("Enter")
    assert page.evaluate("document.activeElement.id") == "main"
    seen = []
    for _ in range(60):
        page.keyboard.press("Tab")
        found = page.evaluate("(() => { const e = document.activeElement; return [e.id || e.textContent, getComputedStyle(e).outlineStyle] })()")
        if found[0] in ("", None) or page.evaluate("document.activeElement === document.body"):
            break
        assert found[1] != "none", f"the focus on {found[0]!r} cannot be seen"
        seen.append(found[0])
    assert {"trust-order", "metric", "window"} <= set(seen)
    page.focus("#open-token")
    page.keyboard.press("Enter")
    assert page.evaluate("document.activeElement.id") == "token"
    page.keyboard.press("Escape")
    expect(page.locator("#ask")).to_be_hidden()
    assert page.evaluate("document.activeElement.id") == "open-token"


def test_a_worker_that_restores_is_said_to(tab: Tab) -> None:
    status = {"tenant": "default", "ready": False, "restored": 1500, "to_restore": 6000, "absorbed": 0, "lag": 0, "alert_messages": 0}
    tab.page.route("**/status/stream", lambda route: route.fulfill(body=f"event: status\ndata: {json.dumps(status)}\n\n", content_type="text/event-stream"))
    tab.page.add_init_script(  # the stubbed stream ends at once, so what the page said has to be noted as it says it
        "addEventListener('DOMContentLoaded', () => { window.said = []; new MutationObserver(() => said.push(document.getElementById('banner').textContent,"
        " document.getElementById('state').textContent)).observe(document.getElementById('banner'), { childList: true, characterData: true, subtree: true }) })"
    )
    page = tab.open(state="lost")
    said = page.evaluate("said")
    assert any("restoring its tables: 1,500 of 6,000 rows" in text for text in said) and "Restoring" in said
    assert page.locator("#banner").get_attribute("role") == "alert"


def test_a_part_that_fails_says_so_and_the_others_stand(tab: Tab) -> None:
    body = json.dumps({"status": 500, "detail": "no such luck"})
    tab.page.route("**/learning/goals*", lambda route: route.fulfill(status=500, body=body, content_type="application/problem+json"))
    page = tab.open()
    expect(page.locator("#goals .failed")).to_have_text("This part cannot be shown: no such luck")
    expect(page.locator("#trust tbody")).to_contain_text("m1")
    expect(page.locator(".failed")).to_have_count(1)


def test_the_api_page_fits_a_phone_and_lists_every_view(tab: Tab) -> None:
    tab.page.set_viewport_size({"width": 390, "height": 844})
    page = tab.open("/docs", state=None)
    assert page.evaluate("document.documentElement.scrollWidth <= innerWidth")
    api = page.request.get(tab.base + "/openapi.json").json()
    shown = page.inner_text("body")
    assert [path for path in api["paths"] if path not in shown] == []
    assert tab.problems == []


def test_a_lost_connection_is_said_and_comes_back(chromium: Browser, tmp_path: Path) -> None:
    with EmbeddedBroker(partitions=PARTITIONS, prefix="pulsefold.") as broker:
        worker = WorkerProcess(broker.bootstrap, tmp_path, partitions=PARTITIONS).start()
        context = chromium.new_context()
        try:
            with publisher(broker) as to:
                to.observe("model", "before", True)
            tab = Tab(context, f"http://127.0.0.1:{worker.port}")
            page = tab.open()
            expect(page.locator("#trust tbody")).to_contain_text("before")
            worker.kill()
            expect(page.locator("#state")).to_have_text("Connection lost")
            expect(page.locator("#banner")).to_contain_text("tries again by itself")
            assert page.title().startswith("Connection lost")
            expect(page.locator("#trust tbody")).to_contain_text("before")  # what was known stays, marked as old
            with publisher(broker) as to:
                to.observe("model", "meanwhile", True)
            worker.start()
            expect(page.locator("#state")).to_have_text("Live", timeout=20_000)
            expect(page.locator("#trust tbody")).to_contain_text("meanwhile", timeout=20_000)
            expect(page.locator("#banner")).to_be_hidden()
            worker.signal(19)  # SIGSTOP: the connection stays open and nothing comes
            expect(page.locator("#state")).to_have_text("Connection lost", timeout=30_000)
            worker.signal(18)
            expect(page.locator("#state")).to_have_text("Live", timeout=30_000)
        finally:
            context.close()
            worker.stop()


def test_a_token_is_asked_for_kept_in_the_tab_only_and_shows_its_tenant_alone(chromium: Browser, tmp_path: Path) -> None:
    tokens = {"of-acme": {"tenant": "acme", "scopes": ["read"]}, "of-all": {"tenant": "*", "scopes": ["read"]}}
    with EmbeddedBroker(partitions=PARTITIONS, prefix="pulsefold.") as broker:
        worker = WorkerProcess(broker.bootstrap, tmp_path, environment={"PULSEFOLD_TOKENS": json.dumps(tokens)}, partitions=PARTITIONS).start()
        context = chromium.new_context()
        try:
            for tenant in ("acme", "other"):
                with publisher(broker, tenant) as to:
                    to.observe("model", f"{tenant}-model", True)
            tab = Tab(context, f"http://127.0.0.1:{worker.port}")
            page = tab.open(state="locked")
            expect(page.locator("#ask")).to_be_visible()
            assert "-model" not in page.content()
            page.fill("#token", "guessed")
            page.keyboard.press("Enter")
            expect(page.locator("#ask-error")).to_contain_text("not known or has expired")
            page.fill("#token", "of-acme")
            page.keyboard.press("Enter")
            expect(page.locator("#trust tbody")).to_contain_text("acme-model")
            expect(page.locator("#facts")).to_contain_text("tenant acme")
            expect(page.locator("#worker")).to_contain_text("Rows of tenant acme")
            expect(page.locator(".failed")).to_have_count(0)
            assert "other-model" not in page.content()
            assert "of-acme" not in page.url + page.content()
            assert page.evaluate("[localStorage.length, document.cookie]") == [0, ""]
            page.reload()
            expect(page.locator("#trust tbody")).to_contain_text("acme-model")
            page.fill("#tenant", "other")
            page.click("text=Show >> nth=0")
            expect(page.locator("#ask-error")).to_contain_text("belongs to another tenant")
            assert "acme-model" not in page.content()
            page.fill("#token", "of-all")
            page.fill("#ask-tenant", "")
            page.click("text=Use it")
            expect(page.locator("#ask-error")).to_contain_text("must name the tenant")
            page.fill("#ask-tenant", "other")
            page.click("text=Use it")
            expect(page.locator("#trust tbody")).to_contain_text("other-model")
            page.click("#open-token")
            page.click("#forget")
            expect(page.locator("#state")).to_have_text("Needs a token")
            assert "other-model" not in page.content()
            assert page.evaluate("sessionStorage.length") == 0
            assert [problem for problem in tab.problems if "status of 4" not in problem] == []  # the browser itself tells refused requests
        finally:
            context.close()
            worker.stop()
