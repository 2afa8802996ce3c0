// Stored results: quantize's comparison, evaluations of other kinds.
import { el } from "./dom.js";
import { formatBytes, formatDamage, formatPercent, formatWithError } from "./format.js";
import { sortableTable } from "./table.js";

const plain = (digits) => (value) => value.toFixed(digits);

/** quantize's and verify's comparison. */
export function comparisonTable(result) {
  const note = (f) => [f.name === result.delivered ? "delivered" : "", f.name !== "source" && !f.fits ? "over budget" : "", { replay: "replayed", predicted: "predicted" }[f.measured_by] ?? ""].filter(Boolean).join(", ");
  return sortableTable([
    { title: "file", value: (f) => f.name, cell: (f) => f.name },
    { title: "size", numeric: true, value: (f) => f.bytes, cell: (f) => formatBytes(f.bytes) },
    { title: "bpw", numeric: true, value: (f) => f.bpw, cell: (f) => f.bpw?.toFixed(2) ?? "–" },
    { title: "KLD", numeric: true, value: (f) => f.kld?.mean ?? null, cell: (f) => (f.kld ? (f.measured_by === "predicted" && f.predicted_at_least ? "≥ " : "") + formatWithError(f.kld) : "–") },
    { title: "perplexity", numeric: true, value: (f) => f.perplexity?.mean ?? null, cell: (f) => (f.perplexity ? formatWithError(f.perplexity, plain(3)) : "–") },
    { title: "ΔNLL", numeric: true, value: (f) => f.delta_nll?.mean ?? null, cell: (f) => (f.delta_nll ? formatWithError(f.delta_nll) : "–") },
    { title: "same top token", numeric: true, value: (f) => f.top1_agree?.mean ?? null, cell: (f) => (f.top1_agree ? formatPercent(f.top1_agree.mean, 2) : "–") },
    { title: "note", value: note, cell: note },
  ], result.files, { caption: "Measured on text that no choice was made on, or predicted where it is said; ± one standard error", sort: [1, false], rowClass: (f) => (f.name === result.delivered ? "ours" : null) }).element;
}

/** What an evaluation says, as {file, name, text, value} for each file and figure; empty for a result of another kind. */
function figuresOf(content) {
  const rows = [];
  const fileName = (entry) => entry?.file ?? "?";
  if (content.format === "cerebellum-eval-summary") {
    const metric = content.metrics[content.metric] ? content.metric : Object.keys(content.metrics)[0];
    const score = content.metrics[metric];
    if (score) {
      const how = [content.benchmark, content.mode === "chat" ? "chat" : "", content.shots ? `${content.shots}-shot` : "", content.temperature ? `at ${content.temperature}` : ""].filter(Boolean).join(" ");
      rows.push({ file: fileName(content.model), name: `${how} (${metric}, n = ${score.questions})`, value: score.score, text: `${(100 * score.score).toFixed(2)} [${score.interval95.map((v) => (100 * v).toFixed(2)).join(", ")}]` });
    }
  } else if (Array.isArray(content.contexts))
    for (const context of content.contexts) {
      if (!context.worked) continue;
      const place = `${content.slots} × ${context.context_per_slot} tokens`;
      rows.push({ file: fileName(content), name: `served tokens per second, ${place}`, value: context.tokens_per_second, text: context.tokens_per_second.toFixed(1) });
      rows.push({ file: fileName(content), name: `memory, ${place}`, value: context.peak_memory_bytes, text: formatBytes(context.peak_memory_bytes) });
    }
  else if (content.prompt_tokens !== undefined && Array.isArray(content.files))
    for (const entry of content.files)
      for (const [key, name] of [["prompt_per_second", "prompt tokens per second"], ["generation_per_second", "generated tokens per second"]])
        if (entry[key]?.figures?.length > 0) rows.push({ file: fileName(entry), name, value: entry[key].median, text: `${entry[key].median.toFixed(1)} ± ${entry[key].deviation.toFixed(1)}` });
  if (content.convention !== undefined && Array.isArray(content.files))
    for (const entry of content.files) {
      const place = `${content.convention === "llama-perplexity" ? "llama-perplexity" : "all positions"}, ${content.context} tokens`;
      const perplexity = typeof entry.perplexity === "number" ? { mean: entry.perplexity, error: entry.perplexity_error } : entry.perplexity;
      if (perplexity) rows.push({ file: fileName(entry), name: `perplexity (${place})`, value: perplexity.mean, text: formatWithError(perplexity, plain(4)) });
      if (entry.kld) rows.push({ file: fileName(entry), name: `KLD (${place})`, value: entry.kld.mean, text: formatWithError(entry.kld, formatDamage) });
    }
  return rows;
}

/** One row for each file, one column for each figure; null where no evaluation was given. */
export function benchmarkTable(report) {
  const figures = report.json.results.flatMap(({ content }) => (content === report.result ? [] : figuresOf(content)));
  if (figures.length === 0) return null;
  const names = [...new Set(figures.map((f) => f.name))], files = [...new Set(figures.map((f) => f.file))];
  const cell = (file, name) => figures.find((f) => f.file === file && f.name === name);
  return sortableTable([
    { title: "file", value: (file) => file, cell: (file) => file },
    ...names.map((name) => ({ title: name, numeric: true, value: (file) => cell(file, name)?.value ?? null, cell: (file) => cell(file, name)?.text ?? "–" })),
  ], files, { caption: "Evaluations; scores in per cent with 95 % intervals" }).element;
}

/** Results of kinds that this page has no table for. */
export function otherResults(report) {
  return report.json.results.filter(({ content }) => content !== report.result && figuresOf(content).length === 0)
    .map(({ file, content }) => el("details", {}, el("summary", {}, file), el("pre", {}, JSON.stringify(content, null, 1))));
}
