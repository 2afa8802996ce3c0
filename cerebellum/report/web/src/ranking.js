// The sensitivity ranking.
import { el, select } from "./dom.js";
import { formatBytes, formatDamage } from "./format.js";
import { sortableTable } from "./table.js";

const ORDER = { sacred: 3, sensitive: 2, safe: 1, demotable: 0 };

export function ranking(report, budget) {
  const types = report.measuredTypes;
  const crushed = [...report.classes.values()].map((c) => c.type);
  const count = (type) => crushed.filter((t) => t === type).length;
  let type = crushed.length > 0 ? crushed.reduce((a, b) => (count(b) > count(a) ? b : a)) : types[0];
  let filter = "";

  const rowsOf = () => [...report.damages].map(([tensor, points]) => ({ tensor, ...report.tensors[tensor], point: points.get(type), known: report.classes.get(tensor), saved: report.tensors[tensor].weights * (report.types[report.tensors[tensor].type].bits - report.types[type].bits) / 8 }))
    .filter((row) => row.point && row.name.toLowerCase().includes(filter));
  let low = 0, high = 1;
  const part = (value) => Math.min(1, Math.max(0, Math.log(Math.max(value, low) / low) / Math.log(high / low || 2)));
  function rows() {
    const found = rowsOf();
    const positive = found.flatMap((r) => [r.point.kld, r.point.upper]).filter((v) => v > 0);
    low = Math.min(...found.map((r) => (r.point.lower > 0 ? Math.max(r.point.lower, r.point.kld / 5) : r.point.kld / 2)).filter((v) => v > 0));
    high = Math.max(...positive);
    return found;
  }
  const bar = ({ point }) => el("div", { class: "interval", title: `${formatDamage(point.lower)} to ${formatDamage(point.upper)}` },
    el("i", { class: point.full ? "range full" : "range", style: { left: `${100 * part(point.lower)}%`, width: `${Math.max(0.6, 100 * (part(point.upper) - part(point.lower)))}%` } }),
    el("i", { class: point.full ? "point full" : "point", style: { left: `${100 * part(point.kld)}%` } }));
  const first = rows();
  const table = sortableTable([
    { title: "tensor", value: (r) => r.name, cell: (r) => r.name },
    { title: "class", value: (r) => (r.known ? ORDER[r.known.class] : null), cell: (r) => (r.known ? el("span", { class: `class ${r.known.class}` }, r.known.class) : "–"), note: "shown against its share of the damage, when crushed" },
    { title: "KLD", numeric: true, value: (r) => r.point.kld, cell: (r) => formatDamage(r.point.kld) },
    { title: "95 % interval", value: (r) => r.point.upper, cell: bar },
    { title: "from", numeric: true, value: (r) => r.point.lower, cell: (r) => formatDamage(r.point.lower) },
    { title: "to", numeric: true, value: (r) => r.point.upper, cell: (r) => formatDamage(r.point.upper) },
    { title: "per MB saved", numeric: true, value: (r) => (r.saved > 0 ? r.point.kld / r.saved : null), cell: (r) => (r.saved > 0 ? formatDamage((1e6 * r.point.kld) / r.saved) : "–"), note: "KLD for each megabyte that this type saves" },
    { title: "tier", value: (r) => (r.point.full ? "full" : "fast"), cell: (r) => (r.point.full ? "full" : "fast") },
    { title: "chosen", value: (r) => report.types[budget.mix.types[r.tensor]].bits, cell: (r) => report.typeName(budget.mix.types[r.tensor]) },
    { title: "weights", numeric: true, value: (r) => r.weights, cell: (r) => formatBytes(r.weights).replace(" B", "").replace("kB", "k").replace("MB", "M").replace("GB", "G") },
  ], first, { caption: "Damage of every tensor by itself", sort: [2, true], limit: 20 });
  const update = () => table.update(rows());
  const typeChoice = select("In type", types.map((t) => [String(t), `${report.typeName(t)} (${report.types[t].bits.toFixed(2)} bits)`]), String(type), (value) => {
    type = Number(value);
    update();
  });
  const search = el("input", { type: "search", id: "ranking-filter", placeholder: "ffn_down", oninput: () => {
    filter = search.value.trim().toLowerCase();
    update();
  } });
  budget.listeners.push(update);
  const counts = Object.keys(ORDER).map((name) => [name, [...report.classes.values()].filter((c) => c.class === name).length]).filter(([, n]) => n > 0);
  return el("div", {},
    counts.length > 0 && el("p", { class: "counts" }, counts.map(([name, n]) => [el("span", { class: `class ${name}` }, name), ` ${n}  `])),
    el("div", { class: "controls no-print" }, typeChoice.element, el("label", { class: "field", for: "ranking-filter" }, el("span", {}, "Only names with"), search)),
    table.element);
}
