// What is taken out of the viewer: tables of the selection, pictures of the views.

import * as api from "./api.js";
import { shownValue } from "./data.js";

const PAGE = 500; // examples whose texts are asked for at a time

/** Save a text as a file. */
export function download(name, content, type) {
  const link = document.createElement("a");
  link.href = URL.createObjectURL(content instanceof Blob ? content : new Blob([content], { type }));
  link.download = name;
  link.click();
  setTimeout(() => URL.revokeObjectURL(link.href), 10_000);
}

/** Ids, the columns that are shown, and the texts, of some examples. */
export async function toCsv(data, ids, shown) {
  const columns = await Promise.all(shown.map((id) => data.column(id)));
  const lines = [];
  let names = [];
  for (let start = 0; start < ids.length; start += PAGE) {
    const part = Array.from(ids.subarray(start, start + PAGE));
    const texts = await api.rows(data.split, part);
    names = Object.keys(texts[0]);
    part.forEach((id, i) => {
      lines.push([id, ...columns.map((column) => shownValue(column, id)), ...Object.values(texts[i])].map(quoted).join(","));
    });
  }
  return `${["example", ...shown, ...names].map(quoted).join(",")}\n${lines.join("\n")}\n`;
}

/** A value as a field of CSV. */
export function quoted(value) {
  const text = String(value);
  const inert = /^[=+@\t\r]|^-(?![\d.]+(e-?\d+)?$)/.test(text) ? `'${text}` : text; // a spreadsheet would run it
  return /[",\n\r]/.test(inert) ? `"${inert.replaceAll('"', '""')}"` : inert;
}

/** The selection as lines of Python, on the clipboard. */
export async function copyAsPython(split, ids) {
  const name = split === "train" ? "run.train" : `run.evals[${JSON.stringify(split)}]`;
  const text = `ids = [${Array.from(ids).join(", ")}]\nrows = [${name}.example(i) for i in ids]\n`;
  await navigator.clipboard.writeText(text);
}
