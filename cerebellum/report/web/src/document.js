// The report's document (docs/report.md), with what the page looks up often.
import { solveKnapsack } from "./knapsack.js";

export function readDocument() {
  return new Report(JSON.parse(document.getElementById("report-document").textContent));
}

export class Report {
  constructor(json) {
    this.json = json;
    this.types = json.types;
    this.tensors = json.tensors;
    const columns = json.damage_columns;
    /** Per tensor, where it was measured: type → figures by name, in rising bits. */
    this.damages = new Map(json.damages.map(({ tensor, points }) => [
      tensor,
      new Map(points.map((row) => [row[0], Object.fromEntries(row.map((value, i) => [columns[i], value]))])),
    ]));
    this.domains = json.domains.map(({ name, damages }) => ({
      name,
      damages: new Map(damages.map(({ tensor, points }) => [tensor, new Map(points.map(([type, kld, lower, upper]) => [type, { kld, lower, upper }]))])),
    }));
    this.classes = new Map(json.classes.map((entry) => [entry.tensor, entry]));
    const { fixed_bytes, groups } = json.allocation;
    this.fixedBytes = fixed_bytes;
    this.groups = groups.map(({ tensors, choices }) => ({ tensors, choices: choices.map(([type, bytes, cost]) => ({ type, bytes, cost })) }));
    this.smallestBytes = fixed_bytes + this.groups.reduce((sum, { choices }) => sum + Math.min(...choices.map((c) => c.bytes)), 0);
    this.frontier = makeFrontier(this.groups, fixed_bytes);
    this.inKld = json.allocation.objective === "kld";
    this.delivered = json.recipe && { types: json.recipe.types, bytes: json.recipe.file_bytes };
    this.result = json.results.map((r) => r.content).find((content) => Array.isArray(content.files) && content.delivered !== undefined) ?? null;
  }

  typeName = (type) => this.types[type].name;
  bitsPerWeight = (bytes) => (8 * bytes) / this.json.model.weights;
  get measuredTypes() {
    const found = new Set();
    for (const points of this.damages.values()) for (const type of points.keys()) found.add(type);
    return [...found].sort((a, b) => this.types[a].bits - this.types[b].bits || this.typeName(a).localeCompare(this.typeName(b)));
  }
  damage(tensor, type) {
    return this.damages.get(tensor)?.get(type);
  }

  /** The command line's answer for a budget of so many bytes; null below the smallest file. */
  allocate(budget) {
    const solution = solveKnapsack(this.groups.map((g) => g.choices), budget - this.fixedBytes);
    if (!solution) return null;
    const types = this.tensors.map((tensor) => tensor.type);
    this.groups.forEach((group, g) => {
      for (const tensor of group.tensors) types[tensor] = group.choices[solution.choice[g]].type;
    });
    return { types, bytes: this.fixedBytes + solution.bytes, cost: solution.cost, exact: solution.exact };
  }

  /** Predicted KLD of a mix: the sum of single damages; null where a type was not measured. */
  sumOf(types) {
    let sum = 0;
    for (const [tensor, points] of this.damages) {
      if (types[tensor] === this.tensors[tensor].type) continue;
      const point = points.get(types[tensor]);
      if (!point) return null;
      sum += point.fitted;
    }
    return sum;
  }

  /** After calibration by whole recipes: interpolated in logarithms between the document's rows; null without any. */
  calibrated(sum) {
    const rows = this.json.calibration;
    if (rows.length === 0 || !(sum > 0)) return null;
    const at = rows.findIndex((row) => row[0] >= sum);
    if (at <= 0) {
      const nearest = at === 0 ? rows[0] : rows.at(-1), factor = sum / nearest[0];
      return { mean: nearest[1] * factor, error: nearest[2] * factor };
    }
    const [a, b] = [rows[at - 1], rows[at]];
    const part = Math.log(sum / a[0]) / Math.log(b[0] / a[0]);
    const between = (i) => a[i] * (b[i] / a[i]) ** part;
    return { mean: between(1), error: between(2) };
  }

  /** Text for llama-quantize --tensor-type-file, as the command line writes it. */
  typeFile(types) {
    // Lines by tensor name, in the order of bytes.
    this.byName ??= this.tensors.map((_, i) => i).sort((a, b) => (this.tensors[a].name < this.tensors[b].name ? -1 : 1));
    return this.byName.map((i) => `${this.tensors[i].pattern}${this.typeName(types[i])}\n`).join("");
  }

  /** Types in rising bits with their tensors and bytes, of the tensors that have a choice. */
  composition(types) {
    const parts = new Map();
    this.groups.forEach((group) => {
      const choice = group.choices.find((c) => c.type === types[group.tensors[0]]);
      const part = parts.get(types[group.tensors[0]]) ?? { tensors: 0, bytes: 0 };
      part.tensors += group.tensors.length;
      part.bytes += choice ? choice.bytes : 0;
      parts.set(types[group.tensors[0]], part);
    });
    return [...parts].map(([type, part]) => ({ type, ...part })).sort((a, b) => this.types[a.type].bits - this.types[b.type].bits);
  }
}

/** The lower convex hull of everything that can be had, as solve_frontier of allocate/frontier.cpp. */
function makeFrontier(groups, fixedBytes) {
  let bytes = fixedBytes, cost = 0;
  const steps = [];
  for (const { choices } of groups) {
    const hull = [];
    const slope = (a, b) => (b.cost - a.cost) / (b.bytes - a.bytes);
    for (const choice of [...choices].sort((a, b) => a.bytes - b.bytes || a.cost - b.cost)) {
      if (hull.length > 0 && choice.cost >= hull.at(-1).cost) continue;
      while (hull.length >= 2 && slope(hull.at(-2), hull.at(-1)) >= slope(hull.at(-1), choice)) hull.pop();
      hull.push(choice);
    }
    bytes += hull[0].bytes;
    cost += hull[0].cost;
    for (let i = 1; i < hull.length; ++i) steps.push({ slope: slope(hull[i - 1], hull[i]), bytes: hull[i].bytes - hull[i - 1].bytes, cost: hull[i].cost - hull[i - 1].cost });
  }
  const points = [{ bytes, cost }];
  for (const step of steps.sort((a, b) => a.slope - b.slope)) points.push({ bytes: (bytes += step.bytes), cost: (cost += step.cost) });
  return points;
}
