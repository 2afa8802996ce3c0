import * as Plot from "@observablehq/plot";
import { formatBytes, formatDamage } from "./format.js";
import { el } from "./dom.js";

const style = { background: "none", fontFamily: "inherit", fontSize: "12px", overflow: "visible" };
const OURS = "var(--accent)", STOCK = "var(--stock)", QUIET = "var(--muted)", LINE = "var(--line-strong)";
/** A mark that is drawn only where there is something to draw. */
const when = (condition, mark) => (condition ? mark() : null);
const tip = { fill: "var(--panel)", stroke: "var(--line-strong)", fontSize: 12, lineHeight: 1.3 };

/** Powers of ten only, where there are several; D3 would write 10⁻³ as "0.001" and "1m". */
const logTicks = (value) => {
  const [digits, exponent] = value.toExponential(0).split("e");
  if (digits !== "1") return "";
  return Number(exponent) >= -4 && Number(exponent) <= 3 ? String(Number(value.toPrecision(1))) : formatDamage(value);
};
const logAxis = (label, extra = {}) => ({ type: "log", label, tickFormat: logTicks, ticks: 5, labelArrow: "none", ...extra });

/** A figure that is redrawn when its width changes. `draw(width)` returns a plot. */
export function responsive(draw, description) {
  const figure = el("figure", { class: "chart", role: "img", "aria-label": description });
  let width = 0;
  const redraw = () => {
    const plot = draw(Math.max(320, width || 800));
    // The figure is one image to whoever cannot see it; its data stand in a table.
    plot.setAttribute("aria-hidden", "true");
    figure.replaceChildren(plot);
  };
  new ResizeObserver(([entry]) => {
    const now = Math.round(entry.contentRect.width);
    if (now === width || now === 0) return;
    width = now;
    requestAnimationFrame(redraw); // not within the observer, which would observe it
  }).observe(figure);
  return { element: figure, redraw: () => width && redraw() };
}

/** Damage over size: the predicted frontier, stock mixes, what was measured, and where the slider stands. */
export function frontierChart(report, getBudget) {
  const unit = report.frontier.at(-1).bytes > 2e9 ? 1e9 : 1e6, unitName = unit === 1e9 ? "GB" : "MB";
  const predict = (sum) => report.calibrated(sum)?.mean ?? sum;
  const positive = report.frontier.filter((point) => point.cost > 0);
  const thin = Math.max(1, Math.floor(positive.length / 400));
  const line = report.inKld ? positive.filter((_, i) => i % thin === 0 || i === positive.length - 1)
    .map(({ bytes, cost }) => ({ bytes: bytes / unit, kld: predict(cost), error: report.calibrated(cost)?.error ?? null })) : [];
  const files = (report.result?.files ?? []).filter((f) => f.name !== "source" && f.measured_by !== "predicted" && f.kld?.mean > 0 && f.bytes < 0.9 * report.json.model.bytes)
    .map((f) => ({ name: f.name, bytes: f.bytes / unit, kld: f.kld.mean, low: Math.max(f.kld.mean - 1.96 * f.kld.error, f.kld.mean / 4), high: f.kld.mean + 1.96 * f.kld.error, error: f.kld.error, ours: f.name === "cerebellum" }));
  const known = new Set(files.map((f) => f.name));
  const presets = report.json.presets.filter((p) => p.kld > 0 && !known.has(p.name)).map((p) => ({ name: p.name, bytes: p.bytes / unit, kld: predict(p.kld) }));
  const all = [...files, ...presets].map((p) => p.kld);
  const from = report.smallestBytes / unit;
  // Nobody asks what is far beyond the largest stock mix.
  const lowest = Math.min(...all, predict(report.frontier[0].cost) / 300) / 2;
  const visible = line.filter((p) => p.kld >= lowest);
  const to = Math.max(...files.map((f) => f.bytes), ...presets.filter((p) => p.kld >= lowest).map((p) => p.bytes), visible.at(-1)?.bytes ?? from) * 1.02;
  const described = (p, how) => `${p.name}\n${formatBytes(p.bytes * unit)} (${report.bitsPerWeight(p.bytes * unit).toFixed(2)} bpw)\nKLD ${formatDamage(p.kld)}${p.error ? ` ± ${formatDamage(p.error)}` : ""}, ${how}`;
  return responsive((width) => {
    const budget = getBudget() / unit;
    return Plot.plot({
      width, height: Math.min(460, Math.max(300, width * 0.5)), marginLeft: 64, marginRight: 20, marginBottom: 44, marginTop: 24, style,
      x: { label: `size of the file, ${unitName}`, labelArrow: "none", domain: [from - (to - from) * 0.02, to], grid: false, nice: false },
      y: logAxis("KLD, nats per token", { grid: true, domain: [lowest, Math.max(...all, ...line.map((p) => p.kld)) * 1.3] }),
      marks: [
        when(visible.some((p) => p.error), () => Plot.areaY(visible, { x: "bytes", y1: (p) => Math.max(lowest, p.kld - 1.96 * p.error), y2: (p) => p.kld + 1.96 * p.error, fill: OURS, fillOpacity: 0.13, clip: true })),
        Plot.line(visible, { x: "bytes", y: "kld", stroke: OURS, strokeWidth: 2, clip: true }),
        when(budget >= from && budget <= to, () => [Plot.ruleX([budget], { stroke: QUIET, strokeDasharray: "3 3" }), Plot.text([budget], { x: (d) => d, text: () => "slider", frameAnchor: "top", dy: -14, fill: QUIET })]),
        Plot.dot(presets, { x: "bytes", y: "kld", r: 3.5, stroke: STOCK, strokeWidth: 1.5, fill: "var(--page)" }),
        Plot.ruleX(files, { x: "bytes", y1: "low", y2: "high", stroke: (d) => (d.ours ? OURS : STOCK), strokeWidth: 1.5 }),
        Plot.dot(files, { x: "bytes", y: "kld", r: (d) => (d.ours ? 6 : 4), fill: (d) => (d.ours ? OURS : STOCK), stroke: "var(--page)", strokeWidth: 1 }),
        Plot.text(spread([...presets, ...files.filter((f) => !f.ours)], width, to - from), { x: "bytes", y: "kld", text: "name", dx: 7, dy: -7, textAnchor: "start", fill: "var(--text-soft)", fontSize: 11 }),
        Plot.text(files.filter((f) => f.ours), { x: "bytes", y: "kld", text: () => "cerebellum", dx: -9, dy: 12, textAnchor: "end", fill: OURS, fontWeight: 600, fontSize: 13 }),
        Plot.tip([...presets.map((p) => ({ ...p, how: "predicted" })), ...files.map((p) => ({ ...p, how: "measured" }))], Plot.pointer({ x: "bytes", y: "kld", title: (p) => described(p, p.how), ...tip })),
      ],
    });
  }, "Damage over size of the file: the predicted frontier falls with size; stock mixes lie on or above it. The tables of this page hold the figures.");
}

/** Those whose label has room to the right, smallest first. */
function spread(points, width, span) {
  const kept = [];
  for (const point of [...points].sort((a, b) => a.bytes - b.bytes)) {
    const near = kept.find((other) => ((point.bytes - other.bytes) / span) * width < 62 && Math.abs(Math.log(point.kld / other.kld)) < 0.13);
    if (!near) kept.push(point);
  }
  return kept;
}

/** One tensor's damage over bits, with intervals; the chosen type has a ring. */
export function curveChart(report, tensor, chosen) {
  const points = [...(report.damages.get(tensor)?.values() ?? [])].filter((p) => p.kld > 0)
    .map((p) => ({ ...p, name: report.typeName(p.type), bits: report.types[p.type].bits, low: Math.max(p.lower, p.kld / 30) }));
  const most = Math.max(...points.map((p) => p.bits)), least = Math.min(...points.map((p) => p.bits));
  return (width) => Plot.plot({
    width, height: 280, marginLeft: 64, marginBottom: 42, marginTop: 20, marginRight: 24, style,
    x: { label: "bits per weight", labelArrow: "none", type: "log", ticks: [1.5, 2, 3, 4, 5, 6, 8, 16].filter((bits) => bits >= least && bits <= most), tickFormat: String, nice: false, inset: 12 },
    y: logAxis("KLD, nats per token", { grid: true }),
    marks: [
      Plot.line(points.filter((p) => p.on_curve).sort((a, b) => a.bits - b.bits), { x: "bits", y: "fitted", stroke: LINE, strokeWidth: 1.5 }),
      Plot.ruleX(points, { x: "bits", y1: "low", y2: "upper", stroke: (p) => (p.full ? OURS : STOCK), strokeWidth: 1.5 }),
      Plot.dot(points, { x: "bits", y: "kld", r: 3.5, fill: (p) => (p.full ? OURS : "var(--page)"), stroke: (p) => (p.full ? OURS : STOCK), strokeWidth: 1.5 }),
      Plot.dot(points.filter((p) => p.type === chosen), { x: "bits", y: "kld", r: 8, stroke: "var(--text)", strokeWidth: 2 }),
      Plot.text(points.filter((p) => p.type === chosen), { x: "bits", y: "kld", text: "name", dx: 12, dy: -10, textAnchor: "start", fontWeight: 600, fill: "var(--text)" }),
      Plot.tip(points, Plot.pointer({ x: "bits", y: "kld", title: (p) => `${p.name} (${p.bits.toFixed(2)} bits)\nKLD ${formatDamage(p.kld)}\n95 %: ${formatDamage(p.lower)} to ${formatDamage(p.upper)}\n${p.full ? "full" : "fast"} tier`, ...tip })),
    ],
  });
}

/** Whole mixes: the sum of what their tensors do alone against what they were measured to do. */
export function wholesChart(report) {
  const rows = report.json.wholes.filter((w) => w.sum > 0 && w.kld.mean > 0)
    .map((w) => ({ ...w, mean: w.kld.mean, low: Math.max(w.kld.mean - 1.96 * w.kld.error, w.kld.mean / 3), high: w.kld.mean + 1.96 * w.kld.error, ours: w.kind === "recipe" }));
  const values = rows.flatMap((r) => [r.sum, r.mean]);
  const domain = [Math.min(...values) / 1.4, Math.max(...values) * 1.4];
  const curve = report.json.calibration.filter(([sum]) => sum >= domain[0] && sum <= domain[1]).map(([sum, mean, error]) => ({ sum, mean, error }));
  return responsive((width) => {
    const size = Math.min(width, 560);
    return Plot.plot({
      width: size, height: size * 0.82, marginLeft: 64, marginBottom: 44, marginTop: 20, marginRight: 24, style,
      x: logAxis("predicted: sum of single damages, nats per token", { domain, grid: true }),
      y: logAxis("measured", { domain, grid: true }),
      marks: [
        Plot.line([{ v: domain[0] }, { v: domain[1] }], { x: "v", y: "v", stroke: QUIET, strokeDasharray: "4 4" }),
        when(curve.length > 1, () => Plot.areaY(curve, { x: "sum", y1: (d) => Math.max(domain[0], d.mean - 1.96 * d.error), y2: (d) => d.mean + 1.96 * d.error, fill: OURS, fillOpacity: 0.1, clip: true })),
        when(curve.length > 1, () => Plot.line(curve, { x: "sum", y: "mean", stroke: OURS, strokeWidth: 1.5, clip: true })),
        Plot.ruleX(rows, { x: "sum", y1: "low", y2: "high", stroke: (d) => (d.ours ? OURS : STOCK) }),
        Plot.dot(rows, { x: "sum", y: "mean", r: 4, fill: (d) => (d.ours ? OURS : STOCK), stroke: "var(--page)" }),
        Plot.tip(rows, Plot.pointer({ x: "sum", y: "mean", title: (d) => `${d.name ?? (d.ours ? "a recipe of ours" : "another mix")}, ${formatBytes(d.bytes)}\npredicted ${formatDamage(d.sum)}\nmeasured ${formatDamage(d.mean)} ± ${formatDamage(d.kld.error)}`, ...tip })),
      ],
    });
  }, "Measured against predicted damage of whole mixes; points on the dashed line would be predicted exactly. The table below holds the figures.");
}

/** Ratios of what changes do together and one by one, with intervals. */
export function interactionsChart(report) {
  const rows = report.json.interactions.filter((r) => r.ratio.mean > 0)
    .map((r) => ({ ...r, value: r.ratio.mean, low: Math.max(0, r.ratio.mean - 1.96 * (r.ratio.error ?? 0)), high: r.ratio.mean + 1.96 * (r.ratio.error ?? 0) }))
    .sort((a, b) => a.value - b.value);
  const kinds = ["pair", "layer", "ladder"].filter((kind) => rows.some((r) => r.kind === kind));
  for (const kind of kinds) rows.filter((r) => r.kind === kind).forEach((row, i, of) => (row.rank = (i + 0.5) / of.length));
  const top = Math.max(1.2, ...rows.map((r) => Math.min(r.high, 2 * r.value)));
  return responsive((width) => Plot.plot({
    width, height: 60 + 110 * kinds.length, marginLeft: 64, marginRight: 20, marginBottom: 44, style,
    x: { label: "together / sum of each alone", labelArrow: "none", domain: [Math.min(0.8, ...rows.map((r) => r.low)), top], grid: true },
    y: { axis: null, domain: [0, 1] }, fy: { label: null, domain: kinds },
    marks: [
      Plot.ruleX([1], { stroke: QUIET, strokeDasharray: "4 4" }),
      Plot.ruleY(rows, { fy: "kind", y: "rank", x1: "low", x2: "high", stroke: STOCK, clip: true }),
      Plot.dot(rows, { fy: "kind", y: "rank", x: "value", r: 3, fill: (r) => (r.low > 1 ? "var(--bad)" : r.high < 1 ? OURS : STOCK) }),
      Plot.tip(rows, Plot.pointer({ fy: "kind", y: "rank", x: "value", title: (r) => `${r.name}\nratio ${r.value.toFixed(3)} ± ${(r.ratio.error ?? 0).toFixed(3)}\ntogether ${formatDamage(r.kld.mean)}, alone ${formatDamage(r.parts)}`, ...tip })),
    ],
  }), "Ratios of the damage of several changes together to the sum of each alone. The table below holds the figures.");
}
