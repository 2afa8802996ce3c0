// Layer × role, one cell a tensor.
import { curveChart, responsive } from "./charts.js";
import { bitsStyle, damageGradient, damageStyle } from "./colours.js";
import { el, select } from "./dom.js";
import { formatBytes, formatCount, formatDamage, formatPercent, formatTiny } from "./format.js";

const VIEWS = [
  ["one", "damage in one type"],
  ["chosen-damage", "damage in the chosen types"],
  ["chosen", "chosen types"],
];
const FIGURES = {
  kld: { title: "KLD", unit: "nats per token", of: (p) => p.kld },
  top1: { title: "changed likeliest tokens", unit: "share", of: (p) => (p.top1 === null || p.top1 === undefined ? null : 1 - p.top1) },
  change: { title: "change at the block's end", unit: "relative energy", of: (p) => p.change },
};

export function heatMap(report, budget) {
  const types = report.measuredTypes;
  // Rows are roles in the order of first appearance, columns are blocks; what is in no block stands below.
  const blocks = [...new Set(report.tensors.filter((t, i) => t.block !== null && report.damages.has(i)).map((t) => t.block))].sort((a, b) => a - b);
  const roles = [...new Set(report.tensors.filter((t, i) => t.block !== null && report.damages.has(i)).map((t) => t.role))];
  const at = new Map(report.tensors.map((t, i) => [`${t.block} ${t.role}`, i]));
  const outside = report.tensors.map((_, i) => i).filter((i) => report.tensors[i].block === null && report.damages.has(i));
  const wide = blocks.length <= 16;

  const hasFast = [...report.damages.values()].some((points) => [...points.values()].some((p) => !p.full));
  const hasFull = [...report.damages.values()].some((points) => [...points.values()].some((p) => p.full));
  const hasChange = [...report.damages.values()].some((points) => [...points.values()].some((p) => p.change !== null));
  const nearest = (bits) => types.reduce((a, b) => (Math.abs(Math.log(report.types[b].bits / bits)) < Math.abs(Math.log(report.types[a].bits / bits)) ? b : a), types[0]);
  const state = { view: "one", type: nearest(2.6), figure: "kld", tier: "best", domain: "" };
  let pinned = [...report.damages.keys()].reduce((a, b) => ((report.damage(b, state.type)?.kld ?? -1) > (report.damage(a, state.type)?.kld ?? -1) ? b : a));

  const typeOf = (tensor) => (state.view === "one" ? state.type : budget.mix.types[tensor]);
  /** The figure of a tensor's cell, or null. */
  function pointOf(tensor) {
    const type = typeOf(tensor);
    const point = report.damage(tensor, type);
    if (!point) return null;
    if (state.tier !== "best" && Boolean(point.full) !== (state.tier === "full")) return null;
    if (state.domain === "") return point;
    const there = report.domains.find((d) => d.name === state.domain).damages.get(tensor)?.get(type);
    return there ? { ...point, ...there } : null;
  }

  const cells = new Map();
  const makeCell = (tensor) => {
    const cell = el("td", { role: "gridcell", tabindex: "-1", "data-tensor": tensor });
    cells.set(tensor, cell);
    return cell;
  };
  const grid = el("table", { class: wide ? "heat wide" : "heat", role: "grid", id: "heat-map", "aria-labelledby": "heat-title", "aria-describedby": "heat-help", style: { "--columns": String(blocks.length) } },
    el("thead", {}, el("tr", { role: "row" }, el("th", { scope: "col", role: "columnheader" }, "role \\ block"), blocks.map((b) => el("th", { scope: "col", role: "columnheader" }, wide || b % 5 === 0 ? String(b) : el("span", { class: "hidden" }, String(b)))))),
    el("tbody", {}, roles.map((role) => el("tr", { role: "row" }, el("th", { scope: "row", role: "rowheader" }, role), blocks.map((block) => {
      const tensor = at.get(`${block} ${role}`);
      return tensor !== undefined && report.damages.has(tensor) ? makeCell(tensor) : el("td", { role: "gridcell", class: "none", "aria-label": "none" });
    })))));
  const others = outside.length > 0 && el("table", { class: "heat wide outside", role: "grid", "aria-label": "Tensors outside of the blocks" },
    el("tbody", {}, outside.map((tensor) => el("tr", { role: "row" }, el("th", { scope: "row", role: "rowheader" }, report.tensors[tensor].role), makeCell(tensor)))));

  const legend = el("div", { class: "legend" });
  const detailTitle = el("h3", { id: "curve-title" });
  const detail = responsive((width) => curveChart(report, pinned, budget.mix.types[pinned])(width), "Damage of one tensor over bits per weight");
  const facts = el("dl", { class: "facts" });

  function describe(tensor) {
    const { name, weights, type: source } = report.tensors[tensor];
    const type = typeOf(tensor), point = pointOf(tensor), chosen = budget.mix.types[tensor], known = report.classes.get(tensor);
    const lines = [["shown type", report.typeName(type)]];
    if (point) {
      lines.push(["KLD", `${formatDamage(point.kld)} (95 %: ${formatDamage(point.lower)} to ${formatDamage(point.upper)})`]);
      lines.push(["measured", `${point.full ? "to the end of the model" : "in its block, times its gain"}, ${point.windows} windows${state.domain ? `, ${state.domain}` : ""}`]);
      if (point.delta_nll !== null) lines.push(["ΔNLL", `${formatDamage(point.delta_nll)} ± ${formatDamage(point.delta_nll_error)}`]);
      if (point.top1 !== null) lines.push(["same top token", formatPercent(point.top1, 2)]);
      if (!point.on_curve) lines.push(["note", "another type of no more bits does less damage"]);
    } else lines.push(["KLD", type === source ? "0: as in the source" : "not measured so"]);
    lines.push(["chosen", `${report.typeName(chosen)}`]);
    if (known) lines.push(["class", known.class]);
    lines.push(["weights", formatCount(weights)]);
    return { name, lines };
  }

  const tip = document.getElementById("tip");
  function showTip(tensor) {
    const { name, lines } = describe(tensor);
    const point = pointOf(tensor);
    const cell = cells.get(tensor).getBoundingClientRect();
    tip.replaceChildren(el("strong", {}, name), point ? errorBar(point) : "", el("dl", {}, lines.map(([key, value]) => [el("dt", {}, key), el("dd", {}, value)])));
    tip.hidden = false;
    const width = tip.offsetWidth, height = tip.offsetHeight;
    tip.style.left = `${Math.min(Math.max(8, cell.left + cell.width / 2 - width / 2), document.documentElement.clientWidth - width - 8)}px`;
    tip.style.top = `${cell.bottom + height + 12 > innerHeight && cell.top > height + 12 ? cell.top - height - 8 : cell.bottom + 8}px`;
  }
  const hideTip = () => (tip.hidden = true);

  /** Where the figure lies among all that are shown, with its interval, on the same logarithmic scale. */
  let scale = { low: 0, high: 1, part: () => 0 };
  function errorBar(point) {
    if (state.figure !== "kld" || state.view === "chosen") return "";
    const left = scale.part(Math.max(point.lower, 1e-300)), right = scale.part(point.upper), middle = scale.part(point.kld);
    return el("div", { class: "error-bar" }, el("i", { class: "range", style: { left: `${100 * left}%`, width: `${Math.max(1, 100 * (right - left))}%` } }), el("i", { class: "point", style: { left: `${100 * middle}%` } }));
  }

  function pin(tensor) {
    pinned = tensor;
    for (const [other, cell] of cells) cell.classList.toggle("pinned", other === tensor);
    const { name, lines } = describe(tensor);
    detailTitle.textContent = name;
    facts.replaceChildren(...lines.flatMap(([key, value]) => [el("dt", {}, key), el("dd", {}, value)]));
    detail.redraw();
  }

  function draw() {
    const figure = FIGURES[state.figure];
    const values = [];
    for (const tensor of cells.keys()) {
      const value = state.view === "chosen" ? null : (pointOf(tensor) && figure.of(pointOf(tensor)));
      if (value > 0) values.push(value);
    }
    const low = values.length ? Math.min(...values) : 1e-6, high = values.length ? Math.max(...values) : 1;
    scale = { low, high, part: (v) => (high > low ? Math.min(1, Math.max(0, Math.log(v / low) / Math.log(high / low))) : 0.5) };
    for (const [tensor, cell] of cells) {
      const type = typeOf(tensor), point = pointOf(tensor);
      const value = point ? figure.of(point) : null;
      const unmeasured = state.view !== "chosen" && (value === null || value === undefined);
      cell.className = [unmeasured ? "none" : "", tensor === pinned ? "pinned" : ""].join(" ").trim();
      cell.removeAttribute("style");
      if (state.view === "chosen") for (const [key, entry] of Object.entries(bitsStyle(report.types[type].bits))) cell.style.setProperty(key, entry);
      else if (!unmeasured) for (const [key, entry] of Object.entries(damageStyle(value > 0 ? scale.part(value) : 0))) cell.style.setProperty(key, entry);
      // What is seen is short, and drawn by the style sheet; the label says it in full.
      const seen = !cell.closest("table").classList.contains("wide") || unmeasured ? "" : state.view === "one" ? formatTiny(value) : report.typeName(type);
      cell.dataset.seen = seen;
      const spoken = unmeasured ? "not measured so" : state.view === "chosen" ? "" : `${figure.title} ${formatDamage(value)}${state.figure === "kld" ? `, 95 % from ${formatDamage(point.lower)} to ${formatDamage(point.upper)}` : ""}`;
      cell.setAttribute("aria-label", `${report.tensors[tensor].name}, ${report.typeName(type)}${spoken ? `: ${spoken}` : ""}`);
    }
    if (state.view === "chosen") {
      const used = [...new Set([...cells.keys()].map((t) => budget.mix.types[t]))].sort((a, b) => report.types[a].bits - report.types[b].bits);
      legend.replaceChildren(...used.map((type) => el("span", {}, el("i", { class: "swatch", style: bitsStyle(report.types[type].bits) }), report.typeName(type))));
    } else legend.replaceChildren(el("span", {}, formatDamage(low)), el("i", { class: "ramp", style: damageGradient }), el("span", {}, formatDamage(high)), el("span", { class: "soft" }, `${figure.title}, ${figure.unit}, logarithmic`));
    typeChoice.list.disabled = state.view !== "one";
    for (const other of [figureChoice, tierChoice, domainChoice]) if (other) other.list.disabled = state.view === "chosen";
    pin(pinned);
  }
  const choose = (key, number = false) => (value) => {
    state[key] = number ? Number(value) : value;
    draw();
  };
  const viewChoice = select("Show", VIEWS, state.view, choose("view"));
  const typeChoice = select("Type", types.map((t) => [String(t), `${report.typeName(t)} (${report.types[t].bits.toFixed(2)} bits)`]), String(state.type), choose("type", true));
  const figureChoice = select("Figure", Object.entries(FIGURES).filter(([key]) => key === "kld" || (key === "change" ? hasChange : hasFull)).map(([key, f]) => [key, f.title]), state.figure, choose("figure"));
  const tierChoice = select("Tier", [["best", "best figure"], hasFull && ["full", "full: to the end of the model"], hasFast && ["fast", "fast: block times gain"]].filter(Boolean), state.tier, choose("tier"));
  const domainChoice = report.domains.length > 0 && select("Domain", [["", "all text"], ...report.domains.map((d) => [d.name, d.name])], "", choose("domain"));
  viewChoice.list.id = "heat-view";
  typeChoice.list.id = "heat-type";

  // One stop for the tab key in each grid; arrows move within it.
  for (const table of [grid, others].filter(Boolean)) {
    const lines = [...table.tBodies[0].rows].map((row) => [...row.cells].filter((c) => c.tagName === "TD"));
    const first = lines.flat().find((cell) => cell.dataset.tensor !== undefined);
    if (first) first.tabIndex = 0;
    table.addEventListener("keydown", (event) => {
      const row = lines.findIndex((line) => line.includes(event.target)), column = row < 0 ? -1 : lines[row].indexOf(event.target);
      if (row < 0) return;
      const step = { ArrowLeft: [0, -1], ArrowRight: [0, 1], ArrowUp: [-1, 0], ArrowDown: [1, 0] }[event.key];
      let target = null;
      if (step) for (let [r, c] = [row + step[0], column + step[1]]; lines[r]?.[c] && !target; r += step[0], c += step[1]) target = lines[r][c].dataset.tensor !== undefined ? lines[r][c] : null;
      else if (event.key === "Home") target = lines[row].find((cell) => cell.dataset.tensor !== undefined);
      else if (event.key === "End") target = lines[row].findLast((cell) => cell.dataset.tensor !== undefined);
      else if (event.key === "Enter" || event.key === " ") pin(Number(event.target.dataset.tensor));
      else if (event.key === "Escape") return hideTip();
      else return;
      event.preventDefault();
      if (!target) return;
      lines.flat().forEach((cell) => (cell.tabIndex = -1));
      target.tabIndex = 0;
      target.focus();
    });
    const cellAt = (event) => event.target.closest("td[data-tensor]");
    table.addEventListener("focusin", (event) => cellAt(event)?.matches(":focus-visible") && showTip(Number(cellAt(event).dataset.tensor)));
    table.addEventListener("focusout", hideTip);
    table.addEventListener("mouseover", (event) => (cellAt(event) ? showTip(Number(cellAt(event).dataset.tensor)) : hideTip()));
    table.addEventListener("mouseleave", hideTip);
    table.addEventListener("click", (event) => cellAt(event) && pin(Number(cellAt(event).dataset.tensor)));
  }
  document.addEventListener("scroll", hideTip, { passive: true });
  budget.listeners.push(draw);
  draw();
  return el("div", {},
    el("div", { class: "controls no-print" }, viewChoice.element, typeChoice.element, figureChoice.element, tierChoice.element, domainChoice && domainChoice.element),
    legend,
    el("div", { class: "scroll heat-scroll" }, grid, others),
    el("p", { class: "soft no-print", id: "heat-help" }, "Point at a cell, or move with the arrow keys, for its figures; click it, or press Enter, to see the tensor's curve below."),
    el("div", { class: "columns curve" }, el("div", {}, detailTitle, detail.element, el("p", { class: "key soft" }, el("i", { class: "dot full" }), "full tier ", el("i", { class: "dot fast" }), "fast tier ", el("i", { class: "dot chosen" }), "chosen at this budget; bars are 95 % intervals, the line is the curve that is allocated by")), facts));
}
