// Colours of heads and tokens: from nothing to much, and from against to for; the colour-blind tell both apart.

import { useEffect, useState } from "./vendor/htm-preact.js";

/** @typedef {[number, number, number]} Rgb */
/** @typedef {{back: Rgb, much: Rgb[], pro: Rgb[], contra: Rgb[]}} Palette - each from near nothing to the strongest */

/** ColorBrewer's Blues and Reds (Brewer, 2013) on white, and lighter ones on black. @type {Record<string, Omit<Palette, "back">>} */
const INKS = {
  light: { much: [[107, 174, 214], [8, 48, 107]], pro: [[107, 160, 214], [19, 74, 138]], contra: [[239, 140, 120], [156, 17, 39]] },
  dark: { much: [[43, 108, 168], [198, 224, 250]], pro: [[40, 98, 160], [128, 192, 255]], contra: [[150, 50, 44], [255, 150, 130]] },
};

/** The palette of the theme that is shown. @returns {Palette} */
export function usePalette(theme) {
  const [palette, setPalette] = useState(read);
  useEffect(() => {
    const update = () => setPalette(read());
    const frame = requestAnimationFrame(update); // when the page has taken the theme
    const media = matchMedia("(prefers-color-scheme: dark)");
    media.addEventListener("change", update);
    return () => {
      cancelAnimationFrame(frame);
      media.removeEventListener("change", update);
    };
  }, [theme]);
  return palette;
}

function read() {
  const style = getComputedStyle(document.documentElement);
  const hex = style.getPropertyValue("--back").trim();
  const back = [1, 3, 5].map((at) => parseInt(hex.slice(at, at + 2), 16));
  return { back, ...INKS[style.colorScheme === "dark" ? "dark" : "light"] };
}

export const isDark = ({ back }) => back[0] + back[1] + back[2] < 384;

/** The colour of an amount from 0 to 1. @param {Palette} palette @returns {Rgb} */
export const amount = ({ back, much }, t) => along([back, ...much], t);

/** The colour of a value from -1, against, to 1, for. @param {Palette} palette @returns {Rgb} */
export const signed = ({ back, pro, contra }, t) => along([back, ...(t < 0 ? contra : pro)], Math.abs(t));

/** @param {Rgb[]} stops @returns {Rgb} */
function along(stops, t) {
  const at = Math.min(Math.max(t, 0), 1) * (stops.length - 1);
  const low = Math.min(Math.floor(at), stops.length - 2);
  return stops[low].map((value, i) => Math.round(value + (stops[low + 1][i] - value) * (at - low)));
}

/** @param {Rgb} color */
export const css = (color) => `rgb(${color.join(", ")})`;

/** Black or white, whichever is easier to read on a colour. @param {Rgb} color */
export function inkOn(color) {
  const [r, g, b] = color.map((value) => ((value / 255 + 0.055) / 1.055) ** 2.4);
  return 0.2126 * r + 0.7152 * g + 0.0722 * b > 0.18 ? "#000000" : "#ffffff";
}

/**
 * A picture of a matrix, one pixel for each value.
 * @param {ArrayLike<number>} values - from 0 to 1, row by row
 * @returns {string} a data URL
 */
export function picture(palette, values, n_rows, n_columns) {
  const canvas = document.createElement("canvas");
  [canvas.width, canvas.height] = [n_columns, n_rows];
  const context = canvas.getContext("2d");
  const image = context.createImageData(n_columns, n_rows);
  const table = Array.from({ length: 256 }, (_, i) => amount(palette, i / 255));
  for (let i = 0; i < n_rows * n_columns; i += 1) {
    const color = table[Math.min(255, Math.round((values[i] || 0) * 255))];
    image.data.set(color, i * 4);
    image.data[i * 4 + 3] = 255;
  }
  context.putImageData(image, 0, 0);
  return canvas.toDataURL();
}
