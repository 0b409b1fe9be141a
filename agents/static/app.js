// Everything shown goes through textContent: names and messages come from events and are never trusted as HTML.
"use strict";
const $ = (id) => document.getElementById(id);
const who = new URLSearchParams(location.hash.slice(1));
const form = $("who");
if (who.get("tenant")) form.tenant.value = who.get("tenant");
let headers = {};
function identify() {
  headers = { "X-Tenant": form.tenant.value };
  if (form.token.value) headers.Authorization = "Bearer " + form.token.value;
}
form.addEventListener("submit", (event) => { event.preventDefault(); location.hash = "tenant=" + encodeURIComponent(form.tenant.value); identify(); refresh(); });
async function get(path) {
  const response = await fetch("/api/v1" + path, { headers });
  const body = await response.json();
  if (!response.ok && response.status !== 404) throw new Error(body.detail || response.statusText);
  return body;
}
const number = (x, digits = 3) => (x === null || x === undefined ? "–" : Number(x).toFixed(digits));
const usd = (x) => (x === null || x === undefined ? "–" : "$" + Number(x).toFixed(4));
const tone = { warning: "warn", critical: "bad", shutdown: "bad", info: "", ok: "good" };
function table(id, head, rows) {
  const target = $(id);
  target.replaceChildren();
  const top = target.insertRow();
  for (const name of head) { const th = document.createElement("th"); th.scope = "col"; th.textContent = name; top.append(th); }
  for (const row of rows) {
    const line = target.insertRow();
    for (const cell of row) {
      const td = line.insertCell();
      const [text, css] = Array.isArray(cell) ? cell : [cell, typeof cell === "string" && /^[–$\d-]/.test(cell) ? "n" : ""];
      td.textContent = text; if (css) td.className = css;
    }
  }
  if (!rows.length) { const td = target.insertRow().insertCell(); td.colSpan = head.length; td.textContent = "nothing yet"; td.className = "empty"; }
}
async function refresh() {
  try {
    const [status, alerts, costs, budgets, goals, trust, variables] = await Promise.all([
      get("/status"), get("/alerts?state=all&limit=15"), get("/costs"), get("/costs/status"), get("/learning/goals"),
      get("/trust?sort=trust&order=asc&limit=15"), get("/variables/rank?key=avg_confidence&limit=15")]);
    const c = status.counts;
    $("state").textContent = `${status.ready ? "ready" : "restoring"} · ${c.in} events: ${c.folded} folded, ${c.duplicate} duplicate, ${c.dead_lettered} dead letters · lag ${status.lag}`;
    table("alerts", ["when", "alert", "level", "message"], alerts.alerts.map((a) => [a.time.slice(11, 19), a.rule, [a.open ? a.severity : "resolved", a.open ? tone[a.severity] : "good"], a.message]));
    $("costs").textContent = `${usd(costs.total_usd)} in ${costs.events} events; status ${budgets.status}`;
    table("budgets", ["budget", "period", "spent", "used", "level"], (budgets.budgets || []).map((b) => [b.rule, String(b.period), usd(b.sum_usd), number(b.percent_used, 1) + " %", [b.level, tone[b.level]]]));
    table("goals", ["goal", "wanted", "now", "progress", ""], (goals.goals || []).map((g) => [g.goal_id, (g.direction === "at_most" ? "≤ " : "≥ ") + g.target, number(g.current, 4), number(g.percentage, 1) + " %", g.regressed ? ["regressed", "warn"] : g.completed ? ["completed", "good"] : ""]));
    table("trust", ["kind", "id", "trust", "95 % interval", "n"], (trust.entries || []).map((t) => [t.kind, t.id, [number(t.trust), t.trust < 0.4 ? "n bad" : "n"], `${number(t.beta_interval[0])} … ${number(t.beta_interval[1])}`, String(t.sample_size)]));
    table("variables", ["variable", "confidence", "fragility", "certified", "drift"], (variables.variables || []).map((v) => [v.name, number(v.avg_confidence, 4), number(v.avg_fragility, 4), number(v.certified_ratio, 4), v.drift ? ["drifting", "warn"] : ""]));
    const tasks = (await get("/learning/convergence")).task_statistics || {};
    const names = Object.keys(tasks).slice(0, 10);
    const trends = names.length ? await get("/learning/trend?tasks=" + names.map(encodeURIComponent).join(",") + (names.length === 1 ? "," : "")) : {};
    table("learning", ["task", "trend", "R²", "recent", "converged"], names.map((n) => { const t = (trends.tasks || { [n]: trends })[n] || {}; return [n, [t.direction || "–", t.direction === "declining" ? "bad" : t.direction === "improving" ? "good" : ""], number(t.confidence), number(t.recent_avg), tasks[n].converged ? "yes" : "no"]; }));
  } catch (error) { $("state").textContent = "not reachable: " + error.message; }
}
identify();
refresh();
setInterval(refresh, 2000);
