"use strict";
// The table of shards and a shard's own view. Values reach the page as text nodes and attributes only.
(() => {
  const data = JSON.parse(document.getElementById("data").textContent);
  const shards = data.shards;
  const PAGE = 50;
  const $ = (id) => document.getElementById(id);
  const number = (value, digits = 0) => value === null || value === undefined ? "–"
    : value.toLocaleString("en", { minimumFractionDigits: digits, maximumFractionDigits: digits });
  const share = (i) => shards.gains[i] ? shards.large[i] / shards.gains[i] : null;
  const percent = (value) => value === null ? "–" : `${number(100 * value, 1)}%`;
  const tokens = (i) => shards.tokens[i].reduce((sum, count) => sum + count, 0);
  const link = (name) => `#shard=${encodeURIComponent(name)}`;

  function element(tag, attributes = {}, ...children) {
    const made = document.createElement(tag);
    for (const [name, value] of Object.entries(attributes)) {
      if (value !== null && value !== undefined) made.setAttribute(name, value);
    }
    made.append(...children);
    return made;
  }

  const count = (value) => element("span", value ? {} : { class: "zero" }, number(value));
  const bar = (value) => {
    const drawn = element("span", { class: "bar", "aria-hidden": "true" });
    drawn.style.setProperty("--share", `${100 * (value ?? 0)}%`);
    return [drawn, percent(value)];
  };
  const marks = (i) => shards.marks[i].map((mark) => element("span", { class: "mark" }, mark));
  const listed = (counts) => Object.entries(counts).sort((a, b) => b[1] - a[1])
    .map(([name, rows]) => `${number(rows)} ${name}`).join(", ");

  // A column: its name, its sort key, what it shows, whether it is a number.
  const column = (name, key, show, numeric = true) => ({ name, key, show, numeric });
  const counted = (name) => column(name, (i) => shards[name][i], (i) => [count(shards[name][i])]);
  const columns = [
    column("shard", (i) => shards.name[i], (i) => [element("a", { href: link(shards.name[i]) }, shards.name[i])], false),
    column("stands out", (i) => shards.marks[i].length, marks, false),
    counted("rows"),
    column("share to large", share, (i) => bar(share(i)), false),
    column("mean gain", (i) => shards.gain[i], (i) => [number(shards.gain[i], 2)]),
    ...["ok", "fallback", "failed", "quarantined", "skipped"].map(counted),
    column("tokens", tokens, (i) => [count(tokens(i))]),
    column("reasons", (i) => Object.values(shards.reasons[i]).reduce((a, b) => a + b, 0), (i) => [listed(shards.reasons[i])], false),
  ];
  const state = { column: 1, descending: true, page: 0, order: [] };

  function compare(a, b) {
    if (a === b) return 0;
    if (a === null) return -1;
    if (b === null) return 1;
    return a < b ? -1 : 1;
  }

  function order() {
    const name = $("name-filter").value.toLowerCase(), kind = $("kind-filter").value;
    const reason = $("reason-filter").value, direction = $("direction-filter").value;
    const wanted = [...shards.name.keys()].filter((i) =>
      shards.name[i].toLowerCase().includes(name)
      && (kind !== "marked" || shards.marks[i].length)
      && (kind !== "failures" || shards.failures[i])
      && (kind !== "shown" || Object.hasOwn(data.excerpts, shards.name[i]))
      && (!reason || shards.reasons[i][reason])
      && (!direction || shards.directions[i][direction]));
    const { key } = columns[state.column], sign = state.descending ? -1 : 1;
    const keys = new Map(wanted.map((i) => [i, key(i)]));
    return wanted.sort((a, b) => sign * compare(keys.get(a), keys.get(b)) || a - b);
  }

  function head() {
    const cells = columns.map(({ name, numeric }, at) => {
      const button = element("button", { type: "button" }, name);
      button.addEventListener("click", () => {
        const first = at !== 0;  // high numbers are the most interesting, so they come first
        state.descending = state.column === at ? !state.descending : first;
        state.column = at;
        refresh();
      });
      return element("th", { scope: "col", class: numeric ? "n" : null, "aria-sort": "none" }, button);
    });
    $("shard-table").tHead.replaceChildren(element("tr", {}, ...cells));
  }

  function refresh() {
    state.order = order();
    state.page = 0;
    draw();
  }

  function draw() {
    const start = state.page * PAGE, pages = Math.max(1, Math.ceil(state.order.length / PAGE));
    const lines = state.order.slice(start, start + PAGE).map((i) => element("tr", {}, ...columns.map(
      ({ show, numeric }, at) => element(at ? "td" : "th", at ? { class: numeric ? "n" : null } : { scope: "row" }, ...show(i)))));
    const table = $("shard-table");
    table.tBodies[0].replaceChildren(...lines);
    [...table.tHead.rows[0].cells].forEach((cell, at) => cell.setAttribute("aria-sort",
      at !== state.column ? "none" : state.descending ? "descending" : "ascending"));
    const last = Math.min(start + PAGE, state.order.length);
    $("count").textContent = state.order.length
      ? `Shards ${number(start + 1)} to ${number(last)} of ${number(state.order.length)}`
        + (state.order.length < shards.name.length ? ` (${number(shards.name.length)} in all)` : "")
      : "No shard matches.";
    $("page-number").textContent = `Page ${number(state.page + 1)} of ${number(pages)}`;
    $("previous-page").disabled = !state.page;
    $("next-page").disabled = state.page + 1 >= pages;
  }

  function choices(select, values) {
    for (const value of [...new Set(values)].sort()) select.append(element("option", { value }, value));
  }

  const facts = (pairs) => element("dl", { class: "figures" }, ...pairs.map(([name, value, more]) =>
    element("div", { class: "figure" }, element("dt", {}, name),
      element("dd", {}, element("strong", {}, value), element("span", {}, more ?? "")))));

  function table(caption, names, lines, style = null) {
    const line = (cells) => element("tr", {}, ...cells.map((cell, at) =>
      cell instanceof Node ? cell : element(at ? "td" : "th", at ? {} : { scope: "row" }, cell)));
    return element("table", { class: style }, element("caption", {}, caption),
      element("thead", {}, element("tr", {}, ...names.map((name) => element("th", { scope: "col" }, name)))),
      element("tbody", {}, ...lines.map(line)));
  }

  const text = (value, lang, stands) => element("td", { class: stands ? "text stands" : "text", dir: "auto", lang },
    value === null ? element("i", {}, "–") : value);

  function rowTable(caption, numbers, rows) {
    if (!numbers.length) return element("p", { class: "note" }, `${caption}: none.`);
    const lines = numbers.map((at) => {
      const row = rows[at];
      const planned = row.route === row.planned_route ? null : `${row.planned_route} planned`;
      return [number(at), [planned, row.route, row.status, row.reason].filter(Boolean).join(", "), number(row.gain, 2),
        text(row.source, row.source_lang), text(row.small, row.target_lang, row.route === "small"),
        text(row.large, row.target_lang, row.route === "large")];
    });
    const names = ["row", "route, status", "gain", "source", "small", "large"];
    return element("div", { class: "scroll", role: "region", tabindex: "0", "aria-label": caption },
      table(caption, names, lines, "rows"));
  }

  function excerpts(name) {
    if (!Object.hasOwn(data.excerpts, name)) {
      return [element("p", { class: "note" }, Object.keys(data.excerpts).length
        ? "The rows of this shard are not in this page; the footer explains which shards are."
        : "Corpus text is kept out of this page.")];
    }
    const { gained, cut, failed, rows } = data.excerpts[name];
    return [
      element("p", { class: "note" }, "The translation in the output has a line at its side. The other model's is shown if it also translated the row."),
      rowTable("Highest predicted gain", gained, rows),
      rowTable(`Nearest to the cut${data.threshold === null ? "" : ` at ${number(data.threshold, 2)}`}`, cut, rows),
      rowTable("Failed, quarantined and fallback", failed, rows),
    ];
  }

  function neighbours(i) {
    const at = state.order.indexOf(i);
    const to = (step, name) => {
      const other = at < 0 ? undefined : state.order[at + step];
      return other === undefined ? [] : [element("a", { href: link(shards.name[other]) }, name)];
    };
    return element("nav", { class: "screen", "aria-label": "Shards" },
      element("a", { href: "#shards" }, "← All shards"), ...to(-1, "Previous shard"), ...to(1, "Next shard"));
  }

  function drawShard(i) {
    const [smallIn, smallOut, largeIn, largeOut] = shards.tokens[i];
    const failures = ["failed", "quarantined", "fallback"].map((name) => `${number(shards[name][i])} ${name}`).join(", ");
    const title = element("h2", { id: "shard-title", tabindex: "-1" }, shards.name[i]);
    $("shard").replaceChildren(
      neighbours(i), title,
      element("p", {}, ...(shards.marks[i].length ? ["Stands out: ", ...marks(i)] : [])),
      facts([
        ["Rows", number(shards.rows[i]), `${number(shards.ok[i])} ok, ${number(shards.skipped[i])} skipped`],
        ["Rows that a model failed on", number(shards.failures[i]), failures],
        ["Share to large", percent(share(i)), `the job's is ${percent(data.share)}; ${number(shards.planned[i])} rows planned, ${number(shards.large[i])} translated`],
        ["Mean predicted gain", number(shards.gain[i], 2), `${number(shards.gain_routed[i], 2)} of rows planned for large; ${number(shards.bought[i], 1)} bought`],
        ["Tokens", number(tokens(i)), `small ${number(smallIn)} in, ${number(smallOut)} out; large ${number(largeIn)} in, ${number(largeOut)} out`],
      ]),
      element("div", { class: "columns" },
        table("Directions", ["direction", "rows", "to large"],
          Object.entries(shards.directions[i]).map(([name, [rows, large]]) => [name, number(rows), number(large)])),
        ...(Object.keys(shards.reasons[i]).length ? [table("Reasons", ["reason", "rows"],
          Object.entries(shards.reasons[i]).map(([name, rows]) => [name, number(rows)]))] : [])),
      ...excerpts(shards.name[i]));
    return title;
  }

  // The address after # names the view, so that the browser's back button and bookmarks work.
  let opened = null;
  function route() {
    const requested = new URLSearchParams(location.hash.slice(1)).get("shard");
    const at = requested === null ? -1 : shards.name.indexOf(requested);
    $("overview").hidden = at >= 0;
    $("shard").hidden = at < 0;
    if (at >= 0) {
      const title = drawShard(at);
      window.scrollTo(0, 0);
      title.focus();
    } else if (opened !== null) {
      $("shard").replaceChildren();
      const target = $(location.hash.slice(1)) ?? $("shards");
      target.scrollIntoView();
      const back = document.querySelector(`#shard-table a[href="${CSS.escape(link(opened))}"]`);
      if (target.id === "shards") back?.focus();
    }
    opened = at >= 0 ? requested : null;
  }

  let reopened = [];
  window.addEventListener("beforeprint", () => {
    reopened = [...document.querySelectorAll("details:not([open])")];
    reopened.forEach((details) => { details.open = true; });
  });
  window.addEventListener("afterprint", () => reopened.forEach((details) => { details.open = false; }));

  choices($("reason-filter"), shards.reasons.flatMap(Object.keys));
  choices($("direction-filter"), shards.directions.flatMap(Object.keys));
  for (const id of ["name-filter", "kind-filter", "reason-filter", "direction-filter"]) {
    $(id).addEventListener("input", refresh);
  }
  document.querySelector(".controls").addEventListener("reset", () => setTimeout(refresh));
  document.querySelector(".controls").addEventListener("submit", (event) => event.preventDefault());
  $("previous-page").addEventListener("click", () => { state.page -= 1; draw(); });
  $("next-page").addEventListener("click", () => { state.page += 1; draw(); });
  window.addEventListener("hashchange", route);
  head();
  refresh();
  route();
})();
