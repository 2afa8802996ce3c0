// Looks at a report in a real browser.
// Usage: CHROMIUM=browser node check.mjs REPORT.html [--expected FILE] [--screenshots FOLDER] [--open-within MS]
// --expected: JSON, [[budget in bytes, type file that the command line writes for it], …]. Prints what it measured as JSON;
// exit code 1 where something is not as it should be.
import assert from "node:assert/strict";
import { mkdtempSync, readFileSync, rmSync } from "node:fs";
import { createRequire } from "node:module";
import { tmpdir } from "node:os";
import { join, resolve } from "node:path";
import { pathToFileURL } from "node:url";
import { chromium } from "playwright-core";

const [report, ...rest] = process.argv.slice(2);
const option = (name) => (rest.includes(name) ? rest[rest.indexOf(name) + 1] : null);
const expected = option("--expected") ? JSON.parse(readFileSync(option("--expected"), "utf8")) : [];
const screenshots = option("--screenshots"), openWithin = Number(option("--open-within") ?? 0);
const axe = readFileSync(createRequire(import.meta.url).resolve("axe-core/axe.min.js"), "utf8");
const address = pathToFileURL(resolve(report)).href;
const measured = { bytes: readFileSync(report).length };

const profile = mkdtempSync(join(tmpdir(), "cerebellum-browser-"));
const context = await chromium.launchPersistentContext(profile, {
  executablePath: process.env.CHROMIUM,
  headless: true,
  viewport: { width: 1280, height: 900 },
  reducedMotion: "reduce",
  args: ["--no-sandbox", "--disable-gpu", "--disable-quic", "--no-first-run", "--disable-background-networking", "--disable-component-update", "--disable-sync"],
});
const problems = [];

async function open(settings = {}) {
  const page = await context.newPage();
  page.setDefaultTimeout(120_000);
  page.on("console", (message) => ["error", "warning"].includes(message.type()) && problems.push(`console: ${message.text()}`));
  page.on("pageerror", (error) => problems.push(`script: ${error.message}`));
  page.on("request", (request) => !/^(file|blob|data):/.test(request.url()) && problems.push(`request: ${request.url()}`));
  await page.emulateMedia({ colorScheme: settings.colorScheme ?? "light" });
  if (settings.viewport) await page.setViewportSize(settings.viewport);
  await page.goto(address, { waitUntil: "load" });
  return page;
}

const checks = {
  async "opens quickly"(page) {
    // The least of three: what the page takes, not what else the machine does.
    const times = [];
    for (let i = 0; i < 3; ++i) {
      await page.reload({ waitUntil: "load" });
      times.push(await page.evaluate(async () => {
        await new Promise((done) => requestAnimationFrame(() => requestAnimationFrame(done)));
        return performance.now();
      }));
    }
    measured.open_ms = Math.min(...times);
    measured.drawn_ms = await page.evaluate(() => performance.getEntriesByName("report-drawn")[0].startTime);
    if (openWithin > 0) assert.ok(measured.open_ms < openWithin, `opened in ${measured.open_ms} ms, wanted less than ${openWithin}`);
    assert.ok(measured.bytes < 3_000_000, `${measured.bytes} bytes are too many`);
  },

  async "has its sections and figures"(page) {
    for (const id of ["summary", "frontier", "budget", "damage", "ranking", "provenance"]) assert.equal(await page.locator(`section#${id}`).count(), 1, id);
    assert.ok((await page.locator("#frontier figure svg path").count()) > 0, "no frontier");
    assert.equal(await page.locator("td[data-tensor]").count(), await page.evaluate(() => cerebellum.report.damages.size), "one cell for each measured tensor");
  },

  async "the slider changes the recipe"(page) {
    const slider = page.locator("#budget-slider"), file = page.locator("#type-file");
    const before = await file.inputValue();
    await slider.focus();
    await page.keyboard.press("PageUp");
    await page.waitForFunction((old) => document.getElementById("type-file").value !== old, before);
    const larger = await page.evaluate(() => Number(document.getElementById("budget-slider").value));
    const taken = await file.inputValue();
    await page.keyboard.press("Home");
    await page.waitForFunction((old) => document.getElementById("type-file").value !== old, taken);
    assert.ok(larger > (await page.evaluate(() => Number(document.getElementById("budget-slider").value))));
    assert.match(await page.locator("#commands").textContent(), /cerebellum allocate .* --size \d+/);
    assert.match(await slider.getAttribute("aria-valuetext"), /bits per weight/);
  },

  async "a size can be written"(page) {
    const field = page.locator("#budget-field"), alert = page.locator("#budget-problem");
    await field.fill("much");
    await field.press("Enter");
    assert.match(await alert.textContent(), /4\.25bpw/);
    await field.fill("1");
    await field.press("Enter");
    assert.match(await alert.textContent(), /smallest possible file/);
    await field.fill("5bpw");
    await field.press("Enter");
    assert.equal(await alert.textContent(), "");
    const weights = await page.evaluate(() => cerebellum.report.json.model.weights);
    assert.equal((await field.inputValue()).replace(/\D/g, ""), String(Math.floor((5 * weights) / 8)));
  },

  async "allocates as the command line does"(page) {
    const started = performance.now();
    const differing = await page.evaluate((list) => list.filter(([budget, types]) => cerebellum.typeFile(cerebellum.allocate(budget).types) !== types).map(([budget]) => budget), expected);
    assert.deepEqual(differing, [], "budgets whose recipes differ");
    measured.budgets = expected.length;
    if (expected.length > 0) measured.ms_per_budget = (performance.now() - started) / expected.length;
    for (const [budget, types] of expected.slice(0, 10)) {
      await page.locator("#budget-field").fill(String(budget));
      await page.locator("#budget-field").press("Enter");
      assert.equal(await page.locator("#type-file").inputValue(), types, `type file for ${budget}`);
    }
  },

  async "tables sort"(page) {
    const table = page.locator("#ranking table.sortable");
    const damages = () => page.evaluate(() => {
      const { report } = cerebellum, type = Number(document.querySelector("#ranking select").value);
      const byName = new Map(report.tensors.map((t, i) => [t.name, i]));
      return [...document.querySelectorAll("#ranking tbody tr")].map((row) => report.damage(byName.get(row.cells[0].textContent), type).kld);
    });
    const header = table.getByRole("button", { name: /^KLD/ });
    const isSorted = (values, sign) => values.every((v, i) => i === 0 || sign * (v - values[i - 1]) >= 0);
    assert.ok(isSorted(await damages(), -1), "largest damage first");
    await header.click();
    assert.ok(isSorted(await damages(), 1), "smallest damage first");
    assert.equal(await table.locator("th[aria-sort]").getAttribute("aria-sort"), "ascending");
    await table.getByRole("button", { name: /^tensor/ }).press("Enter");
    const names = await table.locator("tbody th").allTextContents();
    assert.deepEqual(names, [...names].sort((a, b) => a.localeCompare(b, "en", { numeric: true })));
    await page.locator("#ranking-filter").fill("ffn_down");
    assert.ok((await table.locator("tbody th").allTextContents()).every((name) => name.includes("ffn_down")));
    await page.locator("#ranking-filter").fill("");
  },

  async "the heat map shows types, tiers and the mix"(page) {
    const labels = () => page.locator("td[data-tensor]").evaluateAll((cells) => cells.map((cell) => cell.getAttribute("aria-label")));
    const before = await labels();
    const types = await page.locator("#heat-type option").evaluateAll((options) => options.map((o) => o.value));
    await page.locator("#heat-type").selectOption(types.at(-1));
    assert.notDeepEqual(await labels(), before, "another type, other figures");
    await page.locator("#heat-view").selectOption("chosen");
    const mix = await page.evaluate(() => [...document.querySelectorAll("td[data-tensor]")].every((cell) => {
      const { report } = cerebellum, tensor = Number(cell.dataset.tensor);
      return document.getElementById("type-file").value.includes(`${report.tensors[tensor].pattern}${cell.getAttribute("aria-label").split(", ")[1]}\n`);
    }));
    assert.ok(mix, "the chosen types are those of the type file");
    await page.locator("#heat-view").selectOption("one");
    await page.locator("td[data-tensor]").first().hover();
    assert.match(await page.locator("#tip").textContent(), /95 %/);
    assert.equal(await page.locator("#tip .error-bar").count(), 1);
    await page.mouse.move(5, 5);
  },

  async "the keyboard does everything"(page) {
    const grid = page.locator("#heat-map");
    await grid.locator('td[tabindex="0"]').focus();
    const at = () => page.evaluate(() => document.activeElement.dataset.tensor);
    const first = await at();
    await page.keyboard.press("ArrowDown");
    const below = await at();
    assert.notEqual(below, first);
    assert.ok(await page.locator("#tip").isVisible(), "the focused cell shows its figures");
    await page.keyboard.press("Enter");
    assert.equal(await page.locator("#curve-title").textContent(), await page.evaluate((i) => cerebellum.report.tensors[i].name, below));
    await page.keyboard.press("ArrowUp");
    assert.equal(await at(), first);
    await page.keyboard.press("Escape");
    assert.ok(await page.locator("#tip").isHidden());
    // From the top of the page the tab key comes by the slider.
    await page.evaluate(() => document.activeElement.blur());
    let found = false;
    for (let i = 0; i < 60 && !found; ++i) {
      await page.keyboard.press("Tab");
      found = await page.evaluate(() => document.activeElement.id === "budget-slider");
    }
    assert.ok(found, "the slider cannot be reached by the tab key");
  },

  async "passes an accessibility check"(page) {
    await page.evaluate(axe);
    for (const [scheme, width] of [["light", 1280], ["dark", 1280], ["light", 420]]) {
      await page.emulateMedia({ colorScheme: scheme });
      await page.setViewportSize({ width, height: 900 });
      const { violations, passes } = await page.evaluate(() => axe.run(document, { resultTypes: ["violations", "passes"] }));
      assert.deepEqual(violations.map((v) => `${v.id}: ${v.nodes.slice(0, 3).map((n) => n.html.slice(0, 160)).join(" | ")}`), [], `${scheme}, ${width} pixels`);
      measured.axe_rules = passes.length;
    }
    await page.setViewportSize({ width: 1280, height: 900 });
    await page.emulateMedia({ colorScheme: "light" });
  },

  async "prints"(page) {
    await page.emulateMedia({ media: "print" });
    assert.ok(await page.locator("#budget-slider").isHidden());
    assert.ok(await page.locator("#heat-map").isVisible());
    const pdf = await page.pdf({ format: "A4", path: screenshots ? join(screenshots, "print.pdf") : undefined, printBackground: true });
    assert.ok(pdf.length > 20_000);
    await page.emulateMedia({ media: "screen" });
  },
};

let failed = 0;
try {
  const page = await open();
  for (const [name, check] of Object.entries(checks)) {
    try {
      await check(page);
      console.error(`ok      ${name}`);
    } catch (error) {
      ++failed;
      console.error(`FAILED  ${name}: ${error.message}`);
    }
  }
  if (screenshots)
    for (const [name, settings] of Object.entries({ light: {}, dark: { colorScheme: "dark" }, narrow: { viewport: { width: 420, height: 900 } } })) {
      const shot = await open(settings);
      await shot.waitForTimeout(300);
      await shot.screenshot({ path: join(screenshots, `${name}.png`), fullPage: true });
      for (const id of ["frontier", "budget", "damage"]) await shot.locator(`section#${id}`).screenshot({ path: join(screenshots, `${name}-${id}.png`) });
      await shot.close();
    }
} finally {
  await context.close();
  rmSync(profile, { recursive: true, force: true });
}
for (const problem of problems) console.error(`FAILED  ${problem}`);
console.log(JSON.stringify(measured));
process.exit(failed + problems.length > 0 ? 1 : 0);
