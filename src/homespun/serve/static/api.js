// Asking the server: JSON, and streams of events. Every failure is one sentence.

export class Failure extends Error {}

export async function ask(path, body, signal) {
  const response = await send(path, body, signal);
  try {
    return await response.json();
  } catch (error) {
    throw told(error);
  }
}

// The objects of a stream, up to its "[DONE]".
export async function* stream(path, body, signal) {
  const response = await send(path, { ...body, stream: true }, signal);
  const reader = response.body.pipeThrough(new TextDecoderStream()).getReader();
  let rest = "";
  try {
    for (;;) {
      const { value, done } = await reader.read().catch((error) => { throw told(error); });
      if (done) throw new Failure("The connection broke before the text was finished.");
      const events = (rest + value).split("\n\n");
      rest = events.pop();
      for (const event of events) {
        const data = event.replace(/^data:\s*/, ""); // the server writes each event as one line
        if (data === "[DONE]") return;
        if (!data) continue;
        const parsed = JSON.parse(data);
        if (parsed.error) throw new Failure(sentence(parsed.error.message));
        yield parsed;
      }
    }
  } finally {
    reader.cancel().catch(() => {});
  }
}

async function send(path, body, signal) {
  const options = body === undefined
    ? { signal }
    : { method: "POST", headers: { "Content-Type": "application/json" }, body: JSON.stringify(body), signal };
  const response = await fetch(path, options).catch((error) => { throw told(error); });
  if (response.ok) return response;
  const said = await response.json().then((answer) => answer.error.message).catch(() => null);
  throw new Failure(sentence(said || `The server answered with the error ${response.status}`));
}

function told(error) {
  return error.name === "AbortError" ? error : new Failure("The server cannot be reached.");
}

function sentence(text) {
  const plain = text.trim();
  return /[.!?]$/.test(plain) ? plain : `${plain}.`;
}
