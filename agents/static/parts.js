// The parts of the page: what each asks and how it draws the answer. `get` asks a view; nothing here knows of connections.
import { badge, bar, bytes, chart, count, fill, h, histogram, interval, missing, moment, named, percent, score, span, sparkline, swatch, usd, value } from "./draw.js";

const $ = (id) => document.getElementById(id);
const RANK = { shutdown: 4, critical: 3, warning: 2, info: 1 };
const STEP = 20;
const MOST_LINES = 6;
const SHOWN = matchMedia("(max-width: 34rem)").matches ? { alerts: 4, trust: 6, drift: 6, goals: 6 } : { alerts: 6, trust: 12, drift: 10, goals: 12 };
/** How many rows a part shows; "Show more" raises it. */
export const limits = { ...SHOWN };
export const showMore = (part) => { limits[part] += STEP; };
export const showAsFirst = () => Object.assign(limits, SHOWN);

const table = (part) => $(part).querySelector("table");
const note = (part, ...content) => $(part).querySelector("[data-note]").replaceChildren(...content);
const more = (part, left, text = "Show more") => { const button = document.querySelector(`[data-more="${part}"]`); button.hidden = !left; button.textContent = text; };
const query = (values) => new URLSearchParams(Object.entries(values).filter(([, v]) => v !== null && v !== undefined)).toString();
/** Put a picture of the width that there is into its place; `make` null = nothing to draw yet. */
const picture = (id, make, empty) => $(id).replaceChildren(make ? make(Math.max(240, $(id).clientWidth)) : h("p", { class: "empty" }, empty));
const tiles = {};

function tile(part, figure, words, tone) {
  tiles[part] = h("li", {}, h("a", { href: "#" + part, "data-tone": tone }, h("strong", {}, figure), h("span", { title: words }, words)));
  $("tiles").replaceChildren(...["alerts", "trust", "drift", "goals", "costs", "worker"].map((name) => tiles[name]).filter(Boolean));
}

// ---- alerts

function alertItem(alert) {
  const word = alert.open ? alert.severity : alert.notice ? "notice" : "resolved";
  const facts = [alert.rule, alert.subject, alert.reason].filter(Boolean).join(" · ");
  return h("li", {}, badge(word, alert.open ? alert.severity : alert.notice ? "info" : "ok"),
    h("div", {}, h("p", {}, alert.message), h("p", { class: "quiet" }, facts, " · ", moment(alert.time))));
}

const alerts = {
  async load(get) {
    const [open, all] = await Promise.all([get("/alerts?state=open&limit=1000"), get("/alerts?state=all&limit=200")]);
    return { open: open.alerts, past: all.alerts.filter((a) => !a.open).slice(0, 4) };
  },
  draw({ open, past }) {
    open.sort((a, b) => RANK[b.severity] - RANK[a.severity] || (a.time < b.time ? 1 : -1));
    const shown = open.slice(0, limits.alerts);
    $("alerts-open").replaceChildren(...shown.map(alertItem), ...(open.length ? [] : [h("li", { class: "empty" }, "No open alerts: nothing needs you now.")]));
    $("alerts-past").replaceChildren(...past.map(alertItem), ...(past.length ? [] : [h("li", { class: "empty" }, "None so far.")]));
    more("alerts", open.length - shown.length, `Show ${open.length - shown.length} more`);
    tile("alerts", count(open.length), open.length === 1 ? "open alert" : "open alerts", open.length ? open[0].severity : "ok");
  },
};

// ---- trust

const trust = {
  async load(get) {
    const [sort, order] = $("trust-order").value.split(" ");
    const [list, least] = await Promise.all([get("/trust?" + query({ sort, order, limit: limits.trust })), get("/trust?sort=trust&order=asc&limit=1&distribution=true")]);
    return { list, least: least.entries[0], spread: least.distribution };
  },
  draw({ list, least, spread }) {
    const keys = spread.reduce((sum, b) => sum + b.count, 0), most = spread.reduce((best, b) => (b.count > best.count ? b : best), spread[0]);
    picture("trust-chart", keys ? (width) => histogram(spread, `Trust of ${count(keys)} keys: most of them, ${count(most.count)}, from ${most.low} to ${most.high}`, width) : null, "None so far.");
    fill(table("trust"), list.entries.map((t) => {
      const [low, high] = t.beta_interval;
      return [[named(t.id)], [t.kind, "quiet"],
        [h("span", { class: "with-bar" }, interval(low, t.trust, high, t.trust < 0.4 ? "critical" : "ok"), score(t.trust)), "n"],
        [`${score(low)} – ${score(high)}`, "n"], [count(t.sample_size), "n"], [moment(t.last_update), "n roomy"]];
    }), "No observations yet. They come as trust.observed, or by rule from resolved forecasts, tasks and judgments.");
    more("trust", list.cursor);
    if (least) tile("trust", score(least.trust), `least trust: ${least.id}`, least.trust < 0.4 ? "critical" : null);
    else tile("trust", "–", "no trust observed yet");
  },
};

// ---- variables

const drift = {
  async load(get) {
    const [rank, drifting, calibration] = await Promise.all([
      get("/variables/rank?" + query({ key: "avg_fragility", limit: limits.drift + 1 })), get("/variables/drift?" + query({ limit: 1 })), get("/forecasts/calibration").catch(() => null)]);
    return { rank: rank.variables, drifting: drifting.flagged, calibration };
  },
  draw({ rank, drifting, calibration }) {
    const by = new Set(drifting);
    const shown = [...rank].sort((a, b) => by.has(b.name) - by.has(a.name)).slice(0, limits.drift);
    fill(table("drift"), shown.map((v) => [
      [h("div", {}, named(v.name), by.has(v.name) ? badge("drifting", "warning") : "")],
      [h("span", { class: "with-bar" }, bar(v.avg_fragility, by.has(v.name) ? "warning" : "ok"), score(v.avg_fragility)), "n"],
      [score(v.avg_confidence), "n"], [percent(missing(v.certified_ratio) ? null : v.certified_ratio * 100), "n roomy"], [score(v.volatility), "n roomy"], [count(v.count), "n"]]),
      "No forecasts yet. Each input of a forecast.issued event becomes a row here.");
    more("drift", rank.length > limits.drift);
    note("drift", "What goes into forecasts, most fragile first.",
      calibration && calibration.n ? ` ${count(calibration.resolved)} forecasts resolved, Brier score ${score(calibration.brier)}.` : "");
    tile("drift", count(drifting.length), drifting.length === 1 ? "variable drifts" : "variables drift", drifting.length ? "warning" : "ok");
  },
};

// ---- goals

function standing(goal) {
  if (goal.missed) return badge("deadline missed", "critical");
  if (goal.regressed) return badge("lost again", "warning");
  if (goal.completed) return h("span", { class: "standing" }, badge("reached", "ok"), " ", moment(goal.completed_at));
  if (goal.at_risk) return badge("at risk", "warning");
  if (goal.eta) return h("span", {}, "expected ", moment(goal.eta));
  return goal.deadline ? h("span", {}, "due ", moment(goal.deadline)) : "under way";
}

const goals = {
  load: (get) => get("/learning/goals?" + query({ limit: limits.goals })),
  draw(answer) {
    fill(table("goals"), answer.goals.map((g) => [
      [named(g.goal_id, g.description || g.task_type)],
      [h("span", { class: "with-bar" }, bar(missing(g.percentage) ? 0 : g.percentage / 100, g.missed ? "critical" : g.regressed || g.at_risk ? "warning" : "ok"), percent(g.percentage)), "n"],
      [value(g.current), "n"], [`${g.direction === "at_most" ? "≤" : "≥"} ${value(g.target)}`, "n"], standing(g)]),
      "No goals yet. A goal.created event sets one.");
    more("goals", answer.cursor);
    const lost = answer.goals.filter((g) => g.missed || g.regressed || g.at_risk).length;
    tile("goals", `${count(answer.completed_goals)} of ${count(answer.total_goals)}`, lost ? `goals reached, ${count(lost)} in trouble` : "goals reached", lost ? "warning" : null);
  },
};

// ---- costs

const PERIODS = { "cost.cumulative": "since its start", "cost.daily": "day", "cost.monthly": "month", "cost.total": "in all" };

const costs = {
  async load(get) {
    const [total, kept] = await Promise.all([get("/costs?by=model"), get("/budgets")]);
    const scopes = [...new Set(kept.budgets.map((b) => b.scope))].slice(0, 12);
    const scoped = await Promise.all(scopes.map((scope) => get("/costs/status?" + query({ scope })).catch(() => null)));
    return { total, scoped: scoped.filter(Boolean) };
  },
  draw({ total, scoped }) {
    const worst = scoped.flatMap((s) => s.budgets).sort((a, b) => (RANK[b.level] || 0) - (RANK[a.level] || 0))[0];
    note("costs", `${usd(total.total_usd)} in ${count(total.events)} events`, total.estimated_events ? `, ${usd(total.estimated_micro_usd / 1e6)} of it estimated` : "",
      total.refunds ? `, ${usd(total.refunded_micro_usd / 1e6)} refunded` : "", ".");
    const rows = scoped.flatMap((s) => s.budgets.map((b) => ({ scope: s.scope, ...b })));
    rows.sort((a, b) => (RANK[b.level] || 0) - (RANK[a.level] || 0) || b.percent_used - a.percent_used);
    fill(table("costs"), rows.map((b) => {
      const limit = b.limits.length ? b.limits[b.limits.length - 1].at_usd : null;
      return [[named(b.scope, `${PERIODS[b.rule] || b.rule}${/^\d/.test(b.period) ? " " + b.period : ""}`)],
        [h("span", { class: "with-bar" }, bar(limit ? b.sum_usd / limit : 0, b.level), percent(limit ? (b.sum_usd / limit) * 100 : null)), "n"],
        [usd(b.sum_usd), "n"], [usd(limit), "n"], badge(b.level, b.level)];
    }), "No budgets are set.");
    const models = Object.entries(total.models || {}).sort((a, b) => b[1] - a[1]).slice(0, 8);
    fill($("models"), models.map(([name, spent]) => [[named(name)],
      [h("span", { class: "with-bar" }, bar(total.total_usd ? spent / total.total_usd : 0, "ok"), percent(total.total_usd ? (spent / total.total_usd) * 100 : null)), "n"], [usd(spent), "n"]]),
      "No cost names a model yet. cost.incurred events bring them.");
    tile("costs", usd(total.total_usd), "spent", worst && worst.level !== "ok" ? worst.level : null);
  },
};

// ---- learning

const learning = {
  async load(get) {
    const { streams } = await get("/learning/streams?limit=8");
    return Promise.all(streams.map(async (stream) => {
      const of = query({ task: stream.task, run: stream.run ?? "" });
      const [curve, trend] = await Promise.all([get(`/learning/curve?${of}&window=60`).catch(() => ({})), get(`/learning/trend?${of}`).catch(() => ({}))]);
      const kept = curve.points || [];
      return { stream, points: kept.map((p) => p.score), rates: kept.map((p) => ({ at: p.time, y: p.learning_rate })), trend };
    }));
  },
  draw(found) {
    const tone = { improving: "ok", declining: "warning" };
    const title = (s) => (s.run && s.run !== s.task ? `${s.task} run ${s.run}` : s.task);
    const lines = found.slice(0, MOST_LINES).map(({ stream, rates }) => ({ name: title(stream), points: rates.map(({ at, y }) => ({ at: Date.parse(at), y, title: `${title(stream)} ${at.slice(11, 16)}: learning rate ${value(y)}` })) }));
    const words = lines.filter((l) => l.points.length).map((l) => `${l.name} from ${value(l.points[0].y)} to ${value(l.points[l.points.length - 1].y)}`).join("; ");
    picture("rates-chart", words ? (width) => chart(lines, `Learning rate: ${words}`, width) : null, "None so far.");
    const marked = (label, at) => { if (at < MOST_LINES) label.prepend(swatch(at), " "); return label; };
    fill(table("learning"), found.map(({ stream, points, trend }, at) => [
      [marked(named(stream.task, stream.run && stream.run !== stream.task ? "run " + stream.run : null), at)],
      sparkline(points, points.length ? `last ${points.length} scores of ${stream.task}, from ${score(points[0])} to ${score(points[points.length - 1])}` : "no scores kept"),
      [score(trend.recent_avg), "n"], trend.enough === false || !trend.direction ? "too few" : badge(trend.direction, tone[trend.direction]),
      stream.converged ? "yes" : "not yet"]), "Nothing learned yet. learning.recorded events draw a curve for each task.");
  },
};

// ---- metrics

const metrics = {
  async load(get) {
    const { series } = await get("/metrics/series?limit=1000");
    const names = [...new Set(series.map((s) => s.metric))];
    const select = $("metric");
    if (!select.options.length || names.join("\n") !== [...select.options].map((o) => o.value).join("\n")) {
      const chosen = select.value;
      select.replaceChildren(...names.map((name) => h("option", { value: name }, name)));
      if (!names.length) select.append(h("option", { value: "" }, "none yet"));
      select.value = names.includes(chosen) ? chosen : names.find((n) => n.endsWith("loss")) || names[0] || "";
    }
    select.disabled = !names.length;
    const mine = series.filter((s) => s.metric === select.value);
    const lines = await Promise.all(mine.slice(0, MOST_LINES).map(async (s) => {
      const of = query({ metric: s.metric, model: s.model, run: s.run ?? "", window: $("window").value });
      return { series: s, answer: await get("/metrics/aggregate?" + of) };
    }));
    return { lines, left: mine.length - lines.length };
  },
  draw({ lines, left }) {
    const title = (s) => (s.run && s.run !== s.model ? `${s.model} ${s.run}` : s.model);
    const drawn = lines.map(({ series, answer }) => ({
      name: title(series),
      points: answer.buckets.slice(-120).map((b) => ({ at: Date.parse(b.start), y: b.mean, title: `${title(series)} ${b.start.slice(11, 16)}: mean ${value(b.mean)} of ${count(b.n)}` })),
    }));
    const words = drawn.map((line) => { const ys = line.points.map((p) => p.y).filter((y) => !missing(y)); return ys.length ? `${line.name} from ${value(ys[0])} to ${value(ys[ys.length - 1])}` : ""; }).filter(Boolean).join("; ");
    $("chart").replaceChildren(lines.length ? chart(drawn, `${$("metric").value} by window: ${words}`, Math.max(240, $("chart").clientWidth)) : "");
    fill(table("metrics"), lines.map(({ series, answer }, at) => {
      const o = answer.overall, broken = o.non_finite.nan + o.non_finite.pos_inf + o.non_finite.neg_inf;
      return [[h("span", { class: "name" }, swatch(at), " ", title(series), broken ? badge(`${count(broken)} not finite`, "critical") : null)],
        [count(o.n), "n"], [value(o.mean), "n"], [value(o.p50), "n"], [value(o.p95), "n"], [value(o.min), "n roomy"], [value(o.max), "n roomy"]];
    }), "No metrics yet. metric.recorded events draw their windows here.");
    if (left > 0) table("metrics").tBodies[0].append(h("tr", {}, h("td", { colspan: 7, class: "quiet" }, `and ${count(left)} more series: ask /metrics/aggregate for them`)));
  },
};

// ---- worker

const worker = {
  load: (get) => get("/status"),
  draw(status) {
    const c = status.counts;
    const up = [`${status.app_id}, up ${span(status.uptime_s)}`, status.restored_s ? `, restored in ${status.restored_s < 10 ? status.restored_s.toFixed(1) + " s" : span(status.restored_s)}` : ""];
    const kept = () => fill($("tables"), status.tables.filter((t) => t.keys).sort((a, b) => b.bytes - a.bytes).slice(0, 6).map((t) => [[named(t.name.split(".")[0])], [count(t.keys), "n"], [bytes(t.bytes), "n"]]), "Nothing is kept yet.");
    if (!c) {  // a token without the scope admin is told of its own tenant only
      note("worker", ...up, `. Rows of tenant ${status.tenant}; records and partitions, which tenants share, are for tokens with the scope admin.`);
      fill($("topics"), [], "For tokens with the scope admin.");
      kept();
      tile("worker", count(status.tables.reduce((sum, t) => sum + t.keys, 0)), status.lag ? `rows, ${count(status.lag)} records waiting` : "rows, no records waiting");
      return;
    }
    note("worker", ...up,
      `. ${count(c.in)} records in = ${count(c.folded)} folded + ${count(c.duplicate)} duplicates + ${count(c.dead_lettered)} dead letters`,
      c.late ? `; ${count(c.late)} came late` : "", c.overflow ? `; ${count(c.overflow)} over a bound` : "", ". Over all tenants.");
    const topics = new Map();
    for (const p of status.partitions) {
      const t = topics.get(p.topic) || topics.set(p.topic, { folded: 0, duplicate: 0, dead_lettered: 0, lag: 0, owned: 0, n: 0 }).get(p.topic);
      for (const name of ["folded", "duplicate", "dead_lettered", "lag"]) t[name] += p[name];
      t.owned += p.owner; t.n += 1;
    }
    fill($("topics"), [...topics].map(([name, t]) => [[named(name)], [count(t.folded), "n"], [count(t.duplicate), "n"],
      [t.dead_lettered ? badge(count(t.dead_lettered), "warning") : "0", "n"], [t.lag ? badge(count(t.lag), "warning") : "0", "n"], [`${t.owned} of ${t.n}`, "n roomy"]]), "No partitions yet.");
    kept();
    tile("worker", count(c.in), status.lag ? `records in, ${count(status.lag)} waiting` : "records, none waiting", c.dead_lettered ? "warning" : null);
  },
};

export const parts = { alerts, trust, drift, goals, costs, learning, metrics, worker };
