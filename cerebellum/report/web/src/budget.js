// The budget slider: allocates in the page what `cerebellum allocate` would.
import { bitsStyle } from "./colours.js";
import { announce, el, select, tile } from "./dom.js";
import { formatBytes, formatCount, formatDamage, formatPercent, formatWithError, parseSize, plural, shellWord } from "./format.js";

const STEPS = 1000;

/** Holds the budget and the mix of types that it leads to; tells its listeners when they change. */
export class Budget {
  listeners = [];
  constructor(report) {
    this.report = report;
    this.least = report.smallestBytes;
    // Beyond the last point of the frontier nothing gets better.
    this.most = Math.max(report.frontier.at(-1).bytes, report.delivered?.bytes ?? 0);
    if (report.delivered) this.show({ ...report.delivered, exact: true, delivered: true, cost: report.sumOf(report.delivered.types) }, report.delivered.bytes);
    else this.set(report.frontier[Math.floor(report.frontier.length / 2)].bytes);
  }
  set(bytes) {
    const started = performance.now();
    const mix = this.report.allocate(bytes);
    if (!mix) return false;
    this.show(mix, bytes);
    this.milliseconds = performance.now() - started;
    return true;
  }
  reset() {
    const { delivered } = this.report;
    this.show({ ...delivered, exact: true, delivered: true, cost: this.report.sumOf(delivered.types) }, delivered.bytes);
  }
  show(mix, bytes) {
    this.bytes = bytes;
    this.mix = mix;
    this.listeners.forEach((listener) => listener());
  }
}

export function budgetBar(report, budget) {
  const position = (bytes) => Math.round((STEPS * (bytes - budget.least)) / (budget.most - budget.least || 1));
  const bytesAt = (value) => Math.round(budget.least + (value / STEPS) * (budget.most - budget.least));
  let pending = 0;
  const slider = el("input", {
    type: "range", id: "budget-slider", min: 0, max: STEPS, step: 1, "aria-label": "Budget",
    oninput: () => {
      cancelAnimationFrame(pending);
      pending = requestAnimationFrame(() => budget.set(bytesAt(Number(slider.value))));
    },
  });
  const problem = el("span", { class: "problem", id: "budget-problem", role: "alert" });
  const field = el("input", {
    type: "text", id: "budget-field", inputmode: "decimal", autocomplete: "off", spellcheck: "false", size: 14, "aria-describedby": "budget-problem",
    onchange: () => {
      const bytes = parseSize(field.value, report.json.model.weights);
      if (bytes === null) problem.textContent = "Write 12GB, 11.5GiB, 4.25bpw or a number of bytes.";
      else if (!budget.set(bytes)) problem.textContent = `The smallest possible file has ${formatCount(budget.least)} bytes.`;
      else problem.textContent = "";
    },
    onkeydown: (event) => event.key === "Enter" && field.blur(),
  });
  const marks = el("div", { class: "marks", "aria-hidden": "true" });
  const mark = (bytes, kind, title) => bytes >= budget.least && bytes <= budget.most && marks.append(el("i", { class: kind, title, style: { left: `${(100 * position(bytes)) / STEPS}%` } }));
  for (const preset of report.json.presets) mark(preset.bytes, "stock", `${preset.name}: ${formatBytes(preset.bytes)}`);
  if (report.delivered) mark(report.delivered.bytes, "ours", "the delivered file");
  const stock = report.json.presets.filter((p) => p.bytes >= budget.least && p.bytes <= budget.most);
  const jump = stock.length > 0 && select("As large as", [["", "…"], ...stock.map((p) => [p.name, `${p.name} (${formatBytes(p.bytes)})`])], "", (name) => {
    const preset = stock.find((p) => p.name === name);
    if (preset) budget.set(preset.bytes);
    jump.list.value = "";
  });
  const back = report.delivered && el("button", { type: "button", id: "budget-reset", onclick: () => budget.reset() }, "Delivered file");
  const figures = el("div", { class: "figures" });
  const update = () => {
    slider.value = position(budget.bytes);
    const text = `${formatBytes(budget.bytes)}, ${report.bitsPerWeight(budget.mix.bytes).toFixed(2)} bits per weight`;
    slider.setAttribute("aria-valuetext", text);
    if (document.activeElement !== field) field.value = formatCount(budget.bytes);
    problem.textContent = "";
    const sum = report.sumOf(budget.mix.types);
    const whole = sum === null ? null : report.calibrated(sum);
    figures.replaceChildren(
      el("span", {}, el("b", {}, formatBytes(budget.mix.bytes)), ` ${formatCount(budget.mix.bytes)} bytes`),
      el("span", {}, el("b", {}, report.bitsPerWeight(budget.mix.bytes).toFixed(2)), " bpw"),
      el("span", {}, "predicted KLD ", el("b", {}, whole ? formatWithError(whole) : formatDamage(sum))),
      el("span", { class: "soft" }, budget.mix.delivered ? "the delivered file" : budget.mix.exact ? "proved optimal" : "not proved optimal"),
    );
    if (back) back.disabled = Boolean(budget.mix.delivered);
  };
  budget.listeners.push(update);
  update();
  return el("div", { class: "budget-bar", role: "group", "aria-label": "Budget" },
    el("div", { class: "slider" }, marks, slider),
    el("div", { class: "controls" }, el("label", { class: "field", for: "budget-field" }, el("span", {}, "Budget, bytes"), field), jump && jump.element, back, problem), figures);
}

/** What the budget buys: types, changes from the delivered file, and files to take along. */
export function recipePanel(report, budget) {
  const tiles = el("div", { class: "tiles" });
  const bar = el("div", { class: "composition", role: "img" });
  const body = el("tbody");
  const changes = el("details", {});
  const text = el("textarea", { id: "type-file", readonly: true, rows: 10, spellcheck: "false", "aria-label": "Type file for llama-quantize" });
  const commands = el("pre", { id: "commands", tabindex: "0", role: "region", "aria-label": "Commands" });
  const copied = (button, source) => async () => {
    try {
      await navigator.clipboard.writeText(source());
    } catch {
      // Not allowed, as for pages on a disk in some browsers.
      const scratch = el("textarea", { value: source(), class: "hidden" });
      document.body.append(scratch);
      scratch.select();
      document.execCommand("copy");
      scratch.remove();
    }
    announce("Copied");
    button.textContent = "Copied";
    setTimeout(() => (button.textContent = "Copy"), 1500);
  };
  const copyFile = el("button", { type: "button", id: "copy-type-file" }, "Copy");
  copyFile.addEventListener("click", copied(copyFile, () => text.value));
  const save = el("button", { type: "button", onclick: () => {
    const link = el("a", { href: URL.createObjectURL(new Blob([text.value], { type: "text/plain" })), download: `${stem()}.tensor-types.txt` });
    link.click();
    setTimeout(() => URL.revokeObjectURL(link.href), 1000);
  } }, "Save");
  const copyCommands = el("button", { type: "button" }, "Copy");
  copyCommands.addEventListener("click", copied(copyCommands, () => commands.textContent));
  const source = report.json.model.name ?? "SOURCE.gguf";
  const stem = () => `${source.replace(/\.gguf$/, "")}-${budget.mix.bytes}`;

  const update = () => {
    const { mix } = budget;
    const sum = report.sumOf(mix.types), whole = sum === null ? null : report.calibrated(sum);
    tiles.replaceChildren(
      tile("Size of the file", formatBytes(mix.bytes), report.json.allocation.exact_bytes ? `${formatCount(mix.bytes)} bytes, exact` : `${formatCount(mix.bytes)} bytes of tensor data`),
      tile("Bits per weight", report.bitsPerWeight(mix.bytes).toFixed(3), `${formatPercent(mix.bytes / report.json.model.bytes)} of the source`),
      tile("Predicted KLD", formatDamage(whole?.mean ?? sum), whole ? `± ${formatDamage(whole.error)}; ${formatDamage(sum)} as the sum of single damages` : "sum of single damages, nats per token", true),
    );
    const parts = report.composition(mix.types);
    const total = parts.reduce((all, part) => all + part.bytes, 0);
    bar.replaceChildren(...parts.filter((part) => part.bytes > 0).map((part) => el("div", { style: { ...bitsStyle(report.types[part.type].bits), flex: `${part.bytes / total} 0 0` }, title: `${report.typeName(part.type)}: ${formatBytes(part.bytes)}` }, part.bytes / total > 0.055 ? report.typeName(part.type) : "")));
    bar.setAttribute("aria-label", `Bytes by type: ${parts.map((part) => `${report.typeName(part.type)} ${formatPercent(part.bytes / total)}`).join(", ")}`);
    body.replaceChildren(...parts.map((part) => el("tr", {}, el("th", { scope: "row" }, el("i", { class: "swatch", style: bitsStyle(report.types[part.type].bits) }), report.typeName(part.type)), el("td", { class: "number" }, report.types[part.type].bits.toFixed(2)), el("td", { class: "number" }, String(part.tensors)), el("td", { class: "number" }, formatBytes(part.bytes)), el("td", { class: "number" }, formatPercent(part.bytes / total)))));
    const differing = report.delivered ? report.tensors.map((_, i) => i).filter((i) => mix.types[i] !== report.delivered.types[i]) : [];
    changes.hidden = differing.length === 0;
    changes.replaceChildren(el("summary", {}, `${plural(differing.length, "tensor")} differ${differing.length === 1 ? "s" : ""} from the delivered file`), el("ul", { class: "changes" }, differing.map((i) => el("li", {}, report.tensors[i].name, el("span", { class: "soft" }, ` ${report.typeName(report.delivered.types[i])} → ${report.typeName(mix.types[i])}`)))));
    text.value = report.typeFile(mix.types);
    const aim = [report.json.allocation.constraints, report.json.allocation.choices, report.inKld ? "" : `--objective ${report.json.allocation.objective}`, report.json.allocation.profile ? `--profile ${shellWord(report.json.allocation.profile)}` : ""].filter(Boolean).join(" ");
    const model = shellWord(source), named = (ending) => shellWord(`${stem()}${ending}`);
    commands.textContent =
      `cerebellum allocate ${model} --journal ${shellWord(report.json.journal.file)} --size ${budget.bytes}${aim ? ` ${aim}` : ""} -o ${named(".recipe.json")}\n` +
      `cerebellum build ${model} --recipe ${named(".recipe.json")} --imatrix ${named(".recipe.imatrix.gguf")} -o ${named(".gguf")}\n` +
      `# or with llama.cpp alone:\n` +
      `llama-quantize --imatrix ${named(".recipe.imatrix.gguf")} --tensor-type-file ${named(".tensor-types.txt")} ${model} ${named(".gguf")} Q8_0\n`;
  };
  budget.listeners.push(update);
  update();
  return el("div", {},
    tiles, bar,
    el("div", { class: "columns" },
      el("div", { class: "scroll", tabindex: "0", role: "region", "aria-label": "Types at this budget" }, el("table", {}, el("caption", {}, "Types at this budget"), el("thead", {}, el("tr", {}, ["type", "bits", "tensors", "bytes", "share"].map((t, i) => el("th", { scope: "col", class: i > 0 ? "number" : null }, t)))), body)),
      el("div", {}, el("div", { class: "caption-row" }, el("h3", {}, "Type file for llama-quantize"), copyFile, save), text)),
    changes,
    el("div", { class: "no-print" }, el("div", { class: "caption-row" }, el("h3", {}, "Commands for this budget"), copyCommands), commands));
}
