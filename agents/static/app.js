// Who asks, whether the worker answers, and when to ask again. What is asked and how it is shown is in parts.js.
import { count, moment } from "./draw.js";
import { limits, parts, showAsFirst, showMore } from "./parts.js";

const $ = (id) => document.getElementById(id);
const API = "/api/v1";
const KEPT = "pulsefold.token";
const SILENT_MS = 15_000; // the worker says something every five seconds
const LEAST_MS = 1_500; // between two rounds of questions
const ANYWAY_MS = 30_000; // what depends on the clock moves without events

class Refused extends Error {
  constructor(status, detail) { super(detail); this.status = status; }
}

const session = { token: sessionStorage.getItem(KEPT) || "", tenant: new URLSearchParams(location.hash.slice(1)).get("tenant") || "" };

function headers() {
  const found = {};
  if (session.tenant) found["X-Tenant"] = session.tenant;
  if (session.token) found.Authorization = "Bearer " + session.token;
  return found;
}

async function ask(path, options = {}) {
  const response = await fetch(API + path, { headers: headers(), cache: "no-store", ...options });
  if (response.ok) return response;
  let detail = response.statusText;
  try { detail = (await response.json()).detail || detail; } catch { /* no JSON: the status says enough */ }
  throw new Refused(response.status, detail);
}
const get = async (path) => (await ask(path, { signal: AbortSignal.timeout(20_000) })).json();
/** Whether it is the token or the tenant that the worker does not take. */
const locked = (error) => error instanceof Refused && (error.status === 401 || error.status === 403 || (error.status === 400 && error.message.startsWith("X-Tenant")));

// ---- what the head of the page says

const SAY = { connecting: "Connecting…", live: "Live", restoring: "Restoring", lost: "Connection lost", locked: "Needs a token" };

function state(name, banner = "", tone = "") {
  const pill = $("state");
  if (pill.dataset.state !== name) { pill.dataset.state = name; pill.textContent = SAY[name]; document.title = name === "live" ? "pulsefold" : `${SAY[name]} – pulsefold`; }
  const box = $("banner");
  if (box.textContent !== banner) box.textContent = banner;
  box.className = "banner " + tone;
  box.hidden = !banner;
  $("main").toggleAttribute("data-stale", name === "lost");
}

function facts(status) {
  const shown = [`tenant ${status.tenant}`, status.lag ? `${count(status.lag)} records behind` : "nothing waiting"];
  $("facts").textContent = shown.join(" · ");
  if (!session.tenant) $("tenant").placeholder = status.tenant;
}

// ---- asking

let asking = false, again = false, asked_at = 0, timer = 0, generation = 0;
const drawn = {}, answers = {};

async function refresh() {
  if (asking) { again = true; return; }
  asking = true;
  clearTimeout(timer);
  asked_at = Date.now();
  const mine = generation;
  try {
    await Promise.all(Object.entries(parts).map(async ([name, part]) => {
      const section = $(name);
      try {
        const answer = await part.load(get);
        if (mine !== generation) return;
        const text = JSON.stringify(answer, (key, x) => (["at", "seconds_since_update", "uptime_s", "lag"].includes(key) && name !== "worker" ? undefined : x)) + limits[name];
        if (drawn[name] !== text) { part.draw(answer); drawn[name] = text; answers[name] = answer; }
        section.querySelector(".failed")?.remove();
      } catch (error) {
        if (mine !== generation || !(error instanceof Refused)) { if (!(error instanceof Error)) throw error; if (!(error instanceof Refused) && !isNetwork(error)) throw error; return; }
        if (locked(error)) { lock(error); return; }
        const failed = section.querySelector(".failed") || section.querySelector("h2").closest(".head, h2").insertAdjacentElement("afterend", Object.assign(document.createElement("p"), { className: "failed bad" }));
        failed.textContent = `This part cannot be shown: ${error.message}`;
      }
    }));
  } finally {
    asking = false;
    $("main").setAttribute("data-drawn", String(Number($("main").dataset.drawn || 0) + 1));
    if (again) { again = false; soon(); } else timer = setTimeout(refresh, ANYWAY_MS);
  }
}
const isNetwork = (error) => error instanceof TypeError || ["AbortError", "TimeoutError"].includes(error.name);

/** Ask again, but not more often than every `LEAST_MS`. */
function soon() {
  clearTimeout(timer);
  timer = setTimeout(refresh, Math.max(0, asked_at + LEAST_MS - Date.now()));
}

// ---- the stream

let stop = new AbortController();

async function follow() {
  const mine = ++generation;
  stop.abort();
  stop = new AbortController();
  let seen = null, wait = 500, begun = false, heard_at = 0;
  while (mine === generation && !document.hidden) {
    let alive = setTimeout(() => stop.abort(), SILENT_MS);
    try {
      const response = await ask("/status/stream", { signal: stop.signal });
      const reader = response.body.pipeThrough(new TextDecoderStream()).getReader();
      for (let rest = ""; ;) {
        const { done, value: text } = await reader.read();
        if (done || mine !== generation) break;
        clearTimeout(alive);
        alive = setTimeout(() => stop.abort(), SILENT_MS);
        wait = 500;
        const whole = (rest + text).split("\n\n");
        rest = whole.pop();
        for (const block of whole) {
          const fields = Object.fromEntries(block.split("\n").map((line) => [line.slice(0, line.indexOf(":")), line.slice(line.indexOf(":") + 2)]));
          if (!fields.data) continue;
          const data = JSON.parse(fields.data);
          if (fields.event !== "status") { announce(data); continue; }
          if (data.ready) state("live");
          else state("restoring", `The worker is restoring its tables${data.to_restore ? `: ${count(data.restored)} of ${count(data.to_restore)} rows` : ""}. Until it is done, figures are incomplete.`, "warning");
          facts(data);
          const mark = `${data.absorbed ?? data.newest}|${data.alert_messages}|${data.ready}`;
          if (mark !== seen || !begun) soon();
          seen = mark; begun = true; heard_at = Date.now();
        }
      }
    } catch (error) {
      if (mine !== generation) return;
      if (locked(error)) { lock(error); clearTimeout(alive); return; }
      if (!(error instanceof Refused) && !isNetwork(error)) throw error;
    } finally { clearTimeout(alive); }
    if (mine !== generation || document.hidden) return;
    stop = new AbortController();
    begun = false;
    if (seen !== null) $("facts").textContent = `as of ${new Date(heard_at).toISOString().slice(11, 19)}`;
    state("lost", "The worker does not answer. What you see is from before; this page tries again by itself.", "critical");
    await new Promise((resolve) => setTimeout(resolve, wait));
    wait = Math.min(5_000, wait * 2);
  }
}

/** Tell who cannot see the list that an alert came. */
function announce(message) {
  if (message.type === "alert.opened.v1" || message.type === "alert.escalated.v1") $("news").textContent = `${message.data.severity}: ${message.data.message}`;
}

// ---- token and tenant

function lock(error) {
  generation += 1;
  stop.abort();
  state("locked", "", "");
  $("facts").textContent = "";
  show(error.message);
}

function show(problem = "") {
  const dialog = $("ask");
  $("ask-error").textContent = problem;
  $("ask-error").hidden = !problem;
  $("ask-tenant").value = session.tenant;
  $("forget").hidden = !session.token;
  if (!dialog.open) dialog.showModal();
  $("token").focus();
}

/** Begin anew as somebody: nothing of the former tenant stays on the page. */
function become(token, tenant) {
  session.token = token;
  session.tenant = tenant;
  if (token) sessionStorage.setItem(KEPT, token); else sessionStorage.removeItem(KEPT);
  history.replaceState(null, "", tenant ? "#tenant=" + encodeURIComponent(tenant) : location.pathname);
  $("tenant").value = tenant;
  for (const name of Object.keys(drawn)) { delete drawn[name]; delete answers[name]; }
  for (const body of document.querySelectorAll("tbody, .alerts, #tiles, .picture, [data-note]")) body.replaceChildren();
  for (const failed of document.querySelectorAll(".failed")) failed.remove();
  showAsFirst();
  state("connecting");
  follow();
}

$("who").addEventListener("submit", (event) => { event.preventDefault(); become(session.token, $("tenant").value.trim()); });
$("open-token").addEventListener("click", () => show());
$("cancel").addEventListener("click", () => $("ask").close());
$("forget").addEventListener("click", () => { $("token").value = ""; $("ask").close(); become("", session.tenant); });
$("token-form").addEventListener("submit", (event) => {
  event.preventDefault();
  const token = $("token").value.trim() || session.token;
  $("token").value = "";
  $("ask").close();
  become(token, $("ask-tenant").value.trim());
});

for (const button of document.querySelectorAll("[data-more]")) button.addEventListener("click", () => { showMore(button.dataset.more); refresh(); });
for (const id of ["trust-order", "metric", "window"]) $(id).addEventListener("change", refresh);
for (const box of document.querySelectorAll(".scroll")) {
  // a box that scrolls sideways must be reachable by keyboard, one that does not must not be a stop on the way
  const fit = () => {
    const wide = box.scrollWidth > box.clientWidth + 1;
    box.toggleAttribute("tabindex", wide);
    if (wide) { box.setAttribute("tabindex", "0"); box.setAttribute("role", "region"); box.setAttribute("aria-label", box.querySelector("caption").textContent); }
    else { box.removeAttribute("role"); box.removeAttribute("aria-label"); }
  };
  new ResizeObserver(fit).observe(box);
  new ResizeObserver(fit).observe(box.firstElementChild);
}
for (const picture of document.querySelectorAll(".picture")) {
  const part = picture.closest("section").id;
  let width = 0;
  new ResizeObserver(([{ contentRect }]) => {
    if (Math.abs(contentRect.width - width) > 8 && answers[part]) parts[part].draw(answers[part]);
    width = contentRect.width;
  }).observe(picture);
}
document.addEventListener("visibilitychange", () => { if (document.hidden) { generation += 1; stop.abort(); clearTimeout(timer); } else if ($("state").dataset.state !== "locked") follow(); });
addEventListener("hashchange", () => {
  const tenant = new URLSearchParams(location.hash.slice(1)).get("tenant");
  if (tenant !== null && tenant !== session.tenant) become(session.token, tenant);
});

$("tenant").value = session.tenant;
follow();
