// What every page owes its readers, as far as a script can tell. Each check returns what is wrong; an empty list is well.
() => {
  const seen = (e) => e.checkVisibility({ visibilityProperty: true, opacityProperty: true }) && e.getClientRects().length > 0;
  const tell = (e) => `${e.tagName.toLowerCase()}${e.id ? "#" + e.id : ""} ${(e.textContent || "").trim().slice(0, 40)}`;
  const channel = (c) => (c <= 0.04045 ? c / 12.92 : ((c + 0.055) / 1.055) ** 2.4);
  const light = ([r, g, b]) => 0.2126 * channel(r / 255) + 0.7152 * channel(g / 255) + 0.0722 * channel(b / 255);
  const colour = (text) => { const n = text.match(/[\d.]+/g).map(Number); return { rgb: n.slice(0, 3), alpha: n.length > 3 ? n[3] : 1 }; };
  const behind = (e) => { for (let at = e; at; at = at.parentElement) { const c = colour(getComputedStyle(at).backgroundColor); if (c.alpha === 1) return c.rgb; } return [255, 255, 255]; };
  return {
    /** Things without a name, a label, a header, a place. */
    unnamed() {
      const wrong = [];
      const all = (css) => [...document.querySelectorAll(css)];
      if (!document.documentElement.lang) wrong.push("html without lang");
      if (!document.title) wrong.push("no title");
      if (all("h1").length !== 1) wrong.push("not one h1");
      for (const one of ["main", "header", "footer"]) if (all(one).length !== 1) wrong.push(`not one ${one}`);
      for (const e of all("input, select")) if (!e.labels.length || ![...e.labels].some((l) => l.textContent.trim())) wrong.push("no label: " + tell(e));
      for (const e of all("button, a")) if (!e.textContent.trim() && !e.hidden) wrong.push("no name: " + tell(e));
      for (const e of all("img")) if (!e.hasAttribute("alt")) wrong.push("no alt: " + tell(e));
      for (const e of all("svg")) if (e.getAttribute("aria-hidden") !== "true" && !(e.getAttribute("role") === "img" && e.getAttribute("aria-label"))) wrong.push("picture without words");
      for (const e of all("table")) {
        if (!e.caption || !e.caption.textContent.trim()) wrong.push("no caption: " + tell(e));
        for (const cell of e.tHead.rows[0].cells) if (cell.tagName !== "TH" || cell.scope !== "col" || !cell.textContent.trim()) wrong.push("no header: " + tell(cell));
        for (const row of e.tBodies[0].rows) if (row.cells[0].tagName !== "TH" && row.cells.length > 1) wrong.push("row without header: " + tell(row));
      }
      for (const e of all("section")) if (!document.getElementById(e.getAttribute("aria-labelledby"))) wrong.push("section without heading: " + tell(e));
      const ids = all("[id]").map((e) => e.id);
      for (const id of new Set(ids.filter((id, at) => ids.indexOf(id) !== at))) wrong.push("twice: #" + id);
      let last = 0;
      for (const e of all("main h2, main h3")) { const level = Number(e.tagName[1]); if (level > last + 1 && last) wrong.push("level skipped: " + tell(e)); last = level; }
      for (const role of ["status", "alert"]) if (!all(`[role=${role}]`).length) wrong.push("no live region: " + role);
      return wrong;
    },
    /** Text whose contrast with what is behind it is under 4.5 to 1. */
    faint() {
      const wrong = new Set();
      for (const e of document.querySelectorAll("body *")) {
        if (!seen(e) || e.closest(".unseen, .skip") || ![...e.childNodes].some((n) => n.nodeType === 3 && n.textContent.trim())) continue;
        const style = getComputedStyle(e);
        const a = light(colour(e.namespaceURI.endsWith("svg") ? style.fill : style.color).rgb), b = light(behind(e));
        const ratio = (Math.max(a, b) + 0.05) / (Math.min(a, b) + 0.05);
        if (ratio < 4.5) wrong.add(`${ratio.toFixed(2)} ${tell(e)}`);
      }
      return [...wrong];
    },
    /** What is pressed but smaller than so many pixels. */
    small(least) {
      return [...document.querySelectorAll("button, select, input, #tiles a")].filter((e) => seen(e)).filter((e) => { const r = e.getBoundingClientRect(); return r.width < least || r.height < least; }).map(tell);
    },
    /** Boxes that scroll sideways and cannot be reached by keyboard; text that is cut off. */
    stuck() {
      const wrong = [];
      for (const e of document.querySelectorAll(".scroll")) if (e.scrollWidth > e.clientWidth + 1 && e.tabIndex !== 0) wrong.push("not reached: " + tell(e));
      for (const e of document.querySelectorAll(".card, .card p, .badge, th, td, h1, h2, h3")) if (seen(e) && !e.closest(".unseen, .scroll, thead") && e.scrollWidth > e.clientWidth + 1 && getComputedStyle(e).display !== "inline") wrong.push("cut off: " + tell(e));
      return wrong;
    },
  };
}
