"""Asking a worker: every view as a method, for programs and notebooks.

    from pulsefold import Client
    client = Client("http://127.0.0.1:6066")
    client.trust("model", "m1")["trust"]
    client.metrics(types=["loss"], runs=["r1"]).to_dataframe()

The rules this file keeps: an answer is the worker's JSON as it came, with what every answer has beside it as attributes; what
cannot be had raises, with the worker's own sentence.
"""

from __future__ import annotations

import asyncio
import http.client
import json
import os
import ssl
import threading
import time
import urllib.parse
from collections.abc import AsyncIterator, Awaitable, Iterable, Iterator, Mapping, Sequence
from datetime import UTC, date, datetime
from types import TracebackType
from typing import TYPE_CHECKING, Any, Generic, Literal, TypeVar

from .errors import ConfigError, PulsefoldError

if TYPE_CHECKING:
    import pandas

R = TypeVar("R")
Time = str | date | datetime
"""RFC 3339 text or a datetime with an offset; a date (or its text) is a UTC day."""
Names = str | Sequence[str]
JSON, PAGE = "application/json", 10_000
AGAIN_S = 0.5
"""Seconds between a 503 of the past and the next question, which goes on where that one ended."""
BESIDE = ("as_of", "lag", "ready")
"""What every answer has beside what was asked for."""


class NotAnswered(PulsefoldError):
    """A worker's answer that is an error.

    Attributes:
        status: HTTP status; 0 where nobody answers.
        detail: the worker's own sentence.
        parameter: the one to blame, if one is.
    """

    def __init__(self, text: str, status: int, parameter: str | None = None, body: Mapping[str, Any] | None = None, detail: str = "") -> None:
        super().__init__(text)
        self.status = status
        self.parameter = parameter
        self.body = dict(body or {})
        self.detail = detail


class NotKnown(NotAnswered):
    """404: nobody recorded this."""


class Answer(dict[str, Any]):
    """The JSON of a view, as it came.

    Example:
        >>> answer = Answer({"metrics": [{"id": "a"}], "cursor": None, "lag": 0, "as_of": "2026-03-02T00:00:00.000000Z"})
        >>> answer["metrics"][0]["id"], answer.rows, answer.as_of.year, answer.lag
        ('a', [{'id': 'a'}], 2026, 0)
    """

    @property
    def as_of(self) -> datetime | None:
        """Event time of the newest event absorbed, None where the view has none."""
        text = self.get("as_of")
        return None if text is None else datetime.fromisoformat(text)

    @property
    def lag(self) -> int | None:
        """Records not absorbed yet, where known."""
        return self.get("lag")

    @property
    def ready(self) -> bool:
        """False while the worker is still restoring its tables: figures are then too low."""
        return bool(self.get("ready", True))

    @property
    def cursor(self) -> str | None:
        """Of the next page, None after the last."""
        return self.get("cursor")

    @property
    def rows(self) -> list[dict[str, Any]]:
        """The list inside the answer, or its records by name with their names as `id`; without either the answer itself is the row."""
        for value in self.values():
            if isinstance(value, list) and all(isinstance(one, dict) for one in value):
                return list(value)
        named = {name: value for name, value in self.items() if name not in BESIDE}
        if named and all(isinstance(value, dict) for value in named.values()):
            named |= named.pop("named", {})
            return [{"id": name, **value} for name, value in named.items()]
        return [dict(self)]

    def to_dataframe(self) -> pandas.DataFrame:
        """The rows as a data frame, times as UTC timestamps; needs pandas (``pip install 'pulsefold[dataframe]'``)."""
        return dataframe(self.rows)


TIMES = ("time", "timestamp", "start", "end", "as_of", "first_seen", "last_seen", "last_update", "created_at")


def dataframe(rows: Sequence[Mapping[str, Any]], columns: Sequence[str] | None = None) -> pandas.DataFrame:
    """Rows as a data frame.

    Args:
        columns: their names, in order; without them those of the rows.

    Raises:
        PulsefoldError: pandas is not installed.
    """
    try:
        import pandas
    except ImportError:
        raise PulsefoldError("data frames need pandas; install with: pip install 'pulsefold[dataframe]'") from None
    frame = pandas.DataFrame(list(rows), columns=None if columns is None else list(columns))
    for name in TIMES:
        if name in frame.columns:
            frame[name] = pandas.to_datetime(frame[name], utc=True, format="ISO8601")
    return frame


METRIC_COLUMNS = (
    "id", "time", "metric_type", "model", "run", "value", "values", "tags", "epoch", "step", "cost_micro_usd", "api_calls", "token_usage",
)  # fmt: skip
"""Columns of a table of metrics."""


def text_of(value: Any) -> str | list[str] | None:
    """A parameter as it goes into a query.

    Example:
        >>> text_of(True), text_of(["a", "b,c"]), text_of(date(2026, 3, 2)), text_of({"lab": "b"}), text_of(None)
        ('true', ['a', 'b,c'], '2026-03-02', '{"lab": "b"}', None)
    """
    if value is None:
        return None
    if isinstance(value, bool):
        return "true" if value else "false"
    if isinstance(value, datetime):
        if value.tzinfo is None:
            raise ConfigError("time", f"{value.isoformat()} has no offset; give it one, such as datetime.now(UTC)")
        return value.astimezone(UTC).isoformat()
    if isinstance(value, date):
        return value.isoformat()
    if isinstance(value, Mapping):
        return json.dumps(value)
    if isinstance(value, (list, tuple, set, frozenset)):
        return [str(one) for one in value]
    return str(value)


def path_of(*parts: str) -> str:
    """A path of names, percent-encoded.

    Example:
        >>> path_of("trust", "model", "a/b c")
        '/trust/model/a%2Fb%20c'
    """
    return "".join("/" + urllib.parse.quote(part, safe="") for part in parts)


class Views(Generic[R]):
    """Every view as a method. Parameters are the views' own (``/docs`` of a worker); None = not given.

    Names of times: `since` is inclusive, `until` exclusive; a date as `until` takes in that whole UTC day.
    """

    def get(self, path: str, **params: Any) -> R:
        """Any view by its path under ``/api/v1``, such as ``/trust/report``."""
        raise NotImplementedError

    # ---- trust

    def trust(self, kind: str, id: str, *, z: float | None = None, at: Time | None = None) -> R:
        """Trust of one key. Raises `NotKnown` where nothing was observed."""
        return self.get(path_of("trust", kind, id), z=z, at=at)

    def trusts(
        self, kind: str | None = None, ids: Names | None = None, *, z: float | None = None, at: Time | None = None,
        sort: Literal["trust", "effective_n", "last_update", "id"] | None = None, order: Literal["asc", "desc"] | None = None,
        limit: int | None = None, cursor: str | None = None, distribution: bool | None = None,
    ) -> R:  # fmt: skip
        """Trust of many keys; those asked for and not known come with ``known: false``.

        With `ids` the answer has each under its id; those called ``as_of``, ``lag``, ``ready``, ``cursor`` or ``named``, as answers' own members are, in its
        member ``named``.
        """
        return self.get(
            "/trust", kind=kind, id=[ids] if isinstance(ids, str) else ids, z=z, at=at, sort=sort, order=order, limit=limit, cursor=cursor,
            distribution=distribution,
        )  # fmt: skip

    def trust_history(self, kind: str, id: str, *, limit: int | None = None) -> R:
        """Means over time of one key."""
        return self.get(path_of("trust", kind, id, "history"), limit=limit)

    def trust_report(self, kind: str | None = None, *, min_sample: float | None = None, at: Time | None = None, limit: int | None = None) -> R:
        """Who is trusted, who is not, and how surely."""
        return self.get("/trust/report", kind=kind, min_sample=min_sample, at=at, limit=limit)

    def trust_rules(self) -> R:
        """Which events give trust by rule."""
        return self.get("/trust/rules")

    def trust_export(self, kind: str | None = None) -> R:
        """Every key with its history, as ``pulsefold export trust`` writes it."""
        return self.get("/trust/export", kind=kind)

    # ---- variables and forecasts

    def variables(
        self, *, kind: str | None = None, registered: bool | None = None, min_count: int | None = None, exact: bool | None = None,
        limit: int | None = None, cursor: str | None = None,
    ) -> R:  # fmt: skip
        """Scores of the variables."""
        return self.get("/variables", kind=kind, registered=registered, min_count=min_count, exact=exact, limit=limit, cursor=cursor)

    def all_variables(self, *, exact: bool | None = None) -> R:
        """All scores of one moment, by name."""
        return self.get("/exports/variables", exact=exact)

    def variable(self, name: str, *, exact: bool | None = None) -> R:
        """One variable's score, registration and values."""
        return self.get(path_of("variables", name), exact=exact)

    def rank(self, key: str | None = None, *, order: Literal["asc", "desc"] | None = None, limit: int | None = None, min_count: int | None = None) -> R:
        """Variables by a score."""
        return self.get("/variables/rank", key=key, order=order, limit=limit, min_count=min_count)

    def drift(
        self, *, threshold: float | None = None, min_count: int | None = None, recent: bool | None = None,
        limit: int | None = None, cursor: str | None = None,
    ) -> R:  # fmt: skip
        """Variables that have turned bad: over their lives, or recently. Every page names all of them."""
        return self.get("/variables/drift", threshold=threshold, min_count=min_count, recent=recent, limit=limit, cursor=cursor)

    def volatility(self, names: Names | None = None, *, threshold: float | None = None, limit: int | None = None, cursor: str | None = None) -> R:
        """How erratic variables and tags are; the variables in pages, unless they are named."""
        return self.get("/variables/volatility", names=names, threshold=threshold, limit=limit, cursor=cursor)

    def influence(self, name: str) -> R:
        """How a variable's value goes with the outcomes of forecasts."""
        return self.get(path_of("variables", name, "influence"))

    def calibration(self, model: str | None = None) -> R:
        """How right the forecasts' probabilities were."""
        return self.get("/forecasts/calibration", model=model)

    def contributions(self, *, since: Time | None = None, until: Time | None = None, limit: int | None = None, cursor: str | None = None) -> R:
        """What each forecast contributed to each variable, in the order of the log."""
        return self.get("/exports/contributions", since=since, until=until, limit=limit, cursor=cursor)

    def learning_log(self, *, since: Time | None = None, until: Time | None = None, limit: int | None = None, cursor: str | None = None) -> R:
        """Performance updates of variables, in the order of the log."""
        return self.get("/exports/learning-log", since=since, until=until, limit=limit, cursor=cursor)

    def event_log(self, topics: Names | None = None, *, limit: int | None = None, cursor: str | None = None) -> R:
        """Every event as it came, with its place on the log and its Kafka time, in the order of the log."""
        return self.get("/exports/log", topics=topics, limit=limit, cursor=cursor)

    # ---- metrics and costs

    def metrics(
        self, *, types: Names | None = None, models: Names | None = None, tags: Names | None = None, runs: Names | None = None, ids: Names | None = None,
        since: Time | None = None, until: Time | None = None, filter: Mapping[str, Any] | str | None = None, limit: int | None = None,
        cursor: str | None = None,
    ) -> R:  # fmt: skip
        """Metrics as they were recorded, newest first; `filter` is equality on fields of their data."""
        return self.get(
            "/metrics", types=types, models=models, tags=tags, runs=runs, ids=ids, since=since, until=until, filter=filter, limit=limit, cursor=cursor
        )

    def metric(self, id: str) -> R:
        """One metric by its id."""
        return self.get(path_of("metrics", id))

    def recent_metrics(self, types: Names | None = None, *, limit: int | None = None) -> R:
        """The newest metrics."""
        return self.get("/metrics/recent", types=types, limit=limit)

    def metric_summary(self) -> R:
        """Counts by type, model, tag and day."""
        return self.get("/metrics/summary")

    def metric_series(
        self, *, metric: str | None = None, model: str | None = None, run: str | None = None, limit: int | None = None, cursor: str | None = None
    ) -> R:
        """Which series there are."""
        return self.get("/metrics/series", metric=metric, model=model, run=run, limit=limit, cursor=cursor)

    def metrics_watched(
        self, *, metric: str | None = None, model: str | None = None, run: str | None = None, limit: int | None = None, cursor: str | None = None
    ) -> R:
        """How the alert rules see each series: levels, outliers, baseline, last values."""
        return self.get("/metrics/watched", metric=metric, model=model, run=run, limit=limit, cursor=cursor)

    def aggregate(
        self, metric: str, *, model: str | None = None, run: str | None = None, tag: str | None = None, window: str | None = None, slide: str | None = None,
        since: Time | None = None, until: Time | None = None,
    ) -> R:  # fmt: skip
        """A metric summed up by windows such as ``1h``."""
        return self.get("/metrics/aggregate", metric=metric, model=model, run=run, tag=tag, window=window, slide=slide, since=since, until=until)

    def costs(self, scope: str | None = None, *, by: str | None = None, since: Time | None = None, until: Time | None = None) -> R:
        """What a scope (``tenant``, ``model:NAME``, …) has cost."""
        return self.get("/costs", scope=scope, by=by, since=since, until=until)

    def cost_events(
        self, scope: str | None = None, *, since: Time | None = None, until: Time | None = None, limit: int | None = None, cursor: str | None = None
    ) -> R:
        """Costs and refunds as they were told, newest first."""
        return self.get("/costs/events", scope=scope, since=since, until=until, limit=limit, cursor=cursor)

    def cost_status(self, scope: str | None = None, *, at: Time | None = None) -> R:
        """Where the budgets stand."""
        return self.get("/costs/status", scope=scope, at=at)

    def cost_check(self, amount_usd: str | int | float, *, calls: int | None = None, scope: str | None = None, at: Time | None = None) -> R:
        """Whether an amount (USD; as text it is read exactly) would still fit."""
        return self.get("/costs/check", amount=amount_usd, calls=calls, scope=scope, at=at)

    def cost_forecast(self, *, days: int | None = None, scope: str | None = None, at: Time | None = None) -> R:
        """What costs will be if they go on."""
        return self.get("/costs/forecast", days=days, scope=scope, at=at)

    def budgets(self, scope: str | None = None) -> R:
        """The budgets in force."""
        return self.get("/budgets", scope=scope)

    # ---- agents, tasks, judgments

    def performance(self, *, agent: str | None = None, task_type: str | None = None, model_version: str | None = None) -> R:
        """Statistics of executions."""
        return self.get("/performance/stats", agent=agent, task_type=task_type, model_version=model_version)

    def performance_trend(
        self, metric: str, *, agent: str | None = None, task_type: str | None = None, window: str | None = None, points: int | None = None,
        since: Time | None = None, until: Time | None = None,
    ) -> R:  # fmt: skip
        """Whether a figure gets better or worse."""
        params = {"agent": agent, "task_type": task_type, "window": window, "points": points, "since": since, "until": until}
        return self.get("/performance/trends", metric=metric, **params)

    def training_data(
        self, *, since: Time | None = None, until: Time | None = None, types: Names | None = None, order: Literal["time", "log"] | None = None,
        anonymise: bool | None = None, limit: int | None = None, cursor: str | None = None,
    ) -> R:  # fmt: skip
        """Events of agents, tasks and judgments as they came; with ``order="log"`` the cursor can be kept and asked again for ever."""
        params = {"since": since, "until": until, "types": types, "order": order, "anonymise": anonymise, "limit": limit, "cursor": cursor}
        return self.get("/performance/training-data", **params)

    def agents(
        self, *, status: str | None = None, capability: str | None = None, task_type: str | None = None, name: str | None = None, sort: str | None = None,
        limit: int | None = None, cursor: str | None = None,
    ) -> R:  # fmt: skip
        """The agents, sorted by success_rate, quality, latency or executions."""
        return self.get("/agents", status=status, capability=capability, task_type=task_type, name=name, sort=sort, limit=limit, cursor=cursor)

    def agent(self, id: str) -> R:
        """One agent."""
        return self.get(path_of("agents", id))

    def judgments(self, *, judge: str | None = None, agent: str | None = None, task: str | None = None) -> R:
        """Judgments summed up."""
        return self.get("/judgments/summary", judge=judge, agent=agent, task=task)

    def predict(self, *, agent: str | None = None, agents: Names | None = None, task_type: str | None = None) -> R:
        """Probability that the next task succeeds."""
        return self.get("/predict", agent=agent, agents=agents, task_type=task_type)

    # ---- learning and goals

    def learning(self, *, task: str | None = None, run: str | None = None) -> R:
        """Figures of learning."""
        return self.get("/learning/metrics", task=task, run=run)

    def learning_report(self, *, task: str | None = None, limit: int | None = None) -> R:
        """The report."""
        return self.get("/learning/report", task=task, limit=limit)

    def learning_streams(self, *, task: str | None = None, run: str | None = None, limit: int | None = None, cursor: str | None = None) -> R:
        """Which tasks and runs there are."""
        return self.get("/learning/streams", task=task, run=run, limit=limit, cursor=cursor)

    def learning_curve(self, task: str, *, run: str | None = None, window: int | None = None, since: Time | None = None, fields: Names | None = None) -> R:
        """The last points of a curve."""
        return self.get("/learning/curve", task=task, run=run, window=window, since=since, fields=fields)

    def learning_panel(
        self, panel: Literal["curves", "scores", "rates", "goals"], *, task: str | None = None, run: str | None = None, window: int | None = None,
        since: Time | None = None, limit: int | None = None, cursor: str | None = None,
    ) -> R:  # fmt: skip
        """What a picture of learning is drawn of, as rows. As CSV: `Client.raw` of this path with ``text/csv``."""
        return self.get(path_of("learning", "panels", panel), task=task, run=run, window=window, since=since, limit=limit, cursor=cursor)

    def learning_trend(self, *, task: str | None = None, tasks: Names | None = None, run: str | None = None, window: int | None = None) -> R:
        """Where it goes."""
        return self.get("/learning/trend", task=task, tasks=tasks, run=run, window=window)

    def convergence(self, *, task: str | None = None, run: str | None = None, at: Time | None = None) -> R:
        """Whether it has converged."""
        return self.get("/learning/convergence", task=task, run=run, at=at)

    def goals(
        self, *, task_type: str | None = None, state: Literal["active", "completed", "regressed"] | None = None, history: bool | None = None,
        limit: int | None = None, cursor: str | None = None,
    ) -> R:  # fmt: skip
        """The goals."""
        return self.get("/learning/goals", task_type=task_type, state=state, history=history, limit=limit, cursor=cursor)

    def goal(self, id: str, *, task_type: str | None = None, history: bool | None = None) -> R:
        """One goal."""
        return self.get(path_of("goals", id), task_type=task_type, history=history)

    # ---- alerts, the service, SQL

    def alerts(
        self, *, state: Literal["open", "all"] | None = None, rule: str | None = None, since: Time | None = None, limit: int | None = None,
        cursor: str | None = None,
    ) -> R:  # fmt: skip
        """Alerts by their newest message. To get them as they come: `AlertSubscriber`."""
        return self.get("/alerts", state=state, rule=rule, since=since, limit=limit, cursor=cursor)

    def status(self) -> R:
        """Counts, lag, tables, archive and settings of the worker."""
        return self.get("/status")

    def sql(self, query: str, *, limit: int | None = None) -> R:
        """One SELECT over the view ``events`` of the tenant's own events."""
        return self.get("/sql", query=query, limit=limit)


class Client(Views[Answer]):
    """A worker, asked and waited for. May be used by several threads.

    Args:
        url: of any worker; default: the environment's PULSEFOLD_URL, else ``http://127.0.0.1:6066``.
        token: default: the environment's PULSEFOLD_TOKEN.
        tenant: whose data, where the token does not say.
        timeout_s: for each answer.
        as_of: a moment in the past: every folded view is answered as it stood then (needs the archive; docs/past.md). The first answer
            of a moment may take long: where the worker says 503 it is asked again, as long as `timeout_s` is not over. `NotAnswered` with
            status 503 after that: the next question goes on.

    A worker that asks for a certificate (`web_tls_client_ca`) is shown the one of the PEM file that PULSEFOLD_CLIENT_CERT names, with its key.
    """

    def __init__(
        self, url: str | None = None, *, token: str | None = None, tenant: str | None = None, timeout_s: float = 30.0, as_of: Time | None = None
    ) -> None:
        self.url = (url or os.environ.get("PULSEFOLD_URL") or "http://127.0.0.1:6066").rstrip("/")
        parts = urllib.parse.urlsplit(self.url)
        try:
            usable = parts.scheme in ("http", "https") and parts.hostname and parts.port != 0
        except ValueError:  # the port is none
            usable = False
        if not usable:
            raise ConfigError("url", f"expected http://HOST:PORT, got {self.url!r}")
        self._parts = parts
        self.token = token if token is not None else os.environ.get("PULSEFOLD_TOKEN")
        self.tenant = tenant
        self.timeout_s = timeout_s
        self.as_of = as_of
        self._own = threading.local()

    def __enter__(self) -> Client:
        return self

    def __exit__(self, kind: type[BaseException] | None, exc: BaseException | None, traceback: TracebackType | None) -> None:
        self.close()

    def close(self) -> None:
        """Close this thread's connection."""
        connection = getattr(self._own, "connection", None)
        if connection is not None:
            connection.close()
            self._own.connection = None

    def at(self, moment: Time) -> Client:
        """The same worker, each folded view as it stood at a moment."""
        return Client(self.url, token=self.token, tenant=self.tenant, timeout_s=self.timeout_s, as_of=moment)

    def get(self, path: str, **params: Any) -> Answer:
        """Any view by its path under ``/api/v1``.

        Raises:
            NotKnown: 404.
            NotAnswered: the answer is another error, or there is none.
        """
        raw, _ = self.raw(path, JSON, **params)
        body = json.loads(raw)
        return Answer(body if isinstance(body, dict) else {"rows": body})

    def raw(self, path: str, accept: str, **params: Any) -> tuple[bytes, dict[str, str]]:
        """A view in another format: body and headers (lower case; ``pulsefold-cursor`` of the next page).

        Args:
            accept: such as ``text/csv``, ``application/vnd.apache.parquet``.
        """
        return self._asked(self._target(path, params), accept, again=self.as_of is not None)

    def of(self, target: str, *, again: bool = False) -> bytes:
        """What a worker answers at a path with its query, both percent-encoded, as they stand after the client's URL.

        Args:
            again: ask again where it says 503, as for a moment in the past.
        """
        return self._asked(self._parts.path + target, JSON, again=again)[0]

    def post_events(self, events: Iterable[Mapping[str, Any]]) -> Answer:
        """Publish CloudEvents over HTTP; answered after the broker has acknowledged; their ids make it safe to send them again."""
        body = json.dumps(list(events)).encode()
        raw, _ = self._request("POST", "/api/v1/events", {"Accept": JSON, "Content-Type": "application/cloudevents-batch+json"}, body)
        return Answer(json.loads(raw))

    def every(self, path: str, **params: Any) -> Iterator[dict[str, Any]]:
        """Every row of a list, page by page."""
        cursor = params.pop("cursor", None)
        params = {"limit": 1000, **params}
        while True:
            page = self.get(path, **params, cursor=cursor)
            yield from page.rows
            if page.cursor is None or (page.cursor == cursor) or (params.get("order") == "log" and not page.rows):
                return
            cursor = page.cursor

    def metrics_dataframe(self, **params: Any) -> pandas.DataFrame:
        """Every metric that matches, one row each; parameters as of `metrics`."""
        rows = list(self.every("/metrics", **{"limit": PAGE, **params}))
        return dataframe([{name: row.get(name) for name in METRIC_COLUMNS} for row in rows], METRIC_COLUMNS)

    def _target(self, path: str, params: Mapping[str, Any]) -> str:
        path = path if path.startswith("/") else "/" + path
        pairs: list[tuple[str, str]] = []
        if self.as_of is not None:
            params = {**params, "as_of": self.as_of}
        for name, value in params.items():
            text = text_of(value)
            if isinstance(text, list):
                pairs += [(name, one) for one in text]
            elif text is not None:
                pairs.append((name, text))
        prefix = "" if path.startswith(("/api/", "/healthz", "/readyz", "/openapi.json")) else "/api/v1"
        return self._parts.path + prefix + path + ("?" + urllib.parse.urlencode(pairs) if pairs else "")

    def _asked(self, target: str, accept: str, *, again: bool) -> tuple[bytes, dict[str, str]]:
        deadline = time.monotonic() + self.timeout_s
        while True:
            try:
                return self._request("GET", target, {"Accept": accept}, None)
            except NotAnswered as failed:
                if not again or failed.status != 503 or time.monotonic() + AGAIN_S >= deadline:
                    raise
            time.sleep(AGAIN_S)

    def _exchange(self, method: str, target: str, headers: Mapping[str, str], body: bytes | None) -> tuple[http.client.HTTPResponse, bytes]:
        connection = self._connection()
        connection.request(method, target, body, headers)
        response = connection.getresponse()
        return response, response.read()

    def _request(self, method: str, target: str, headers: Mapping[str, str], body: bytes | None) -> tuple[bytes, dict[str, str]]:
        sent = dict(headers)
        if self.token:
            sent["Authorization"] = f"Bearer {self.token}"
        if self.tenant:
            sent["X-Tenant"] = self.tenant
        try:
            try:
                response, raw = self._exchange(method, target, sent, body)
            except (http.client.RemoteDisconnected, ConnectionResetError, BrokenPipeError):
                self.close()  # the worker closes connections that are idle
                response, raw = self._exchange(method, target, sent, body)
        except (OSError, http.client.HTTPException) as failed:
            self.close()
            raise NotAnswered(f"url: no worker answers at {self.url} ({failed})", 0) from None
        found = {name.lower(): value for name, value in response.getheaders()}
        if response.status >= 400:
            raise _error(target, response.status, response.reason, raw)
        return raw, found

    def _connection(self) -> http.client.HTTPConnection:
        connection: http.client.HTTPConnection | None = getattr(self._own, "connection", None)
        if connection is None:
            host, port = str(self._parts.hostname), self._parts.port
            if self._parts.scheme == "https":
                connection = http.client.HTTPSConnection(host, port, timeout=self.timeout_s, context=own_certificate())
            else:
                connection = http.client.HTTPConnection(host, port, timeout=self.timeout_s)
            self._own.connection = connection
        return connection


def own_certificate() -> ssl.SSLContext | None:
    """For a worker that asks its callers for a certificate; None = the default context.

    Raises:
        ConfigError: PULSEFOLD_CLIENT_CERT names no file with a certificate and its key.
    """
    file = os.environ.get("PULSEFOLD_CLIENT_CERT")
    if not file:
        return None
    from .settings import no_password  # which most clients do not need

    context = ssl.create_default_context()
    try:
        context.load_cert_chain(file, password=no_password)
    except (OSError, ssl.SSLError, ValueError) as bad:
        raise ConfigError("PULSEFOLD_CLIENT_CERT", f"{file} has no certificate and its key ({getattr(bad, 'strerror', None) or bad})") from None
    return context


def _error(target: str, status: int, reason: str, raw: bytes) -> NotAnswered:
    try:
        body = json.loads(raw)
        detail = str(body.get("detail", reason))
    except (ValueError, AttributeError):
        body, detail = {}, reason
    kind = NotKnown if status == 404 else NotAnswered
    return kind(f"{target.partition('?')[0]}: {status} {detail}", status, body.get("parameter"), body, detail)


class AsyncClient(Views[Awaitable[Answer]]):
    """A worker, asked from an event loop: `Client` with every method awaitable.

    Args:
        url, token, tenant, timeout_s, as_of: as of `Client`.
    """

    def __init__(
        self, url: str | None = None, *, token: str | None = None, tenant: str | None = None, timeout_s: float = 30.0, as_of: Time | None = None
    ) -> None:
        self._client = Client(url, token=token, tenant=tenant, timeout_s=timeout_s, as_of=as_of)

    async def __aenter__(self) -> AsyncClient:
        return self

    async def __aexit__(self, kind: type[BaseException] | None, exc: BaseException | None, traceback: TracebackType | None) -> None:
        await self.close()

    async def close(self) -> None:
        """Nothing is asked any more; connections end with the threads that hold them."""

    def at(self, moment: Time) -> AsyncClient:
        """The same worker, each folded view as it stood at a moment."""
        found = AsyncClient.__new__(AsyncClient)
        found._client = self._client.at(moment)
        return found

    async def get(self, path: str, **params: Any) -> Answer:
        """Any view by its path under ``/api/v1``."""
        return await asyncio.to_thread(self._client.get, path, **params)

    async def raw(self, path: str, accept: str, **params: Any) -> tuple[bytes, dict[str, str]]:
        """A view in another format: body and headers."""
        return await asyncio.to_thread(self._client.raw, path, accept, **params)

    async def post_events(self, events: Iterable[Mapping[str, Any]]) -> Answer:
        """Publish CloudEvents over HTTP."""
        return await asyncio.to_thread(self._client.post_events, list(events))

    async def every(self, path: str, **params: Any) -> AsyncIterator[dict[str, Any]]:
        """Every row of a list, page by page."""
        rows = self._client.every(path, **params)
        done = object()
        while (row := await asyncio.to_thread(next, rows, done)) is not done:
            yield row  # type: ignore[misc]  # a row, if it is not the end

    async def metrics_dataframe(self, **params: Any) -> pandas.DataFrame:
        """Every metric that matches, one row each."""
        return await asyncio.to_thread(self._client.metrics_dataframe, **params)
