import { Budget, budgetBar, recipePanel } from "./budget.js";
import { frontierChart, interactionsChart, wholesChart } from "./charts.js";
import { readDocument } from "./document.js";
import { el, section, tile } from "./dom.js";
import { formatBytes, formatCount, formatDamage, formatPercent, formatWithError, plural } from "./format.js";
import { heatMap } from "./heatmap.js";
import { ranking } from "./ranking.js";
import { benchmarkTable, comparisonTable, otherResults } from "./results.js";
import { sortableTable } from "./table.js";

const report = readDocument();
const { json, result } = report;
const budget = new Budget(report);
const sourceName = json.model.name ?? "the source";

function summary() {
  const delivered = result?.files.find((f) => f.name === result.delivered);
  const source = result?.files.find((f) => f.name === "source") ?? result?.files[0];
  const stock = (result?.files ?? []).filter((f) => f.fits && f.name !== "cerebellum" && f !== source && f.measured_by !== "predicted" && f.kld.mean > 0);
  const best = stock.reduce((a, b) => (a === null || b.kld.mean < a.kld.mean ? b : a), null);
  const tiles = [];
  const lead = [];
  if (delivered) {
    const title = result.output ?? "the delivered file";
    lead.push(el("h1", {}, title), el("p", { class: "lead" },
      delivered.name === "cerebellum"
        ? `${sourceName} in ${formatBytes(delivered.bytes)}, ${delivered.bpw.toFixed(2)} bits per weight, the type of every tensor chosen from measured damage.`
        : `${sourceName} in ${formatBytes(delivered.bytes)}, ${delivered.bpw.toFixed(2)} bits per weight. The stock mix ${delivered.name} did less damage than the mix of our own, so it was delivered.`));
    tiles.push(tile("KLD from the source", formatDamage(delivered.kld.mean), `± ${formatDamage(delivered.kld.error)} nats per token, on held-out text`, true));
    if (best && delivered.name === "cerebellum") {
      const change = 1 - delivered.kld.mean / best.kld.mean;
      tiles.push(tile("Against the best stock mix that fits", formatPercent(Math.abs(change), 0), `${change >= 0 ? "less" : "more"} KLD than ${best.name} (${formatBytes(best.bytes)})`, true));
    }
    tiles.push(tile("Size", formatBytes(delivered.bytes), result.budget_bytes ? `${formatPercent(delivered.bytes / result.budget_bytes, 2)} of ${formatCount(result.budget_bytes)} bytes` : `${formatPercent(delivered.bytes / json.model.bytes)} of the source`));
    tiles.push(tile("Perplexity", delivered.perplexity.mean.toFixed(2), source ? `source ${source.perplexity.mean.toFixed(2)}; ± ${delivered.perplexity.error.toFixed(2)}` : ""));
    tiles.push(tile("Same top token", formatPercent(delivered.top1_agree.mean, 1), "as the source"));
  } else {
    lead.push(el("h1", {}, sourceName), el("p", { class: "lead" }, "What each tensor loses in each quantization type, and what fits into how many bytes."));
    tiles.push(tile("Tensors measured", String(report.damages.size), `of ${report.tensors.length}`, true), tile("Types", String(report.measuredTypes.length)),
      tile("Weights", formatBytes(json.model.weights).replace(" B", "").replace("kB", "thousand").replace("MB", "million").replace("GB", "billion"), formatBytes(json.model.bytes)),
      tile("Smallest possible file", formatBytes(report.smallestBytes), `${report.bitsPerWeight(report.smallestBytes).toFixed(2)} bits per weight`));
  }
  return el("section", { id: "summary", "aria-label": "Summary" }, lead, el("div", { class: "tiles" }, tiles));
}

function frontier() {
  const chart = frontierChart(report, () => budget.bytes);
  budget.listeners.push(chart.redraw);
  const legend = el("p", { class: "key soft" }, el("i", { class: "line" }), json.calibration.length > 0 ? "predicted for our files, after calibration by whole recipes (95 %) " : "predicted for our files ", el("i", { class: "dot full" }), "ours, measured ", el("i", { class: "dot stock" }), "stock mixes, measured ", el("i", { class: "dot fast" }), "stock mixes, predicted");
  const predicted = json.presets.length > 0 && el("details", {}, el("summary", {}, "Stock mixes: predicted, against ours of the same size"), sortableTable([
    { title: "mix", value: (p) => p.name, cell: (p) => p.name },
    { title: "size", numeric: true, value: (p) => p.bytes, cell: (p) => formatBytes(p.bytes) },
    { title: "bpw", numeric: true, value: (p) => p.bytes, cell: (p) => report.bitsPerWeight(p.bytes).toFixed(2) },
    { title: "predicted KLD", numeric: true, value: (p) => p.kld, cell: (p) => formatDamage(p.kld) },
    { title: "ours at this size", numeric: true, value: (p) => oursAt(p.bytes), cell: (p) => formatDamage(oursAt(p.bytes)) },
    { title: "unmeasured tensors", numeric: true, value: (p) => p.unmeasured, cell: (p) => String(p.unmeasured) },
  ], json.presets, { caption: "Sums of single damages, nats per token", sort: [1, false] }).element);
  return section("frontier", "Damage over size", chart.element, legend, result && comparisonTable(result), predicted);
}
function oursAt(bytes) {
  const point = report.frontier.findLast((p) => p.bytes <= bytes);
  return point ? point.cost : null;
}

function workbench() {
  const notes = [
    json.label && `${json.label}.`,
    !json.allocation.exact_bytes && "Header and tokenizer are not counted: neither the model nor a recipe was given to this report.",
    json.allocation.max_types > 0 && `The slider does not obey the limit of ${json.allocation.max_types} distinct types that the delivered file has.`,
    json.allocation.choices && `Choices that are allocated from: ${json.allocation.choices}`,
    json.allocation.constraints && `Constraints that hold at every budget: ${json.allocation.constraints}`,
    !report.inKld && `Allocated for the objective ${json.allocation.objective}; damage is shown as KLD all the same.`,
    json.allocation.profile && `Domains count as in the profile ${json.allocation.profile}.`,
    ...(json.unusable ?? []),
  ].filter(Boolean);
  return el("div", { class: "workbench" }, budgetBar(report, budget),
    section("budget", "What a budget buys",
      el("p", { class: "intro" }, "Move the slider, or write a size: the page allocates as the command line does, exactly, from the same curves."),
      notes.map((note) => el("p", { class: "notice" }, note)), recipePanel(report, budget)),
    el("section", { id: "damage", "aria-labelledby": "heat-title" }, el("h2", { id: "heat-title" }, "Damage by layer and role"), heatMap(report, budget)));
}

function together() {
  const parts = [];
  if (json.interactions.length > 0) {
    const chart = interactionsChart(report);
    parts.push(section("interactions", "What changes do together",
      el("p", { class: "intro" }, "KLD of several changes at once, divided by the sum of what each does alone. Above 1: worse together."), chart.element,
      sortableTable([
        { title: "together", value: (r) => r.name, cell: (r) => r.name },
        { title: "kind", value: (r) => r.kind, cell: (r) => r.kind },
        { title: "tensors", numeric: true, value: (r) => r.tensors, cell: (r) => String(r.tensors) },
        { title: "sum of each alone", numeric: true, value: (r) => r.parts, cell: (r) => formatDamage(r.parts) },
        { title: "KLD", numeric: true, value: (r) => r.kld.mean, cell: (r) => formatWithError(r.kld) },
        { title: "ratio", numeric: true, value: (r) => r.ratio.mean, cell: (r) => formatWithError(r.ratio, (v) => v.toFixed(3)) },
      ], json.interactions, { caption: "Interactions; ± one standard error", sort: [5, true], limit: 12 }).element));
  }
  if (json.wholes.some((w) => w.sum > 0)) {
    const chart = wholesChart(report);
    parts.push(section("predictions", "Predicted and measured",
      el("p", { class: "intro" }, "Whole mixes against the sum of what their tensors do alone. Recipes of ours calibrate the predictions (line and 95 % band); the other mixes test them."),
      el("div", { class: "columns chart-table" }, chart.element, sortableTable([
        { title: "mix", value: (w) => w.name ?? w.kind, cell: (w) => w.name ?? (w.kind === "recipe" ? "ours" : "another") },
        { title: "size", numeric: true, value: (w) => w.bytes, cell: (w) => formatBytes(w.bytes) },
        { title: "predicted", numeric: true, value: (w) => w.sum, cell: (w) => formatDamage(w.sum) },
        { title: "measured", numeric: true, value: (w) => w.kld.mean, cell: (w) => formatWithError(w.kld) },
        { title: "ratio", numeric: true, value: (w) => w.kld.mean / w.sum, cell: (w) => (w.sum > 0 ? (w.kld.mean / w.sum).toFixed(3) : "–") },
      ], json.wholes, { caption: "Whole mixes, nats per token", sort: [1, false], limit: 14 }).element)));
  }
  return parts;
}

function benchmarks() {
  const table = benchmarkTable(report), others = otherResults(report);
  return table || others.length > 0 ? section("benchmarks", "Evaluations", table, others) : null;
}

function provenance() {
  const list = (entries) => el("dl", { class: "facts" }, entries.filter(([, value]) => value !== null && value !== undefined && value !== "").flatMap(([key, value]) => [el("dt", {}, key), el("dd", {}, String(value))]));
  const identity = json.journal.identity;
  const made = json.recipe?.provenance ?? {};
  return section("provenance", "Where this comes from",
    el("div", { class: "columns" },
      el("div", {}, el("h3", {}, "Measurements"), list([["journal", json.journal.file], ["SHA-256 of the figures", json.journal.sha256], ["importance matrix", json.journal.imatrix], ["null floor, nats per token", json.journal.null_floor_kld], ...Object.entries(identity)])),
      el("div", {}, el("h3", {}, "Source"), list([["file", json.model.name], ["architecture", json.model.architecture], ["fingerprint", json.model.fingerprint], ["weights", formatCount(json.model.weights)], ["bytes", formatCount(json.model.bytes)]]),
        json.recipe && [el("h3", {}, "Recipe"), list([["SHA-256", json.recipe.sha256], ["bytes", formatCount(json.recipe.file_bytes)], ...Object.entries(made).filter(([key]) => !key.startsWith("measured."))])])),
    result?.text && el("p", { class: "soft" }, `Text: ${result.text}. Damage counted from ${result.reference ?? "the source"}.`),
    el("p", { class: "soft" }, `Made by Cerebellum ${json.cerebellum} with llama.cpp ${json["llama.cpp"]}. ${plural(json.results.length, "stored result")}: ${json.results.map((r) => r.file).join(", ") || "none"}.`),
    el("details", { class: "no-print" }, el("summary", {}, "Licences of what this page is made with"), el("pre", {}, document.getElementById("licences").textContent)));
}

function themeButton() {
  const button = document.getElementById("theme");
  const order = ["auto", "light", "dark"];
  let theme = "auto";
  const show = () => {
    document.documentElement.dataset.theme = theme;
    button.textContent = { auto: "◐ Auto", light: "☀ Light", dark: "☾ Dark" }[theme];
    button.setAttribute("aria-label", `Colours: ${theme}`);
  };
  button.addEventListener("click", () => {
    theme = order[(order.indexOf(theme) + 1) % order.length];
    show();
  });
  show();
}

themeButton();
document.getElementById("main").replaceChildren(...[summary(), frontier(), workbench(), section("ranking", "Sensitivity ranking", el("p", { class: "intro" }, "Every tensor by itself in one type, all others as in the source: nats per token, with 95 % intervals."), ranking(report, budget)), together(), benchmarks(), provenance()].flat().filter(Boolean));
const sections = [...document.querySelectorAll("main section[id]")].filter((s) => s.id !== "summary");
document.querySelector("header nav").append(...sections.map((s) => el("a", { href: `#${s.id}` }, { frontier: "Size", budget: "Budget", damage: "Heat map", ranking: "Ranking", interactions: "Together", predictions: "Predictions", benchmarks: "Evaluations", provenance: "Provenance" }[s.id])));
document.querySelector("footer").textContent = "KLD: mean over scored positions of KL(source‖file) over the whole vocabulary, nats per token.";

// For tests, and for whoever opens the console: the page's allocator.
window.cerebellum = { allocate: (bytes) => report.allocate(bytes), typeFile: (types) => report.typeFile(types), report };
performance.mark("report-drawn");
