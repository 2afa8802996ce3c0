// Bundles the page and writes it as a C++ source.
// Usage: node build.mjs OUT.cpp   (in a folder with this one's files and node_modules)
import { build } from "esbuild";
import { existsSync, readFileSync, writeFileSync } from "node:fs";
import { join } from "node:path";

const output = process.argv[2];
const common = { bundle: true, minify: true, write: false, legalComments: "none", target: ["es2022"], charset: "utf8" };
const script = await build({ ...common, entryPoints: ["src/main.js"], format: "iife", metafile: true });
const style = await build({ ...common, entryPoints: ["src/style.css"], target: [] });

// What is bundled brings its licence along.
const packages = new Set();
for (const input of Object.keys(script.metafile.inputs)) {
  const found = input.match(/^(?:.*\/)?node_modules\/((?:@[^/]+\/)?[^/]+)\//);
  if (found) packages.add(found[1]);
}
const licences = [...packages].sort().map((name) => {
  const folder = join("node_modules", name);
  const { version, license } = JSON.parse(readFileSync(join(folder, "package.json"), "utf8"));
  const file = ["LICENSE", "LICENSE.md", "LICENSE.txt", "license"].map((f) => join(folder, f)).find(existsSync);
  return `${name} ${version} (${license})\n\n${file ? readFileSync(file, "utf8").trim() : ""}\n`;
});

// Replacement functions, since the texts may hold "$&".
const inScript = (text) => text.replaceAll("</script", "<\\/script").replaceAll("<!--", "<\\!--");
const page = readFileSync("src/page.html", "utf8")
  .replace("@REPORT_STYLE@", () => style.outputFiles[0].text.trim())
  .replace("@REPORT_SCRIPT@", () => inScript(script.outputFiles[0].text.trim()))
  .replace("@REPORT_LICENCES@", () => inScript(licences.join("\n\n")));

const lines = [];
const bytes = Buffer.from(page, "utf8");
for (let from = 0; from < bytes.length; from += 120) {
  let literal = "";
  for (const byte of bytes.subarray(from, from + 120)) {
    const c = String.fromCharCode(byte);
    if (c === '"' || c === "\\") literal += "\\" + c;
    else if (byte < 32 || byte > 126 || c === "?") literal += "\\" + byte.toString(8).padStart(3, "0");
    else literal += c;
  }
  lines.push(`    "${literal}"`);
}
writeFileSync(
  output,
  `// Written by report/web/build.mjs.\n#include "cerebellum/report/html_report.h"\n\nnamespace cerebellum {\n\n` +
    `std::string_view report_page() {\n    static constexpr char page[] =\n${lines.join("\n")};\n    return {page, sizeof(page) - 1};\n}\n\n}  // namespace cerebellum\n`,
);
