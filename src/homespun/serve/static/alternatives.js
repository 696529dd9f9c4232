// The card that shows what else could have stood in a token's place. There is one for the whole page.

import { element, percent } from "./page.js";
import { visible } from "./tokens.js";

const SHOW = 90; // ms that a pointer rests on a token before the card comes
const HIDE = 260; // ms in which it may travel to the card

class Card {
  constructor() {
    this.root = element("div", { id: "alternatives", class: "card", role: "group", hidden: true });
    this.root.setAttribute("aria-label", "Alternatives");
    this.root.addEventListener("pointerenter", () => clearTimeout(this.timer));
    this.root.addEventListener("pointerleave", () => this.leave());
    this.root.addEventListener("keydown", (event) => this.#key(event));
    this.root.addEventListener("focusout", (event) => { if (!this.root.contains(event.relatedTarget)) this.hide(); });
    document.body.append(this.root);
  }

  get open() {
    return !this.root.hidden;
  }

  // The pointer is on a token: show the card unless it leaves at once.
  hover(anchor, token, choose) {
    clearTimeout(this.timer);
    if (anchor === this.anchor || this.root.contains(document.activeElement)) return;
    this.timer = setTimeout(() => this.show(anchor, token, choose), SHOW);
  }

  leave() {
    clearTimeout(this.timer);
    if (this.root.contains(document.activeElement)) return;
    this.timer = setTimeout(() => this.hide(), HIDE);
  }

  // `choose(alternative)` is called when one is picked.
  show(anchor, token, choose) {
    clearTimeout(this.timer);
    this.anchor?.classList.remove("shown");
    this.anchor = anchor;
    anchor.classList.add("shown");
    const head = element("p", { class: "card-head" },
      element("b", { textContent: visible(token.piece) }),
      element("span", { textContent: `${percent(token.probability)} · id ${token.id}` }));
    const rows = token.alternatives.map((each) => this.#row(each, each.id === token.id, choose));
    this.root.replaceChildren(head, element("div", { class: "card-rows" }, ...rows));
    this.root.hidden = false;
    this.#place();
  }

  hide() {
    clearTimeout(this.timer);
    this.root.hidden = true;
    this.anchor?.classList.remove("shown");
    this.anchor = null;
  }

  // The keyboard enters the card; returns whether there is anything to choose.
  enter() {
    const first = this.root.querySelector("button:not([aria-current])");
    first?.focus();
    return Boolean(first);
  }

  #row(alternative, chosen, choose) {
    const bar = element("span", { class: "measure" }, element("i"));
    bar.firstChild.style.width = `${100 * alternative.probability}%`;
    const row = element("button", { type: "button", class: "card-row" },
      element("span", { class: "piece", textContent: visible(alternative.piece) }), bar,
      element("span", { class: "share", textContent: percent(alternative.probability) }));
    const spoken = `${visible(alternative.piece)}, ${percent(alternative.probability)}`;
    row.setAttribute("aria-label", chosen ? `${spoken}, stands there` : `Branch with ${spoken}`);
    row.disabled = chosen;
    if (chosen) {
      row.setAttribute("aria-current", "true");
    } else {
      row.addEventListener("click", () => { this.hide(); choose(alternative); });
    }
    return row;
  }

  #key(event) {
    const rows = [...this.root.querySelectorAll("button:not([aria-current])")];
    const at = rows.indexOf(document.activeElement);
    const to = { ArrowDown: at + 1, ArrowUp: at - 1, Home: 0, End: rows.length - 1 }[event.key];
    if (to !== undefined) {
      event.preventDefault();
      if (to < 0) this.anchor.focus();
      else rows[Math.min(to, rows.length - 1)]?.focus();
    } else if (event.key === "Escape" || event.key === "Tab") {
      this.anchor.focus(); // and Tab goes on from there
      if (event.key === "Escape") { event.stopPropagation(); this.hide(); }
    }
  }

  #place() {
    const line = this.anchor.getClientRects()[0] ?? this.anchor.getBoundingClientRect();
    const { offsetWidth: width, offsetHeight: height } = this.root;
    const page = document.documentElement;
    const left = Math.max(8, Math.min(line.left - 12, page.clientWidth - width - 8));
    const below = line.bottom + 6;
    const top = below + height > page.clientHeight && line.top > height + 6 ? line.top - height - 6 : below;
    this.root.style.left = `${left + scrollX}px`;
    this.root.style.top = `${top + scrollY}px`;
  }
}

export const card = new Card();
