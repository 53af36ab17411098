// Pictures of a view as it stands on the screen: SVG, of text and shapes as far as it can be, and PNG, made from that.

import { html } from "./vendor/htm-preact.js";
import { Menu } from "./menu.js";
import { download } from "./exports.js";

const SHAPE = ["fill", "fill-opacity", "stroke", "stroke-width", "stroke-opacity", "stroke-dasharray", "opacity"];
const FONT = ["font-family", "font-size", "font-weight", "font-style", "text-anchor", "dominant-baseline"];
const HIDDEN = "button:not(.drawn):not(.legend button), select, input, .tools, .hover, .menu";
const RESOLUTION = 2; // pixels of a PNG for each on the screen

/** A menu that saves a view as a picture, and what else is given: names, what they do, and how that is done. */
export function Pictures({ of, name, more = {} }) {
  const save = async (kind) => {
    const svg = asSvg(of.current);
    download(`${name}.${kind}`, kind === "svg" ? svg : await asPng(svg, of.current), "image/svg+xml");
  };
  const pictures = { PNG: ["a picture of this view", () => save("png")], SVG: ["a picture of this view that can be enlarged", () => save("svg")] };
  return html`<${Menu} sign="save" title=${`Save ${name}`} label=${`save ${name}`}>${Object.entries({ ...more, ...pictures }).map(([kind, [title, act]]) => html`<button type="button" role="menuitem" onClick=${act}><b>${kind}</b> <span>${title}</span></button>`)}<//>`;
}

/** The part of a page that an element fills, as an SVG document. @param {Element} root */
export function asSvg(root) {
  const frame = root.getBoundingClientRect();
  const parts = [];
  drawn(root, frame, frame, parts);
  const size = `width="${round(frame.width)}" height="${round(frame.height)}"`;
  const back = getComputedStyle(document.body).backgroundColor;
  return `<svg xmlns="http://www.w3.org/2000/svg" ${size} viewBox="0 0 ${round(frame.width)} ${round(frame.height)}">\n`
    + `<rect width="100%" height="100%" fill="${back}"/>\n${parts.join("\n")}\n</svg>\n`;
}

/** @returns {Promise<Blob>} */
export async function asPng(svg, root) {
  const { width, height } = root.getBoundingClientRect();
  const image = new Image();
  await new Promise((resolve, reject) => {
    image.onload = resolve;
    image.onerror = () => reject(new Error("the picture cannot be drawn by this browser."));
    image.src = `data:image/svg+xml;charset=utf-8,${encodeURIComponent(svg)}`;
  });
  const canvas = document.createElement("canvas");
  [canvas.width, canvas.height] = [Math.ceil(width * RESOLUTION), Math.ceil(height * RESOLUTION)];
  canvas.getContext("2d").drawImage(image, 0, 0, canvas.width, canvas.height);
  return new Promise((resolve) => canvas.toBlob(resolve, "image/png"));
}

/** @param {Element} element @param {DOMRect} frame - of the picture @param {DOMRect} clip - what of it can be seen */
function drawn(element, frame, clip, parts) {
  const style = getComputedStyle(element);
  const box = element.getBoundingClientRect();
  if (style.display === "none" || style.visibility === "hidden" || !overlap(box, clip)) return;
  if (element.matches(HIDDEN)) return;
  if (element instanceof HTMLCanvasElement) parts.push(...canvasParts(element, box, frame));
  else if (element instanceof SVGSVGElement) parts.push(svgPart(element, box, frame));
  else {
    const inside = /auto|scroll|hidden|clip/.test(style.overflow + style.overflowX + style.overflowY) ? common(box, clip) : clip;
    parts.push(...boxParts(style, common(box, clip), frame));
    for (const child of element.childNodes) {
      if (child.nodeType === Node.TEXT_NODE) parts.push(...textParts(child, style, frame, inside));
      else if (child instanceof Element) drawn(child, frame, inside, parts);
    }
  }
}

function boxParts(style, box, frame) {
  const filled = !/^rgba\(.*, 0\)$|transparent/.test(style.backgroundColor);
  const line = parseFloat(style.borderBottomWidth) > 0 && style.borderBottomStyle !== "none";
  const around = line && parseFloat(style.borderTopWidth) > 0 && style.borderTopStyle !== "none";
  const place = `x="${round(box.left - frame.left)}" y="${round(box.top - frame.top)}" width="${round(box.width)}" height="${round(box.height)}"`;
  const corner = parseFloat(style.borderTopLeftRadius) || 0;
  const radius = style.borderTopLeftRadius.endsWith("%") ? box.width / 2 : corner;
  const parts = [];
  if (filled || around)
    parts.push(`<rect ${place} rx="${round(radius)}" fill="${filled ? style.backgroundColor : "none"}"${around ? ` stroke="${style.borderTopColor}"` : ""}/>`);
  if (line && !around) {
    const y = round(box.bottom - frame.top - 0.5);
    parts.push(`<line x1="${round(box.left - frame.left)}" x2="${round(box.right - frame.left)}" y1="${y}" y2="${y}" stroke="${style.borderBottomColor}"/>`);
  }
  return parts;
}

/** The lines of a text, as the browser has broken it. */
function textParts(node, style, frame, clip) {
  const parts = [];
  const range = document.createRange();
  let line = "";
  let at = null;
  const end = () => {
    const turned = style.writingMode.startsWith("vertical");
    const [x, y] = [round(at.left - frame.left), round(at.bottom - frame.top - at.height * 0.22)];
    const place = turned ? `x="0" y="0" transform="translate(${round(at.right - frame.left - at.width * 0.22)} ${round(at.bottom - frame.top)}) rotate(-90)"` : `x="${x}" y="${y}"`;
    if (line.trim() && overlap(at, clip)) parts.push(`<text ${place} xml:space="preserve" font-family="${escaped(style.fontFamily)}" font-size="${style.fontSize}" font-weight="${style.fontWeight}" fill="${style.color}">${escaped(line)}</text>`);
  };
  for (let i = 0; i < node.data.length; i += 1) {
    range.setStart(node, i);
    range.setEnd(node, i + 1);
    const box = range.getBoundingClientRect();
    if (!box.width && !box.height) continue;
    if (box.right > clip.right + 1) continue; // what an ellipsis stands for
    if (at && (style.writingMode.startsWith("vertical") || Math.abs(box.top - at.top) < 2)) {
      line += node.data[i];
      at = new DOMRect(Math.min(at.left, box.left), Math.min(at.top, box.top), Math.max(at.right, box.right) - Math.min(at.left, box.left), Math.max(at.bottom, box.bottom) - Math.min(at.top, box.top));
      continue;
    }
    if (at) end();
    [line, at] = [node.data[i], box];
  }
  if (at) end();
  return parts;
}

/** Points as circles where the canvas can say them, else its pixels. */
function canvasParts(canvas, box, frame) {
  const [left, top] = [round(box.left - frame.left), round(box.top - frame.top)];
  const points = canvas.vectors?.();
  if (!points) return [`<image x="${left}" y="${top}" width="${round(box.width)}" height="${round(box.height)}" href="${canvas.toDataURL()}"/>`];
  const circles = points.map(({ px, py, r, color, opacity }) => `<circle cx="${round(px)}" cy="${round(py)}" r="${r}" fill="${color}" fill-opacity="${opacity}"/>`);
  return [`<g transform="translate(${left} ${top})">`, ...circles, "</g>"];
}

function svgPart(svg, box, frame) {
  const copy = svg.cloneNode(true);
  const [from, to] = [[...svg.querySelectorAll("*")], [...copy.querySelectorAll("*")]];
  from.forEach((element, i) => {
    const style = getComputedStyle(element);
    for (const name of [...SHAPE, ...(element.tagName === "text" ? FONT : [])]) to[i].setAttribute(name, style.getPropertyValue(name).replaceAll('"', "'"));
    to[i].removeAttribute("class");
    to[i].removeAttribute("style");
  });
  for (const [name, value] of Object.entries({ x: box.left - frame.left, y: box.top - frame.top, width: box.width, height: box.height })) copy.setAttribute(name, round(value));
  copy.removeAttribute("class");
  return new XMLSerializer().serializeToString(copy);
}

function overlap(a, b) {
  return a.right > b.left && a.left < b.right && a.bottom > b.top && a.top < b.bottom;
}

function common(a, b) {
  const [left, top] = [Math.max(a.left, b.left), Math.max(a.top, b.top)];
  return new DOMRect(left, top, Math.max(0, Math.min(a.right, b.right) - left), Math.max(0, Math.min(a.bottom, b.bottom) - top));
}

const round = (value) => Math.round(value * 100) / 100;
const escaped = (text) => text.replace(/[\u0000-\u0008\u000b\u000c\u000e-\u001f]/g, "").replace(/[&<>"]/g, (sign) => ({ "&": "&amp;", "<": "&lt;", ">": "&gt;", '"': "&quot;" })[sign]);
