// Elements, numbers and pictures. Text goes through textContent only: names and messages come from events and are never HTML.

/** An element with attributes and children; text children become text nodes. */
export function h(tag, attributes = {}, ...children) {
  const made = document.createElement(tag);
  for (const [name, value] of Object.entries(attributes)) if (value !== null && value !== undefined && value !== false) made.setAttribute(name, value);
  made.append(...children.filter((child) => child !== null && child !== undefined));
  return made;
}

function svg(tag, attributes = {}, ...children) {
  const made = document.createElementNS("http://www.w3.org/2000/svg", tag);
  for (const [name, value] of Object.entries(attributes)) if (value !== null && value !== undefined) made.setAttribute(name, value);
  made.append(...children);
  return made;
}

const NONE = "–";
const whole = new Intl.NumberFormat("en", { maximumFractionDigits: 0 });
const short = new Intl.NumberFormat("en", { notation: "compact", maximumFractionDigits: 1 });
const four = new Intl.NumberFormat("en", { maximumSignificantDigits: 4 });

export const missing = (x) => x === null || x === undefined || (typeof x === "number" && !Number.isFinite(x));
export const count = (x) => (missing(x) ? NONE : Math.abs(x) < 1e6 ? whole.format(x) : short.format(x));
export const score = (x) => (missing(x) ? NONE : Number(x).toFixed(3));
export const percent = (x) => (missing(x) ? NONE : Math.abs(x) >= 99.95 || x === 0 ? whole.format(x) + " %" : Number(x).toFixed(1) + " %");
/** Four significant digits; very small and very large numbers with an exponent. */
export function value(x) {
  if (missing(x)) return NONE;
  const size = Math.abs(x);
  return size !== 0 && (size < 1e-4 || size >= 1e7) ? Number(x).toExponential(2).replace("e", " e") : four.format(x);
}
/** Dollars: cents from one dollar up, else as many places as show two digits (at most the six that are kept). */
export function usd(x) {
  if (missing(x)) return NONE;
  const size = Math.abs(x);
  const places = size >= 1 || size === 0 ? 2 : Math.min(6, Math.max(2, 1 - Math.floor(Math.log10(size)) + 1));
  return "$" + Number(x).toLocaleString("en", { minimumFractionDigits: places === 2 ? 2 : 0, maximumFractionDigits: places });
}
export function bytes(x) {
  if (missing(x)) return NONE;
  const [size, unit] = x < 1000 ? [x, "B"] : x < 1e6 ? [x / 1e3, "kB"] : x < 1e9 ? [x / 1e6, "MB"] : [x / 1e9, "GB"];
  return `${size < 10 && unit !== "B" ? size.toFixed(1) : Math.round(size)} ${unit}`;
}
export function span(seconds) {
  const s = Math.round(seconds);
  if (s < 100) return `${s} s`;
  if (s < 6000) return `${Math.round(s / 60)} min`;
  return s < 172800 ? `${Math.round(s / 3600)} h` : `${Math.round(s / 86400)} days`;
}
/** A moment: time of day if it is of today (UTC), else the date and minute. */
export function moment(text) {
  if (!text) return NONE;
  const day = text.slice(0, 10);
  const shown = day === new Date().toISOString().slice(0, 10) ? text.slice(11, 19) : `${day} ${text.slice(11, 16)}`;
  return h("time", { datetime: text, title: text.replace("T", " ").replace("Z", " UTC") }, shown);
}

/** A word with a tone: ok, info, warning, critical or shutdown. The word says it; the colour only helps. */
export const badge = (word, tone) => h("span", { class: "badge", "data-tone": tone }, word);

/** A name that may break after its separators, with what stands below it. */
export function named(text, below) {
  const pieces = String(text).split(/(?<=[_\-./:|])/);
  return h("span", { class: "name" }, ...pieces.flatMap((piece, at) => (at ? [document.createElement("wbr"), piece] : [piece])), below ? h("span", { class: "quiet" }, below) : null);
}

/** Rows of a table. A cell is text, an element, or [content, class]; the first of a row is its header. */
export function fill(table, rows, empty) {
  const body = table.tBodies[0];
  const heads = [...table.tHead.rows[0].cells].map((cell) => cell.textContent);
  // the roles are said because on a narrow screen rows are laid out as blocks, which takes a table's own roles away
  body.replaceChildren(
    ...rows.map((cells) =>
      h("tr", { role: "row" }, ...cells.map((cell, at) => {
        const [content, css] = Array.isArray(cell) ? cell : [cell, null];
        return at === 0 ? h("th", { scope: "row", role: "rowheader", class: css }, content) : h("td", { role: "cell", class: css, "data-head": heads[at] }, content);
      }))),
  );
  if (!rows.length) body.append(h("tr", { role: "row" }, h("td", { role: "cell", colspan: heads.length, class: "empty" }, empty)));
}

/** A bar of 0…1 with the share that is filled; the number stands beside it, so it is hidden from screen readers. */
export function bar(share, tone) {
  const width = missing(share) ? 0 : Math.max(0, Math.min(1, share)) * 100;
  return svg("svg", { class: "bar", viewBox: "0 0 100 8", preserveAspectRatio: "none", "aria-hidden": "true", "data-tone": tone },
    svg("rect", { class: "track", width: 100, height: 8, rx: 2 }), svg("rect", { class: "fill", width, height: 8, rx: 2 }));
}

/** An interval within 0…1 and the mean in it. */
export function interval(low, mean, high, tone) {
  const x = (v) => Math.max(0, Math.min(1, v)) * 100;
  return svg("svg", { class: "bar", viewBox: "0 0 100 8", preserveAspectRatio: "none", "aria-hidden": "true", "data-tone": tone },
    svg("rect", { class: "track", width: 100, height: 8, rx: 2 }),
    svg("rect", { class: "soft", x: x(low), width: Math.max(1, x(high) - x(low)), height: 8 }),
    svg("rect", { class: "fill", x: Math.max(0, x(mean) - 0.75), width: 1.5, height: 8 }));
}

/** A line through a few numbers, said in words for who cannot see it. */
export function sparkline(numbers, words) {
  const usable = numbers.filter((x) => !missing(x));
  const picture = svg("svg", { class: "spark", viewBox: "0 0 100 24", preserveAspectRatio: "none", role: "img", "aria-label": words });
  if (!usable.length) return picture;
  const low = Math.min(...usable), high = Math.max(...usable);
  const y = (v) => (high === low ? 12 : 22 - ((v - low) / (high - low)) * 20);
  const step = usable.length > 1 ? 100 / (usable.length - 1) : 0;
  picture.append(svg("polyline", { points: (usable.length > 1 ? usable : [usable[0], usable[0]]).map((v, i) => `${(usable.length > 1 ? i * step : i * 100).toFixed(2)},${y(v).toFixed(2)}`).join(" ") }));
  return picture;
}

/**
 * How many of something lie in each part of 0…1, as pillars with axes; WIDTH in pixels, so that letters keep their size.
 * bins: [{low, high, count}], upward.
 */
export function histogram(bins, words, WIDTH) {
  const tall = 120, foot = tall - BOTTOM, most = Math.max(1, ...bins.map((b) => b.count));
  const x = (v) => LEFT + v * (WIDTH - LEFT - RIGHT), y = (n) => TOP + (1 - n / most) * (foot - TOP);
  const picture = svg("svg", { class: "chart", viewBox: `0 0 ${WIDTH} ${tall}`, role: "img", "aria-label": words });
  const letters = (at, text) => { const label = svg("text", at); label.textContent = text; picture.append(label); };
  for (const n of [0, most]) {
    picture.append(svg("line", { class: "grid", x1: LEFT, x2: WIDTH - RIGHT, y1: y(n), y2: y(n) }));
    letters({ x: LEFT - 6, y: y(n) + 4, "text-anchor": "end" }, count(n));
  }
  for (const [v, anchor] of [[0, "start"], [0.5, "middle"], [1, "end"]]) letters({ x: x(v), y: tall - 6, "text-anchor": anchor }, String(v));
  for (const b of bins.filter((one) => one.count)) {
    const title = svg("title");
    title.textContent = `${b.low} to ${b.high}: ${count(b.count)}`;
    picture.append(svg("rect", { class: "pillar", x: (x(b.low) + 1).toFixed(1), width: (x(b.high) - x(b.low) - 2).toFixed(1), y: y(b.count).toFixed(1), height: (foot - y(b.count)).toFixed(1) }, title));
  }
  return picture;
}

const HEIGHT = 190, LEFT = 56, RIGHT = 10, TOP = 10, BOTTOM = 24;

/**
 * Lines over time with axes.
 * lines: [{name, points: [{at: milliseconds, y, title}]}]; WIDTH in pixels, so that letters keep their size.
 */
export function chart(lines, words, WIDTH) {
  const points = lines.flatMap((line) => line.points).filter((p) => !missing(p.y));
  if (!points.length) return h("p", { class: "empty" }, "No values in the windows that are kept.");
  let [first, last] = [Math.min(...points.map((p) => p.at)), Math.max(...points.map((p) => p.at))];
  let [low, high] = [Math.min(...points.map((p) => p.y)), Math.max(...points.map((p) => p.y))];
  if (low === high) { const pad = Math.abs(low) * 0.1 || 1; low -= pad; high += pad; }
  const x = (at) => (first === last ? (LEFT + WIDTH - RIGHT) / 2 : LEFT + ((at - first) / (last - first)) * (WIDTH - LEFT - RIGHT));
  const y = (v) => TOP + (1 - (v - low) / (high - low)) * (HEIGHT - TOP - BOTTOM);
  const picture = svg("svg", { class: "chart", viewBox: `0 0 ${WIDTH} ${HEIGHT}`, role: "img", "aria-label": words });
  for (const share of [0, 0.5, 1]) {
    const v = low + share * (high - low);
    picture.append(svg("line", { class: "grid", x1: LEFT, x2: WIDTH - RIGHT, y1: y(v), y2: y(v) }));
    const label = svg("text", { x: LEFT - 6, y: y(v) + 4, "text-anchor": "end" });
    label.textContent = value(v);
    picture.append(label);
  }
  const stamp = (at) => { const t = new Date(at).toISOString(); return last - first > 86400e3 ? t.slice(0, 10) : t.slice(11, 16); };
  for (const [at, anchor] of first === last ? [[first, "middle"]] : [[first, "start"], [last, "end"]]) {
    const label = svg("text", { x: x(at), y: HEIGHT - 6, "text-anchor": anchor });
    label.textContent = stamp(at);
    picture.append(label);
  }
  lines.forEach((line, at) => {
    const usable = line.points.filter((p) => !missing(p.y));
    const group = svg("g", { class: `line c${at % 6}` });
    group.append(svg("polyline", { points: usable.map((p) => `${x(p.at).toFixed(1)},${y(p.y).toFixed(1)}`).join(" ") }));
    if (usable.length <= 80) for (const p of usable) {
      const title = svg("title");
      title.textContent = p.title;
      group.append(svg("circle", { cx: x(p.at).toFixed(1), cy: y(p.y).toFixed(1), r: 3 }, title));
    }
    picture.append(group);
  });
  return picture;
}

/** The mark that tells which line of a chart a row is about. */
export const swatch = (at) => svg("svg", { class: `swatch c${at % 6}`, viewBox: "0 0 14 10", "aria-hidden": "true" }, svg("line", { x1: 0, x2: 14, y1: 5, y2: 5 }));
