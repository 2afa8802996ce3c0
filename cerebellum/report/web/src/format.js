// Numbers as text, and the other way round.

const decimals = (value) => (value < 9.995 ? 2 : value < 99.95 ? 1 : 0);

/** As format_bytes of core/size.cpp: "2.89 MB". */
export function formatBytes(bytes) {
  const units = ["B", "kB", "MB", "GB", "TB"];
  let value = bytes, unit = 0;
  while (value >= 999.5 && unit + 1 < units.length) {
    value /= 1000;
    ++unit;
  }
  return unit === 0 ? `${bytes} B` : `${value.toFixed(decimals(value))} ${units[unit]}`;
}

/** Nats per token and the like: four significant digits at most, powers of ten where there are many zeros. */
export function formatDamage(value) {
  if (value === null || value === undefined || !Number.isFinite(value)) return "–";
  if (value === 0) return "0";
  const size = Math.abs(value);
  if (size >= 1000 || size < 1e-4) {
    const [digits, exponent] = value.toExponential(2).split("e");
    return `${minus(digits)}·10${superscript(Number(exponent))}`;
  }
  return minus(size >= 0.01 ? value.toPrecision(3) : value.toFixed(5));
}

/** Short enough for a cell: "1e-3". */
export const formatTiny = (value) => (value === 0 ? "0" : value >= 0.1 ? value.toFixed(2) : value.toExponential(0).replace("e", "e").replace("-", "−"));

const minus = (text) => text.replace("-", "−");
const superscript = (n) => String(n).replace(/./g, (c) => (c === "-" ? "⁻" : "⁰¹²³⁴⁵⁶⁷⁸⁹"[c]));

export const formatWithError = ({ mean, error }, format = formatDamage) => (error === null || error === undefined ? format(mean) : `${format(mean)} ± ${format(error)}`);
export const formatCount = (value) => Math.round(value).toLocaleString("en-US").replaceAll(",", " ");
export const formatPercent = (share, digits = 1) => `${minus((100 * share).toFixed(digits))} %`;
export const plural = (n, one, many = `${one}s`) => `${formatCount(n)} ${n === 1 ? one : many}`;

/** A word as a POSIX shell reads it; what begins with a dash would be an option. */
export function shellWord(text) {
  const word = text.startsWith("-") ? `./${text}` : text;
  return /^[\w@%+=:,./-]+$/.test(word) ? word : `'${word.replaceAll("'", "'\\''")}'`;
}

/** Bytes of what --size takes ("12GB", "11.5GiB", "4.25bpw", a number of bytes); null where it is none. */
export function parseSize(text, nWeights) {
  const match = text.trim().replace(/,/g, "").match(/^([0-9]*\.?[0-9]+)\s*([a-z]*)$/i);
  if (!match) return null;
  const value = Number(match[1]), unit = match[2].toLowerCase();
  if (unit === "bpw") return Math.floor((value * nWeights) / 8);
  const scale = { "": 1, b: 1, k: 1e3, kb: 1e3, m: 1e6, mb: 1e6, g: 1e9, gb: 1e9, tb: 1e12, kib: 2 ** 10, mib: 2 ** 20, gib: 2 ** 30, tib: 2 ** 40 }[unit];
  return scale === undefined ? null : Math.floor(value * scale);
}
