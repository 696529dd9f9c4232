// One written text: its tokens as they come, the card of alternatives, branches and their undoing, and its experts.

import { ask } from "./api.js";
import { card } from "./alternatives.js";
import { element, duration } from "./page.js";
import { readElement, tokenElement, tokensOf } from "./tokens.js";

const ENDS = {
  stop: "came to its end", length: "reached the most tokens", stopped: "was stopped", failed: "broke off",
};

export class Written {
  // `owner`: the pane, which goes on with a text when asked. `prompt`: shown before the text.
  constructor(owner, { name, prompt = "", seed }) {
    this.owner = owner;
    this.prompt = prompt;
    this.seed = seed;
    this.begin = null; // ids of the prompt, as soon as they are told
    this.past = []; // what stood here before each branch
    Object.assign(this, { tokens: [], finish: null, experts: null, clock: null });
    this.words = element("div", { class: "words", role: "group", "aria-label": `${name}, by tokens` });
    this.figures = element("span", { class: "figures-line" });
    this.undo = this.#button("Undo branch", () => this.undoBranch());
    this.further = this.#button("Go on", () => owner.goOn(this));
    this.keep = this.#button("Keep seed", () => owner.keepSeed(this.seed));
    this.layers = element("p", { class: "help layers", hidden: true });
    this.sources = element("details", { class: "sources", hidden: true });
    const line = element("div", { class: "text-line" }, this.figures, this.keep, this.further, this.undo);
    this.root = element("section", { class: "text", "aria-label": name }, this.words, this.layers, this.sources, line);
    this.#listen();
    this.render();
  }

  get content() {
    return this.tokens.map((token) => token.text).join("");
  }

  get ids() {
    return this.begin && [...this.begin, ...this.tokens.map((token) => token.id)];
  }

  // The text is being written, or written further.
  start() {
    this.finish = null;
    this.experts = null;
    this.clock = { began: performance.now(), first: null, written: 0, ended: null };
    this.render();
  }

  take(choice) {
    this.begin ??= choice.prompt_token_ids ?? null;
    const now = performance.now();
    for (const token of tokensOf(choice)) {
      this.clock.first ??= now;
      this.clock.written += 1;
      this.#append(token);
    }
    if (choice.finish_reason) this.end(choice.finish_reason);
    else this.#tell(now);
  }

  end(finish) {
    if (this.finish) return;
    this.finish = finish;
    this.clock.ended = performance.now();
    this.#tell(this.clock.ended);
    if (this.owner.showsExperts) this.showExperts();
  }

  // Passages that were looked up for the text, as the server tells them.
  cite(passages) {
    const passage = ({ source, place, text }) => element("li", {}, element("cite", { textContent: `${source}:${place}` }), ` ${text}`);
    const summary = element("summary", { textContent: `Sources: ${passages.length}` });
    this.sources.replaceChildren(summary, element("ol", {}, ...passages.map(passage)));
    this.sources.hidden = false;
  }

  // The text up to the token at `index`, and `alternative` in its place; the owner goes on from there.
  branch(index, alternative) {
    this.owner.stop();
    this.past.push({ index, tokens: this.tokens, finish: this.finish, clock: this.clock, experts: this.experts });
    const left = this.tokens[index];
    const text = alternative.piece.replace(/\ufffd+$/, ""); // the rest of an unfinished character is still to come
    this.tokens = [...this.tokens.slice(0, index), { ...left, ...alternative, text, byHand: true }];
    this.experts = null;
    this.render();
    this.owner.goOn(this);
    this.#focusQuietly(index);
  }

  undoBranch() {
    if (!this.past.length) return;
    this.owner.stop();
    const { index, ...before } = this.past.pop();
    Object.assign(this, before);
    this.render();
    this.#focusQuietly(index);
    if (this.owner.showsExperts && !this.experts) this.showExperts();
  }

  focus(index) {
    this.#makeCurrent(Math.min(index, this.tokens.length - 1));
    this.words.querySelector('[tabindex="0"]')?.focus();
  }

  // Asks what the routers chose, and shows it below each token. What a model reads at once bounds how much.
  async showExperts() {
    const ids = this.ids;
    if (!ids?.length || !this.finish) return;
    const from = Math.max(0, ids.length - this.owner.run.context);
    const state = this.tokens;
    try {
      const told = await ask("/v1/inspect", { model: this.owner.run.name, token_ids: ids.slice(from) });
      if (this.tokens !== state) return; // a branch was made meanwhile
      const layers = told.tokens[0].experts.flatMap((chosen, layer) => (chosen ? [layer] : []));
      this.experts = { from, layers, tokens: told.tokens };
      this.owner.house.offerLayers();
      this.render();
    } catch (error) {
      this.owner.fail(error);
    }
  }

  // Draws the text anew: after a branch, or when experts come or go.
  render() {
    const shown = this.owner.showsExperts && this.experts !== null;
    this.words.classList.toggle("glossed", shown);
    this.words.replaceChildren(...(shown ? this.#readWithExperts() : this.#readPlain()));
    this.tokens.forEach((token, index) => this.#draw(token, index));
    this.layers.hidden = !shown;
    if (shown) this.layers.textContent = this.#layerNames();
    this.#makeCurrent(0);
    this.#tell(this.clock?.ended ?? performance.now());
  }

  // The focus without the card.
  #focusQuietly(index) {
    this.quiet = true;
    this.focus(index);
    this.quiet = false;
  }

  #append(token) {
    this.tokens.push(token);
    this.#draw(token, this.tokens.length - 1);
    if (this.tokens.length === 1) this.#makeCurrent(0);
  }

  #draw(token, index) {
    const experts = this.owner.showsExperts && this.experts && this.#expertsAt(this.begin.length + index);
    this.words.append(tokenElement(token, index, experts));
    if (experts && token.text.includes("\n")) this.words.append(element("br"));
  }

  #readPlain() {
    return this.prompt ? [element("span", { class: "prompt", textContent: this.prompt })] : [];
  }

  #readWithExperts() {
    const { from, tokens } = this.experts;
    const read = tokens.slice(0, Math.max(0, this.begin.length - from));
    return read.map(({ text }, index) => readElement(text, this.#expertsAt(from + index)));
  }

  // What the token at a place chose in the layers that are shown; null before what was looked into.
  #expertsAt(place) {
    const { layer: shown } = this.owner.house;
    const token = this.experts.tokens[place - this.experts.from];
    return token?.experts.map((chosen, layer) => (shown === null || shown === layer ? chosen : null)) ?? null;
  }

  #layerNames() {
    const { layer } = this.owner.house;
    const layers = layer === null ? this.experts.layers : [layer];
    const names = layers.length === 1 ? `layer ${layers[0]}` : `layers ${layers.join(", ")}`;
    return `Below each token: the experts that it chose, from the top in ${names}.`;
  }

  #tell(now) {
    const { clock } = this;
    this.undo.hidden = !this.past.length;
    this.further.hidden = !this.finish || !this.begin || this.finish === "stop";
    this.keep.hidden = !this.finish || this.seed === undefined;
    this.root.classList.toggle("writing", Boolean(clock) && !this.finish);
    this.figures.textContent = clock ? told(clock, now, this.finish, this.seed) : "";
  }

  #button(text, action) {
    const made = element("button", { type: "button", class: "small", textContent: text, hidden: true });
    made.addEventListener("click", action);
    return made;
  }

  #listen() {
    const at = (event) => event.target.closest?.("[data-index]");
    this.words.addEventListener("pointerover", (event) => {
      if (event.pointerType === "mouse" && at(event)) this.#show(at(event), "hover");
    });
    this.words.addEventListener("pointerleave", () => card.leave());
    this.words.addEventListener("focusin", (event) => {
      if (!at(event)) return;
      this.#makeCurrent(Number(at(event).dataset.index));
      if (!this.quiet) this.#show(at(event), "show");
    });
    this.words.addEventListener("focusout", (event) => { if (!card.root.contains(event.relatedTarget)) card.hide(); });
    this.words.addEventListener("click", (event) => {
      at(event)?.focus();
      if (at(event)) this.#show(at(event), "show");
    });
    this.words.addEventListener("keydown", (event) => { if (at(event)) this.#key(event, at(event)); });
  }

  #show(anchor, how) {
    const index = Number(anchor.dataset.index);
    card[how](anchor, this.tokens[index], (alternative) => this.branch(index, alternative));
  }

  #key(event, anchor) {
    const index = Number(anchor.dataset.index);
    const to = { ArrowRight: index + 1, ArrowLeft: index - 1, Home: 0, End: this.tokens.length - 1 }[event.key];
    if (to !== undefined) {
      event.preventDefault();
      this.focus(Math.max(0, to));
    } else if (["Enter", "ArrowDown", " "].includes(event.key) && !event.ctrlKey && !event.metaKey) {
      event.preventDefault();
      this.#show(anchor, "show");
      card.enter();
    } else if (event.key === "Escape" && card.open) {
      event.stopPropagation();
      card.hide();
    }
  }

  // The text is one stop for the Tab key: only the current token takes part.
  #makeCurrent(index) {
    this.words.querySelector('[tabindex="0"]')?.setAttribute("tabindex", "-1");
    this.words.querySelector(`[data-index="${index}"]`)?.setAttribute("tabindex", "0");
  }
}

function told({ began, first, written, ended }, now, finish, seed) {
  const seconds = ((ended ?? now) - began) / 1000;
  const writing = ((ended ?? now) - (first ?? now)) / 1000;
  const parts = [`${written} ${written === 1 ? "token" : "tokens"} in ${duration(seconds)}`];
  if (written > 1 && writing > 0) parts.push(`${Math.round((written - 1) / writing)} tokens/s`);
  if (finish) parts.push(ENDS[finish] ?? finish);
  if (finish && seed !== undefined) parts.push(`seed ${seed}`);
  return parts.join(" · ");
}
