// The playground: what is asked, of whom, and how it is shown.

import { Failure, ask } from "./api.js";
import { card } from "./alternatives.js";
import { Controls } from "./controls.js";
import { fill, find, recall, remember } from "./page.js";
import { Pane } from "./pane.js";
import { legend } from "./tokens.js";

const SEEDS = 2 ** 31;
const WIDE = matchMedia("(min-width: 1000px)");

class Playground {
  constructor() {
    this.kept = recall("playground");
    this.panes = [new Pane(this)];
    this.controls = new Controls(find("#basic"), find("#more"), this.kept.controls ?? {}, () => this.#remember());
    find("#legend").append(...legend());
    find("#settings").open = WIDE.matches;
    WIDE.addEventListener("change", () => { find("#settings").open = WIDE.matches; });
    this.#restore();
    this.#listen();
    this.#remember();
  }

  get chatting() {
    return find("#mode-chat").checked;
  }

  get showsExperts() {
    return find("#experts").checked;
  }

  // Which layer's experts are shown; null for all.
  get layer() {
    return find("#layer").value === "" ? null : Number(find("#layer").value);
  }

  // Lets the layers be chosen that have experts in the texts that are shown.
  offerLayers() {
    const found = this.panes.flatMap((pane) => pane.texts).flatMap((text) => text.experts?.layers ?? []);
    const layers = [...new Set(found)].sort((a, b) => a - b).map((layer) => [String(layer), `layer ${layer}`]);
    fill(find("#layer"), [["", "all layers"], ...layers], find("#layer").value);
    find("#layer-choice").hidden = !this.showsExperts || layers.length < 2;
  }

  // Asks for the runs; without a model there is nothing to do here but watch.
  async open() {
    try {
      const { runs } = await ask("/v1/runs");
      this.runs = runs.filter((run) => run.model);
    } catch (error) {
      return this.#fail(error);
    }
    if (!this.runs.length) return this.#say("No run has a model yet; the live page shows how they are trained.");
    const names = this.runs.map((run) => [run.name, run.name]);
    fill(find("#model"), names, this.kept.model);
    fill(find("#other"), names, this.kept.other ?? this.runs.at(-1).name);
    this.#arrange();
    return find("#prompt").focus({ preventScroll: true });
  }

  // The sampling settings for a pane, and the seed; the second pane may have a temperature of its own.
  request(pane, seed) {
    const body = { ...this.controls.request(), seed };
    const input = find("#other-temperature");
    if (pane === this.panes[0] || (input.value === "" && !input.validity.badInput)) return body;
    if (!input.checkValidity()) {
      input.focus();
      throw new Failure("The second temperature should be a number from 0 to 2.");
    }
    return { ...body, temperature: input.valueAsNumber };
  }

  // The seed that is set, or a new one: every text can be had again.
  seed() {
    return this.controls.request().seed ?? Math.floor(Math.random() * SEEDS);
  }

  keepSeed(seed) {
    this.controls.set({ ...this.controls.kept, seed });
    this.#remember();
    find("#settings").open = true;
    this.controls.focus("seed");
  }

  // A pane began or ended to write.
  changed() {
    const busy = this.panes.some((pane) => pane.busy);
    find("#stop").disabled = !busy;
    find("#again").disabled = busy || !this.panes[0].turns.length;
    find("#new").disabled = !this.panes[0].turns.length;
    document.body.classList.toggle("busy", busy);
  }

  // A text grew: in a conversation, the page stays at its end if it was there. Looked at once for each picture drawn.
  grown() {
    if (!this.chatting || this.following) return;
    this.following = requestAnimationFrame(() => {
      this.following = null;
      const { scrollHeight } = document.documentElement;
      const { height = 0 } = this;
      if (scrollHeight > height && scrollY + innerHeight > height - 80) scrollTo(0, scrollHeight);
      this.height = scrollHeight;
    });
  }

  async send() {
    if (!this.runs?.length) return;
    const prompt = find("#prompt").value;
    this.#say("");
    if (this.chatting && !prompt.trim()) return this.#say("Say something first.");
    let requests;
    try {
      const seed = this.seed();
      requests = this.panes.map((pane) => this.request(pane, seed));
    } catch (error) {
      return this.#fail(error);
    }
    if (!this.chatting) return this.panes.forEach((pane, index) => pane.writePrompt(prompt, requests[index]));
    find("#prompt").value = "";
    const system = find("#system").value.trim();
    const turns = this.panes.map((pane, index) => pane.writeTurn(system, prompt, requests[index]));
    const answered = await Promise.all(turns);
    if (!answered.some(Boolean) && !find("#prompt").value) find("#prompt").value = prompt;
  }

  stop() {
    this.panes.forEach((pane) => pane.stop());
  }

  again() {
    const said = this.panes.map((pane) => pane.dropTurn())[0];
    if (said === undefined) return;
    find("#prompt").value = said;
    this.send();
  }

  // The page as the mode, the runs and the switches want it.
  #arrange() {
    const chat = this.chatting;
    document.body.classList.toggle("chat", chat);
    for (const part of document.querySelectorAll("[data-chat]")) part.hidden = !chat;
    find("#prompt-label").textContent = chat ? "Your turn" : "Prompt";
    find("#prompt").rows = chat ? 2 : 4;
    find("#prompt").placeholder = chat ? "Say something" : "Once upon a time";
    find("#write").textContent = chat ? "Send" : "Write";
    const order = chat ? ["#output", "#composer", "#settings"] : ["#composer", "#settings", "#output"];
    const now = [...find("#desk").children].map((part) => `#${part.id}`);
    if (now.join() !== order.join()) find("#desk").append(...order.map((part) => find(part)));
    if (this.runs?.length) this.#choose();
    this.#show();
    this.changed();
  }

  #choose() {
    const two = find("#compare").checked;
    find("#other-fields").hidden = !two;
    if (two && this.panes.length === 1) this.panes.push(new Pane(this));
    if (!two && this.panes.length === 2) this.panes.pop().clear();
    const names = [find("#model").value, find("#other").value];
    this.panes.forEach((pane, index) => pane.use(this.runs.find((run) => run.name === names[index])));
    find("#panes").replaceChildren(...this.panes.map((pane) => pane.root));
    find("#panes").classList.toggle("two", two);
    find("#experts-switch").hidden = !this.panes.some((pane) => pane.run.experts);
    const base = this.panes.find((pane) => !pane.run.chat);
    find("#base-hint").hidden = !this.chatting || !base;
    if (!base) return;
    find("#base-hint").textContent = `${base.run.name} has learned no conversations: it goes on with the text of one.`;
  }

  #show() {
    document.body.classList.toggle("plain", !find("#colours").checked);
    find("#legend").hidden = !find("#colours").checked;
    this.offerLayers();
    this.panes.forEach((pane) => pane.draw());
  }

  #clear() {
    this.panes.forEach((pane) => pane.clear());
    this.#say("");
    this.changed();
  }

  #say(sentence) {
    find("#problem").textContent = sentence;
  }

  #fail(error) {
    if (!(error instanceof Failure)) throw error;
    this.#say(error.message);
  }

  #restore() {
    const { kept } = this;
    if (kept.chat) find("#mode-chat").checked = true;
    find("#compare").checked = kept.compare === true;
    find("#colours").checked = kept.colours !== false;
    find("#experts").checked = kept.experts === true;
    find("#system").value = kept.system ?? "";
    find("#other-temperature").value = kept.otherTemperature ?? "";
  }

  #remember() {
    const count = this.controls.changes;
    find("#more-count").textContent = count ? `${count} set` : "";
    find("#settings-summary").textContent = this.controls.summary;
    remember("playground", {
      controls: this.controls.kept, chat: this.chatting, compare: find("#compare").checked,
      colours: find("#colours").checked, experts: this.showsExperts,
      system: find("#system").value, otherTemperature: find("#other-temperature").value,
      model: find("#model").value || this.kept.model, other: find("#other").value || this.kept.other,
    });
  }

  #listen() {
    const on = (selector, event, action) => find(selector).addEventListener(event, action);
    on("#composer", "submit", (event) => { event.preventDefault(); this.send(); });
    on("#stop", "click", () => this.stop());
    on("#again", "click", () => this.again());
    on("#new", "click", () => { this.#clear(); find("#prompt").focus(); });
    on("#reset", "click", () => { this.controls.set({}); this.#remember(); });
    for (const id of ["#mode-prompt", "#mode-chat"]) {
      on(id, "change", () => { this.#clear(); this.#arrange(); this.#remember(); });
    }
    for (const id of ["#model", "#other", "#compare"]) on(id, "change", () => { this.#arrange(); this.#remember(); });
    for (const id of ["#colours", "#experts", "#layer"]) on(id, "change", () => { this.#show(); this.#remember(); });
    for (const id of ["#system", "#other-temperature"]) on(id, "input", () => this.#remember());
    document.addEventListener("keydown", (event) => {
      if (event.key === "Enter" && (event.ctrlKey || event.metaKey)) { event.preventDefault(); this.send(); }
      if (event.key === "Escape") { if (card.open) card.hide(); else this.stop(); }
    });
  }
}

new Playground().open();
