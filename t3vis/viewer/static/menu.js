// A button that opens a sheet over the page; Escape and a click elsewhere close it.

import { html, useEffect, useRef, useState } from "./vendor/htm-preact.js";

/** @param {{sign: string, label: string, title: string, stays?: boolean, children: any}} props - stays: after a click */
export function Menu({ sign, label, title, stays = false, children }) {
  const [open, setOpen] = useState(false);
  const [place, setPlace] = useState({});
  const menu = useRef(null);
  useEffect(() => {
    if (!open) return undefined;
    const close = (event) => !menu.current.contains(event.target) && setOpen(false);
    addEventListener("pointerdown", close);
    return () => removeEventListener("pointerdown", close);
  }, [open]);
  const onKey = (event) => {
    if (event.key !== "Escape" || !open) return;
    event.stopPropagation();
    setOpen(false);
    menu.current.querySelector("button").focus();
  };
  const toggle = () => {
    const box = menu.current.getBoundingClientRect(); // fixed to the window: no view cuts it off
    const [below, right] = [box.bottom < innerHeight / 2, innerWidth - box.right];
    const side = box.left < innerWidth / 3 ? { left: `${box.left}px` } : { right: `${right}px` };
    setPlace(below ? { ...side, top: `${box.bottom + 2}px` } : { ...side, bottom: `${innerHeight - box.top + 2}px` });
    setOpen(!open);
  };
  return html`<span class="menu" ref=${menu} onKeyDown=${onKey}><button type="button" aria-expanded=${open} aria-label=${label} title=${title} onClick=${toggle}>${sign}</button>
    ${open && html`<div class="sheet" style=${place} onClick=${() => stays || setOpen(false)}>${children}</div>`}</span>`;
}
