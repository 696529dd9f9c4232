// One run at work: what it wrote on a prompt, or its side of a conversation.

import { Failure, stream } from "./api.js";
import { card } from "./alternatives.js";
import { element, short } from "./page.js";
import { Speaker } from "./speaker.js";
import { Written } from "./written.js";

export class Pane {
  // `house`: the page, which hears of `changed` and keeps seeds.
  constructor(house) {
    this.house = house;
    this.run = null;
    this.turns = []; // of a conversation: {user, texts, chosen}
    this.sending = null; // what is being written: {texts, abort}
    this.title = element("h2");
    this.about = element("p", { class: "help" });
    this.flow = element("div", { class: "flow" });
    this.problem = element("p", { class: "problem", role: "alert" });
    const head = element("header", {}, this.title, this.about);
    this.root = element("article", { class: "pane" }, head, this.flow, this.problem);
  }

  get busy() {
    return this.sending !== null;
  }

  get showsExperts() {
    return this.house.showsExperts && Boolean(this.run?.experts);
  }

  get texts() {
    return this.turns.flatMap((turn) => turn.texts);
  }

  use(run) {
    if (run.name !== this.run?.name) this.clear();
    this.run = run;
    this.title.textContent = run.name;
    const facts = [`${short(run.parameters)} parameters`, `reads ${run.context.toLocaleString("en")} tokens`];
    if (run.experts) facts.push(`${run.experts} experts`);
    this.about.textContent = facts.join(" · ");
  }

  clear() {
    this.stop();
    card.hide();
    this.turns = [];
    this.flow.replaceChildren();
    this.problem.textContent = "";
  }

  async writePrompt(prompt, request) {
    this.clear();
    const texts = this.#open(prompt, request);
    this.turns = [{ texts }];
    this.flow.append(...texts.map((text) => text.root));
    await this.#write("/v1/completions", { prompt, ...request, ...forCompletions }, texts);
  }

  // A turn of the conversation; returns whether it was answered.
  async writeTurn(system, user, request) {
    this.stop();
    const messages = this.#messages(system, user);
    const texts = this.#open("", request);
    const turn = { user, texts, chosen: texts[0] };
    turn.root = element("div", { class: "turn" }, this.#bubble(user), ...this.#replies(turn));
    this.turns.push(turn);
    this.flow.append(turn.root);
    const answered = await this.#write("/v1/chat/completions", { messages, ...request, ...forChat }, texts);
    if (!answered && texts.every((text) => !text.tokens.length)) this.dropTurn();
    return answered;
  }

  // Takes the last turn back, and returns what the user had said.
  dropTurn() {
    this.stop();
    const turn = this.turns.pop();
    turn?.root.remove();
    return turn?.user;
  }

  // Writes a text further from its tokens.
  async goOn(text) {
    this.stop();
    let request;
    try {
      request = this.house.request(this, text.seed);
    } catch (error) {
      return this.fail(error);
    }
    if (this.house.chatting) request.stop = [...(request.stop ?? []), ...(this.run.stops ?? [])];
    return this.#write("/v1/completions", { ...request, prompt: text.ids, n: 1, ...forCompletions }, [text]);
  }

  stop() {
    if (!this.sending) return;
    const { texts, abort } = this.sending;
    this.sending = null;
    abort.abort();
    texts.forEach((text) => text.end("stopped"));
    this.house.changed();
  }

  fail(error) {
    if (!(error instanceof Failure)) throw error;
    this.problem.textContent = error.message;
  }

  keepSeed(seed) {
    this.house.keepSeed(seed);
  }

  draw() {
    for (const text of this.texts) {
      text.render();
      if (this.showsExperts && !text.experts) text.showExperts();
    }
  }

  #open(prompt, { n = 1, seed }) {
    return Array.from({ length: n }, (_, index) => {
      const name = `Text ${n > 1 ? `${index + 1} ` : ""}of ${this.run.name}`;
      return new Written(this, { name, prompt, seed: seed + index });
    });
  }

  async #write(path, body, texts) {
    const sending = { texts, abort: new AbortController() };
    this.sending = sending;
    this.problem.textContent = "";
    this.house.changed();
    const speaker = new Speaker(this.house.panes.length > 1 ? `${this.run.name}: ` : "");
    texts.forEach((text) => text.start());
    try {
      for await (const part of stream(path, { ...body, model: this.run.name }, sending.abort.signal)) {
        if (this.sending !== sending) break;
        for (const choice of part.choices) {
          texts[choice.index].take(choice);
          if (part.retrieved?.length) texts[choice.index].cite(part.retrieved);
          if (choice.index === 0) speaker.add(choice.delta ? choice.delta.content ?? "" : choice.text);
        }
        this.house.grown();
      }
    } catch (error) {
      if (this.sending === sending) {
        this.sending = null;
        texts.forEach((text) => text.end("failed"));
        this.fail(error); // which is spoken as an alert
        return false;
      }
    } finally {
      speaker.end({ stopped: "Stopped.", failed: "" }[texts[0].finish] ?? "The text is finished.");
      if (this.sending === sending) this.sending = null;
      this.house.changed();
    }
    return true;
  }

  #messages(system, user) {
    const before = this.turns.flatMap((turn) => [
      { role: "user", content: turn.user }, { role: "assistant", content: turn.chosen.content },
    ]);
    return [...(system ? [{ role: "system", content: system }] : []), ...before, { role: "user", content: user }];
  }

  #bubble(user) {
    const who = element("h3", { class: "unseen", textContent: "You" });
    return element("div", { class: "said" }, who, element("p", { textContent: user }));
  }

  #replies(turn) {
    if (turn.texts.length === 1) return [turn.texts[0].root];
    const name = `reply-${Math.random().toString(36).slice(2)}`;
    return turn.texts.map((text, index) => {
      const choice = element("input", { type: "radio", name, checked: index === 0 });
      choice.addEventListener("change", () => { turn.chosen = text; });
      const label = element("label", { class: "go-on-with" }, choice, ` Go on with reply ${index + 1}`);
      return element("div", { class: "reply" }, label, text.root);
    });
  }
}

const forCompletions = { logprobs: 5, return_token_ids: true };
const forChat = { logprobs: true, top_logprobs: 5, return_token_ids: true };
