// Tells a screen reader what is being written: whole words, every few seconds, and how it ended.

import { find } from "./page.js";

const PAUSE = 4000;

export class Speaker {
  constructor(name) {
    this.name = name;
    this.pending = "";
    this.said = performance.now();
  }

  add(text) {
    this.pending += text;
    if (performance.now() - this.said < PAUSE) return;
    const end = this.pending.search(/\s\S*$/);
    if (end <= 0) return;
    this.#say(this.pending.slice(0, end));
    this.pending = this.pending.slice(end);
  }

  end(sentence) {
    this.#say(`${this.pending} ${sentence}`);
    this.pending = "";
  }

  #say(text) {
    this.said = performance.now();
    find("#spoken").append(`${this.name}${text.trim()}\n`);
    while (find("#spoken").childNodes.length > 20) find("#spoken").firstChild.remove();
  }
}
