// The solver of cerebellum/allocate/knapsack.cpp, operation by operation: the same doubles in the same order, hence the same
// choice for every budget (tests/web compares them). How it works is explained there; keep the two in step.
// Bytes are whole numbers below 2^53 and exact as doubles.

const LABELS = 4_000_000; // KnapsackLimits::labels

class PreciseSum {
  high = 0;
  low = 0;
  add(value) {
    const sum = this.high + value;
    const rounded = sum - this.high;
    this.low += this.high - (sum - rounded) + (value - rounded);
    this.high = sum;
  }
  value() {
    return this.high + this.low;
  }
}

/** Undominated options in rising bytes and strictly falling cost; equals keep the first. */
function undominated(options) {
  const order = options.map((_, i) => i);
  order.sort((a, b) => options[a].bytes - options[b].bytes || options[a].cost - options[b].cost || a - b);
  const smallest = options[order[0]].bytes;
  const items = [];
  for (const i of order)
    if (items.length === 0 || options[i].cost < items.at(-1).cost)
      items.push({ bytes: options[i].bytes - smallest, cost: options[i].cost, index: i });
  return items;
}

function gcd(a, b) {
  while (b !== 0) [a, b] = [b, a % b];
  return a;
}

/** Appends the steps of the lower convex hull of items in rising bytes and falling cost. */
function appendHull(items, group, steps) {
  const slope = (a, b) => (items[b].cost - items[a].cost) / (items[b].bytes - items[a].bytes);
  const hull = [];
  for (let i = 0; i < items.length; ++i) {
    while (hull.length >= 2 && slope(hull.at(-2), hull.at(-1)) >= slope(hull.at(-1), i)) hull.pop();
    hull.push(i);
  }
  for (let i = 1; i < hull.length; ++i) {
    const from = items[hull[i - 1]], to = items[hull[i]];
    steps.push({ slope: slope(hull[i - 1], hull[i]), bytes: to.bytes - from.bytes, cost: to.cost - from.cost, group, item: hull[i] });
  }
}

function sortSteps(steps) {
  steps.sort((a, b) => a.slope - b.slope || a.group - b.group || a.item - b.item);
}

/** The linear relaxation of a set of groups: the least cost at most x bytes can be had for. */
class Relaxation {
  constructor(core, sortedSteps) {
    this.core = core;
    this.steps = sortedSteps;
    this.open = core.map(() => true);
    this.rebuild();
  }
  close(position) {
    this.open[position] = false;
    this.steps = this.steps.filter((step) => step.group !== position);
    this.rebuild();
  }
  smallestBytes() {
    return this.bytes[0];
  }
  rewind() {
    this.cursor = this.bytes.length - 1;
  }
  /** Value at x, for calls with falling x after rewind(). */
  at(x) {
    while (this.cursor > 0 && this.bytes[this.cursor] > x) --this.cursor;
    if (this.cursor + 1 === this.bytes.length) return this.cost[this.cursor];
    return this.cost[this.cursor] + this.steps[this.cursor].slope * (x - this.bytes[this.cursor]);
  }
  rebuild() {
    this.bytes = [0];
    this.cost = [0];
    for (let i = 0; i < this.core.length; ++i) {
      if (!this.open[i]) continue;
      this.bytes[0] += this.core[i].items[0].bytes;
      this.cost[0] += this.core[i].items[0].cost;
    }
    for (const step of this.steps) {
      this.bytes.push(this.bytes.at(-1) + step.bytes);
      this.cost.push(this.cost.at(-1) + step.cost);
    }
    this.cursor = 0;
  }
}

/** Partial assignments, as differences from the base solution, and where each came from. */
class Labels {
  constructor(capacity) {
    this.length = 0;
    this.bytes = new Float64Array(capacity);
    this.cost = new Float64Array(capacity);
    this.parent = new Uint32Array(capacity);
    this.item = new Uint32Array(capacity);
  }
  push(bytes, cost, parent, item) {
    if (this.length === this.bytes.length)
      for (const name of ["bytes", "cost", "parent", "item"]) {
        const larger = new this[name].constructor(2 * this.length);
        larger.set(this[name]);
        this[name] = larger;
      }
    this.bytes[this.length] = bytes;
    this.cost[this.length] = cost;
    this.parent[this.length] = parent;
    this.item[this.length++] = item;
  }
  copy(from, to) {
    for (const name of ["bytes", "cost", "parent", "item"]) this[name][to] = this[name][from];
  }
}

class Solver {
  constructor(groups, budget) {
    this.options = groups;
    this.excluded = 0;
    let smallest = 0;
    for (const options of groups) smallest += options.reduce((least, option) => Math.min(least, option.bytes), Infinity);
    this.smallest = smallest;
    if (smallest > budget) return;
    const spare = budget - smallest;
    let divisor = 0, most = 0;
    this.groups = groups.map((options) => {
      const items = undominated(options);
      while (items.at(-1).bytes > spare) items.pop();
      for (const item of items) divisor = gcd(divisor, item.bytes);
      most += items.at(-1).bytes;
      return items;
    });
    if (divisor === 0) divisor = 1;
    for (const items of this.groups) for (const item of items) item.bytes /= divisor;
    this.budget = Math.floor(Math.min(spare, most) / divisor);
  }

  solve() {
    if (this.findBase()) {
      this.best = this.base;
      return true;
    }
    this.findGreedy();
    return this.search();
  }

  findBase() {
    const steps = [];
    this.groups.forEach((items, g) => appendHull(items, g, steps));
    sortSteps(steps);
    this.base = this.groups.map(() => 0);
    this.slack = this.budget;
    this.lambda = 0;
    for (const step of steps) {
      if (step.bytes > this.slack) {
        this.lambda = -step.slope;
        break;
      }
      this.slack -= step.bytes;
      this.base[step.group] = step.item;
    }
    const bound = new PreciseSum();
    let scale = 0;
    this.groups.forEach((items, g) => {
      let least = Infinity;
      const base = items[this.base[g]];
      for (const item of items) least = Math.min(least, item.cost + this.lambda * (item.bytes - base.bytes));
      bound.add(least);
      scale += Math.abs(base.cost);
    });
    const waste = this.lambda * this.slack;
    bound.add(-waste);
    this.lagrangian = bound.value();
    this.tolerance = 1e-15 * (scale + waste);
    return waste <= this.tolerance;
  }

  bytesOf(items) {
    return items.reduce((total, item, g) => total + this.groups[g][item].bytes, 0);
  }

  excessOf(items) {
    const total = new PreciseSum();
    items.forEach((item, g) => total.add(this.groups[g][item].cost));
    total.add(-this.lagrangian);
    return total.value();
  }

  findGreedy() {
    this.best = [...this.base];
    let slack = this.slack;
    for (let round = 0; round < 64; ++round) {
      let bestChange = 0, bestGroup = 0, bestItem = 0;
      for (let g = 0; g < this.groups.length; ++g) {
        const now = this.groups[g][this.best[g]];
        for (let i = this.best[g] + 1; i < this.groups[g].length; ++i) {
          if (this.groups[g][i].bytes - now.bytes > slack) break;
          const change = this.groups[g][i].cost - now.cost;
          if (change < bestChange) {
            bestChange = change;
            bestGroup = g;
            bestItem = i;
          }
        }
      }
      if (bestChange === 0) break;
      slack -= this.groups[bestGroup][bestItem].bytes - this.groups[bestGroup][this.best[bestGroup]].bytes;
      this.best[bestGroup] = bestItem;
    }
  }

  penalty(g, item) {
    const base = this.groups[g][this.base[g]];
    return Math.max(0, item.cost - base.cost + this.lambda * (item.bytes - base.bytes));
  }

  search() {
    let excess = this.excessOf(this.best);
    const penalties = [];
    this.groups.forEach((items, g) =>
      items.forEach((item, i) => {
        if (i === this.base[g]) return;
        const p = this.penalty(g, item);
        if (p > 0 && p < excess) penalties.push(p);
      }),
    );
    let delta = excess;
    const firstCore = 12;
    if (penalties.length > firstCore) delta = penalties.sort((a, b) => a - b)[firstCore];
    let proved = false;
    for (const labels of [Math.floor(LABELS / 32), LABELS]) {
      while (!proved) {
        delta = Math.min(delta, excess);
        const outcome = this.searchBelow(delta, labels, false);
        if (outcome === "too many") break;
        proved = outcome === "found" || delta >= excess;
        if (outcome === "nothing") this.excluded = delta;
        delta *= 2;
      }
      if (proved) return true;
      const tooWide = delta;
      for (; ; delta *= 4) {
        delta = Math.min(delta, excess);
        if (this.searchBelow(delta, labels, true) === "found" || delta >= excess) break;
      }
      excess = this.excessOf(this.best);
      if (excess <= this.excluded + this.tolerance) return true;
      delta = Math.min(tooWide, excess);
    }
    return delta < excess ? false : this.searchBelow(delta, LABELS, false) !== "too many";
  }

  searchBelow(delta, maxLabels, coarse) {
    const core = [];
    const limit = delta * (1 + 1e-12) + this.tolerance;
    this.groups.forEach((all, g) => {
      const group = { group: g, items: [], effect: Infinity };
      const base = all[this.base[g]];
      all.forEach((item, i) => {
        const p = this.penalty(g, item);
        if (i !== this.base[g] && p > limit) return;
        if (i !== this.base[g]) group.effect = Math.min(group.effect, p);
        group.items.push({ bytes: item.bytes - base.bytes, cost: item.cost - base.cost, index: i });
      });
      if (group.items.length > 1) core.push(group);
    });
    core.sort((a, b) => b.effect - a.effect); // stable
    this.core = core;
    const steps = [];
    core.forEach((group, i) => appendHull(group.items, i, steps));
    sortSteps(steps);

    const halves = [0, 1].map((side) => ({ positions: core.map((_, i) => i).filter((i) => i % 2 === side), stages: [] }));
    const costLimit = limit - this.lambda * this.slack;
    const perList = coarse ? Math.max(64, Math.floor(maxLabels / (core.length + 1))) : 0;
    let labels = 0;
    for (const half of halves) {
      const open = new Relaxation(core, steps);
      half.labels = new Labels(1);
      half.labels.push(0, 0, 0, 0);
      for (const position of half.positions) {
        open.close(position);
        half.labels = this.extend(half.labels, core[position], open, costLimit, perList, coarse ? Infinity : maxLabels - labels);
        half.stages.push(half.labels);
        labels += half.labels.length;
        if (!coarse && labels >= maxLabels) return "too many";
        if (half.labels.length === 0) return "nothing";
      }
    }
    return this.join(halves, costLimit) ? "found" : "nothing";
  }

  extend(labels, group, open, costLimit, perList, maxLabels) {
    const next = new Labels(Math.max(16, 2 * labels.length));
    const items = group.items;
    const heads = new Uint32Array(items.length);
    let cheapest = Infinity;
    open.rewind();
    for (;;) {
      let from = -1, bytes = 0, cost = 0;
      for (let i = 0; i < items.length; ++i) {
        if (heads[i] === labels.length) continue;
        const candidateBytes = labels.bytes[heads[i]] + items[i].bytes, candidateCost = labels.cost[heads[i]] + items[i].cost;
        if (from >= 0 && (candidateBytes > bytes || (candidateBytes === bytes && candidateCost >= cost))) continue;
        bytes = candidateBytes;
        cost = candidateCost;
        from = i;
      }
      if (from < 0) break;
      const parent = heads[from]++;
      if (cost >= cheapest) continue;
      const left = this.slack - bytes;
      if (left < open.smallestBytes()) break;
      cheapest = cost;
      if (cost + open.at(left) > costLimit) continue;
      next.push(bytes, cost, parent, from);
      if (next.length > maxLabels) break;
    }
    if (perList > 0 && next.length > perList) this.thin(next, perList);
    return next;
  }

  thin(labels, count) {
    const first = labels.bytes[0];
    const width = Math.floor((labels.bytes[labels.length - 1] - first) / count) + 1;
    if (width === 1) return;
    const price = (i) => labels.cost[i] + this.lambda * labels.bytes[i];
    const range = (i) => Math.floor((labels.bytes[i] - first) / width);
    let kept = 0;
    for (let i = 0; i < labels.length; ++i) {
      const same = kept > 0 && range(kept - 1) === range(i);
      if (same && price(i) >= price(kept - 1)) continue;
      labels.copy(i, same ? kept - 1 : kept++);
    }
    labels.length = kept;
  }

  join(halves, costLimit) {
    const first = halves[0].labels, second = halves[1].labels;
    let pair = null, bestBytes = 0, bestCost = costLimit;
    let j = second.length;
    for (let i = 0; i < first.length; ++i) {
      while (j > 0 && first.bytes[i] + second.bytes[j - 1] > this.slack) --j;
      if (j === 0) break;
      const bytes = first.bytes[i] + second.bytes[j - 1], cost = first.cost[i] + second.cost[j - 1];
      if (cost > bestCost || (pair && cost === bestCost && bytes >= bestBytes)) continue;
      bestBytes = bytes;
      bestCost = cost;
      pair = [i, j - 1];
    }
    if (!pair) return false;
    const items = [...this.base];
    halves.forEach((half, side) => {
      let label = pair[side];
      for (let stage = half.positions.length; stage-- > 0; ) {
        const group = this.core[half.positions[stage]];
        items[group.group] = group.items[half.stages[stage].item[label]].index;
        label = half.stages[stage].parent[label];
      }
    });
    const change = this.excessOf(items) - this.excessOf(this.best);
    if (change < 0 || (change === 0 && this.bytesOf(items) < this.bytesOf(this.best))) this.best = items;
    return true;
  }
}

/**
 * Exactly one option of every group, sum of bytes at most `budget`, sum of costs as small as possible.
 * @param {{bytes: number, cost: number}[][]} groups
 * @returns {{choice: number[], bytes: number, cost: number, exact: boolean} | null} null where even the smallest does not fit
 */
export function solveKnapsack(groups, budget) {
  const solver = new Solver(groups, budget);
  if (solver.smallest > budget) return null;
  const exact = solver.solve();
  const choice = solver.best.map((item, g) => solver.groups[g][item].index);
  const cost = new PreciseSum();
  choice.forEach((option, g) => cost.add(groups[g][option].cost));
  return { choice, bytes: choice.reduce((total, option, g) => total + groups[g][option].bytes, 0), cost: cost.value(), exact };
}
