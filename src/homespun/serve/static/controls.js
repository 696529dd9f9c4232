// The sampling controls: their form, and the fields of a request that they become.

import { Failure } from "./api.js";
import { element, find } from "./page.js";

// `off`: the value that changes nothing, which is not sent. Without a value and without `off`, a field may be empty.
const CONTROLS = [
  { name: "temperature", label: "Temperature", value: 0.8, min: 0, max: 2, step: 0.05, slider: true,
    help: "Below 1 bolder in what is likely, above 1 more varied; 0 always takes the likeliest." },
  { name: "top_p", label: "Top-p", value: 1, off: 1, min: 0.01, max: 1, step: 0.01, slider: true,
    help: "Only the smallest set of likeliest tokens that reaches this probability. 1 is off." },
  { name: "max_tokens", label: "Max tokens", value: 200, min: 1, max: 1000000, step: 1,
    help: "The most tokens that are written." },
  { name: "seed", label: "Seed", min: 0, max: Number.MAX_SAFE_INTEGER, step: 1, empty: "random",
    help: "The same seed gives the same text. Empty: another one each time." },
  { name: "n", label: "Texts", value: 1, min: 1, max: 64, step: 1,
    help: "How many texts are written from one prompt." },
  { name: "top_k", label: "Top-k", min: 1, max: 1000000, step: 1, empty: "all", more: true,
    help: "Only the k likeliest tokens." },
  { name: "min_p", label: "Min-p", value: 0, off: 0, min: 0, max: 1, step: 0.01, slider: true, more: true,
    help: "Only tokens at least this many times as likely as the likeliest. 0 is off." },
  { name: "typical_p", label: "Typical-p", value: 1, off: 1, min: 0.01, max: 1, step: 0.01, slider: true, more: true,
    help: "Only tokens about as surprising as expected, up to this probability. 1 is off." },
  { name: "repetition_penalty", label: "Repetition penalty", value: 1, off: 1, min: 0.5, max: 2, step: 0.05,
    slider: true, more: true, help: "Above 1, tokens of the prompt and the text become less likely. 1 is off." },
  { name: "frequency_penalty", label: "Frequency penalty", value: 0, off: 0, min: -2, max: 2, step: 0.1, slider: true,
    more: true, help: "Taken from a token's logit each time it was written. 0 is off." },
  { name: "presence_penalty", label: "Presence penalty", value: 0, off: 0, min: -2, max: 2, step: 0.1, slider: true,
    more: true, help: "Taken once from the logit of a token that was written. 0 is off." },
  { name: "stop", label: "Stop strings", lines: 2, more: true, read: stops,
    help: "One in a line; \\n stands for a new line. A text ends before the first of them." },
  { name: "logit_bias", label: "Logit bias", lines: 2, more: true, read: biases, placeholder: "42: -100",
    help: "One “id: bias” in a line, from -100 (never) to 100. A token's id stands with its alternatives." },
  { name: "regex", label: "Regular expression", lines: 1, more: true, read: expression, placeholder: "[0-9]{4}",
    help: "The text matches it from beginning to end." },
  { name: "response_format", label: "JSON schema", lines: 3, more: true, read: schema, placeholder: '{"type": "object"}',
    help: "The text is JSON that fits this schema; {} is any object." },
];

export class Controls {
  // Fills `basic` and `more`, begins with the `kept` values, and calls `changed` after each change.
  constructor(basic, more, kept, changed) {
    this.changed = changed;
    this.fields = new Map();
    for (const control of CONTROLS) {
      const field = control.lines ? this.#area(control) : this.#number(control);
      this.fields.set(control.name, field);
      (control.more ? more : basic).append(field.root);
    }
    this.set(kept);
  }

  set(values) {
    for (const control of CONTROLS) {
      const { input, slider } = this.fields.get(control.name);
      input.value = values[control.name] ?? control.value ?? "";
      if (slider) slider.value = input.value;
    }
  }

  // What stands in the fields, to be remembered.
  get kept() {
    return Object.fromEntries(CONTROLS.map(({ name }) => [name, this.fields.get(name).input.value]));
  }

  // How many fields in `more` are not as they come.
  get changes() {
    const { kept } = this;
    return CONTROLS.filter(({ more, name, value }) => more && kept[name] !== String(value ?? "")).length;
  }

  get summary() {
    const { temperature, max_tokens: most, seed } = this.kept;
    return `temperature ${temperature || 0.8}, ${most || 200} tokens, seed ${seed || "random"}`;
  }

  // The fields of a request. Throws a Failure that names the first wrong one, which gets the focus.
  request() {
    const body = {};
    for (const control of CONTROLS) {
      const { input } = this.fields.get(control.name);
      const value = control.read ? control.read(input) : number(control, input);
      if (value !== undefined && value !== control.off) body[control.name] = value;
    }
    return body;
  }

  focus(name) {
    this.fields.get(name).input.focus();
  }

  #number(control) {
    const id = `control-${control.name}`;
    const bounds = { min: control.min, max: control.max, step: control.step };
    const input = element("input", {
      id, type: "number", inputMode: control.step < 1 ? "decimal" : "numeric", ...bounds,
      placeholder: control.empty ?? "", "aria-describedby": `${id}-help`, autocomplete: "off",
    });
    // The slider is the pointer's way to the number; the keyboard and readers have the number itself.
    const range = { type: "range", ...bounds, tabIndex: -1, "aria-hidden": "true" };
    const slider = control.slider && element("input", range);
    input.addEventListener("input", () => { if (slider) slider.value = input.value; this.changed(); });
    slider?.addEventListener("input", () => { input.value = slider.value; this.changed(); });
    return { root: this.#field(control, id, input, slider), input, slider };
  }

  #area(control) {
    const id = `control-${control.name}`;
    const input = element("textarea", {
      id, rows: control.lines, placeholder: control.placeholder ?? "", spellcheck: false,
      "aria-describedby": `${id}-help`,
    });
    input.addEventListener("input", this.changed);
    return { root: this.#field(control, id, input), input };
  }

  #field({ label, help, lines }, id, input, slider) {
    const top = element("div", { class: "field-top" }, element("label", { htmlFor: id, textContent: label }));
    const field = element("div", { class: "field" }, top);
    (lines ? field : top).append(input);
    if (slider) field.append(slider);
    field.append(element("p", { id: `${id}-help`, class: "help", textContent: help }));
    return field;
  }
}

function number({ label, value, min, max, step }, input) {
  if (input.value === "" && !input.validity.badInput) return value;
  const given = input.valueAsNumber;
  if (!Number.isFinite(given) || given < min || given > max || (step === 1 && !Number.isInteger(given))) {
    throw wrong(input, `${label} should be a ${step === 1 ? "whole number" : "number"} from ${min} to ${max}.`);
  }
  return given;
}

const ESCAPES = { "\\n": "\n", "\\t": "\t", "\\\\": "\\" };

function stops(input) {
  const lines = input.value.split("\n").filter((line) => line !== "");
  return lines.length ? lines.map((line) => line.replace(/\\[nt\\]/g, (mark) => ESCAPES[mark])) : undefined;
}

function biases(input) {
  const lines = input.value.split(/[\n,]/).map((line) => line.trim()).filter(Boolean);
  const found = lines.map((line) => {
    const [, id, bias] = line.match(/^(\d+)\s*[:=]\s*([+-]?\d+(?:\.\d+)?)$/) ?? [];
    if (id === undefined || Math.abs(bias) > 100) {
      throw wrong(input, `Logit bias: “${line}” should be a token's id, a colon, and a number from -100 to 100.`);
    }
    return [id, Number(bias)];
  });
  return found.length ? Object.fromEntries(found) : undefined;
}

function expression(input) {
  return input.value === "" ? undefined : input.value;
}

function schema(input) {
  if (!input.value.trim()) return undefined;
  let found;
  try {
    found = JSON.parse(input.value);
  } catch { /* told below */ }
  if (found === null || typeof found !== "object" || Array.isArray(found)) {
    throw wrong(input, "JSON schema should be a JSON object, such as {\"type\": \"object\"}.");
  }
  return { type: "json_schema", json_schema: { name: "text", schema: found } };
}

function wrong(input, message) {
  const folded = input.closest("details:not([open])");
  if (folded) folded.open = true;
  find("#settings").open = true;
  input.focus();
  return new Failure(message);
}
