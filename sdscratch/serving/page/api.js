// Talks to the server that this page came from. Every failure becomes a Refusal that says what it is.

export class Refusal extends Error {
  // status: as HTTP has it; 0 where no answer came. field: which setting is wrong, or null. seconds: when to try again, or null.
  constructor(status, message, { field = null, hint = null, seconds = null } = {}) {
    super(message);
    Object.assign(this, { status, field, seconds, hint: hint?.startsWith("GET ") ? null : hint }); // what to GET is for programs
  }
}

const PATIENCE = 10_000; // ms, for what a server answers at once unless it hangs
const token = () => sessionStorage.getItem("token");

// signal: ends the waiting; quick: so does time.
async function request(path, { method = "GET", body, signal, quick = false } = {}) {
  const headers = {};
  if (token()) headers.Authorization = `Bearer ${token()}`;
  if (body !== undefined) headers["Content-Type"] = "application/json";
  let answer;
  try {
    const limit = quick ? AbortSignal.timeout(PATIENCE) : signal;
    answer = await fetch(path, { method, headers, signal: limit, body: body === undefined ? undefined : JSON.stringify(body) });
  } catch (error) {
    throw unanswered(error);
  }
  if (answer.ok) return answer;
  if (answer.status === 401) {
    await askForToken();
    return request(path, { method, body, signal, quick });
  }
  throw await refusal(answer);
}

const json = async (path, options) => (await request(path, options)).json().catch((error) => {
  throw unanswered(error);
});

function unanswered(error) {
  if (error.name === "AbortError") return error; // as it was wished
  return new Refusal(0, "The server does not answer.", { hint: "It may have been stopped, or the network is down." });
}

async function refusal(answer) {
  const about = await answer.json().catch(() => ({}));
  const after = answer.headers.get("Retry-After");
  return new Refusal(answer.status, about.error ?? about.status ?? `The server answered ${answer.status}.`, {
    field: about.field ?? null,
    hint: about.hint ?? null,
    seconds: after === null ? null : Number(after),
  });
}

let asking = null; // one question, however many requests wait for its answer

function askForToken() {
  const dialog = document.getElementById("token");
  asking ??= new Promise((resolve) => {
    const field = document.getElementById("token-value");
    document.getElementById("token-refused").hidden = !token();
    dialog.showModal();
    field.select();
    dialog.addEventListener("close", () => {
      sessionStorage.setItem("token", field.value.trim());
      asking = null;
      resolve();
    }, { once: true });
  });
  return asking;
}

export const get = (path, signal) => json(path, { signal });
export const getSoon = (path) => json(path, { quick: true });
export const post = (path, body) => json(path, { method: "POST", body, quick: true });
export const put = (path, body) => json(path, { method: "PUT", body });
export const remove = (path) => json(path, { method: "DELETE", quick: true });

// A picture as a data URI: an <img> itself could not send the token.
export async function picture(path) {
  const blob = await (await request(path)).blob();
  return new Promise((resolve, reject) => {
    const reader = new FileReader();
    reader.onload = () => resolve(reader.result);
    reader.onerror = () => reject(reader.error);
    reader.readAsDataURL(blob);
  });
}

// Server-sent events as {event, data}; ends when the connection does. EventSource could not send the token either.
export async function* events(path, signal) {
  const answer = await request(path, { signal });
  const reader = answer.body.pipeThrough(new TextDecoderStream()).getReader();
  let text = "";
  try {
    for (;;) {
      const { value, done } = await reader.read();
      if (done) return;
      text += value;
      const blocks = text.split(/\r?\n\r?\n/);
      text = blocks.pop();
      yield* blocks.map(parsed).filter(Boolean);
    }
  } catch (error) {
    if (error.name === "AbortError") throw error;
    throw new Refusal(0, "The connection to the server was lost.");
  } finally {
    reader.cancel().catch(() => {});
  }
}

function parsed(block) {
  const lines = block.split(/\r?\n/);
  const values = (name) => lines.filter((line) => line.startsWith(`${name}:`)).map((line) => line.slice(name.length + 1).trim());
  const data = values("data").join("\n");
  return data ? { event: values("event")[0] ?? "message", data: JSON.parse(data) } : null; // else a comment that keeps the line open
}
