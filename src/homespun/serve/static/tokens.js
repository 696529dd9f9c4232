// Tokens: read from an answer of the server, and shown with their probabilities.

import { element, percent } from "./page.js";

// The tokens in a piece of a choice, of either endpoint: id, text that became certain with it, piece (the token
// itself), probability, and the likeliest alternatives.
export function tokensOf(choice) {
  const text = choice.delta ? choice.delta.content ?? "" : choice.text;
  const told = choice.logprobs;
  if (!told) return [];
  const tokens = told.content?.map(chatToken) ?? told.tokens.map((_, index) => completionToken(told, index));
  let rest = text;
  tokens.forEach((token, index) => {
    const last = index === tokens.length - 1;
    token.text = last ? rest : rest.startsWith(token.piece) ? token.piece : "";
    rest = rest.slice(token.text.length);
  });
  return tokens;
}

function chatToken({ id, token, logprob, top_logprobs: top }) {
  const alternatives = top.map((each) => ({ id: each.id, piece: each.token, probability: Math.exp(each.logprob) }));
  return { id, piece: token, probability: Math.exp(logprob), alternatives: best(alternatives) };
}

function completionToken(told, index) {
  const ids = told.top_ids?.[index] ?? {};
  const alternatives = Object.entries(told.top_logprobs?.[index] ?? {}).map(([piece, logprob]) => (
    { id: ids[piece], piece, probability: Math.exp(logprob) }
  ));
  return {
    id: told.token_ids[index], piece: told.tokens[index], probability: Math.exp(told.token_logprobs[index]),
    alternatives: best(alternatives),
  };
}

function best(alternatives) {
  return alternatives.sort((a, b) => b.probability - a.probability).slice(0, 5);
}

// What is seen of a token by itself: blanks and controls have pictures.
export function visible(piece) {
  if (piece === "") return "(nothing)";
  return pictured(piece).replace(/ /g, "␣").replace(/\n/g, "↵").replace(/\t/g, "⇥");
}

// A text without the control characters that a model of bytes may write.
export function pictured(text) {
  return text.replace(/[\u0000-\u0008\u000b-\u001f]/g, (control) => String.fromCharCode(0x2400 + control.charCodeAt(0)))
    .replace(/[\u007f-\u009f]/g, "\ufffd");
}

const LEVELS = [0.8, 0.5, 0.2, 0.05]; // a token below the last one is at the last level

export function level(probability) {
  const found = LEVELS.findIndex((least) => probability >= least);
  return found === -1 ? LEVELS.length : found;
}

export function legend() {
  const names = ["80 % or more", "50–80 %", "20–50 %", "5–20 %", "below 5 %"];
  return names.map((name, index) => element("span", { class: `token p${index}`, textContent: name }));
}

// A token in the text. `experts`: for each layer the experts that it chose, which then stand below it.
export function tokenElement(token, index, experts) {
  const kinds = ["token", `p${level(token.probability)}`];
  if (token.text === "") kinds.push("empty");
  if (token.byHand) kinds.push("by-hand");
  if (token.text.includes("\n") && !experts) kinds.push("line");
  const spoken = `${visible(token.piece)}, ${percent(token.probability)}${token.byHand ? ", chosen by you" : ""}`;
  const made = element("span", { class: kinds.join(" "), role: "button", tabIndex: -1, "data-index": index });
  made.setAttribute("aria-label", experts ? `${spoken}; ${spokenExperts(experts)}` : spoken);
  if (experts) made.append(element("span", { class: "word", textContent: visible(token.piece) }), gloss(experts));
  else made.textContent = pictured(token.text);
  return made;
}

// A token of the prompt with its experts.
export function readElement(piece, experts) {
  const word = element("span", { class: "word", textContent: visible(piece) });
  return element("span", { class: "token read", title: spokenExperts(experts) }, word, gloss(experts));
}

function gloss(experts) {
  const routed = experts.filter((chosen) => chosen); // layers without experts choose none
  const layers = routed.map((chosen) => element("span", { class: "layer" }, ...chosen.map(chip)));
  return element("span", { class: "gloss", "aria-hidden": "true" }, ...layers);
}

function chip(expert) {
  const made = element("i", { textContent: expert });
  made.style.setProperty("--hue", Math.round(expert * 137.5) % 360); // the golden angle: neighbours differ
  return made;
}

function spokenExperts(experts) {
  return experts.map((chosen, layer) => chosen && `layer ${layer}: ${chosen.join(" and ")}`).filter(Boolean).join(", ");
}
