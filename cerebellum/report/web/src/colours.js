// Two colours for everything that is shown by colour, one for light and one for dark; CSS picks (light-dark()).
import { interpolateGnBu, interpolateInferno, interpolateYlOrRd } from "d3";
import { rgb } from "d3";

const luminance = (colour) => {
  const linear = [colour.r, colour.g, colour.b].map((c) => (c / 255 <= 0.04045 ? c / 255 / 12.92 : ((c / 255 + 0.055) / 1.055) ** 2.4));
  return 0.2126 * linear[0] + 0.7152 * linear[1] + 0.0722 * linear[2];
};
/** Black or white, whichever is read better on it; one of them always has a contrast of at least 4.5. */
const textOn = (colour) => (luminance(rgb(colour)) > 0.179 ? "#000" : "#fff");

const style = (light, dark) => ({ "--l": light, "--d": dark, "--lt": textOn(light), "--dt": textOn(dark) });

/** Damage from 0 (little) to 1 (much). */
const damageLight = (t) => interpolateYlOrRd(0.02 + 0.96 * t), damageDark = (t) => interpolateInferno(0.14 + 0.78 * t);
export const damageStyle = (t) => style(damageLight(t), damageDark(t));

/** Bits per weight. */
const bitsPart = (bits) => Math.min(1, Math.max(0, Math.log(bits / 1.5) / Math.log(16.5 / 1.5)));
const bitsLight = (bits) => interpolateGnBu(0.12 + 0.88 * bitsPart(bits)), bitsDark = (bits) => interpolateGnBu(1 - 0.9 * bitsPart(bits));
export const bitsStyle = (bits) => style(bitsLight(bits), bitsDark(bits));

export const damageGradient = { "background-image": `linear-gradient(to right, ${Array.from({ length: 13 }, (_, i) => `light-dark(${damageLight(i / 12)}, ${damageDark(i / 12)})`).join(", ")})` };
