// Talks to the server that this page came from. Every failure becomes a Refusal that says what it is.

export class Refusal extends Error {
  // status: as HTTP has it; 0 where no answer came. field: which setting is wrong, or null. seconds: when to try again, or null.
  constructor(status, message, { field = null, hint = null, seconds = null } = {}) {
    super(message);
    Object.assign(this, { status, field, hint, seconds });
  }
}

const token = () => sessionStorage.getItem("token");

async function request(path, { method = "GET", body, signal } = {}) {
  const headers = {};
  if (token()) headers.Authorization = `Bearer ${token()}`;
  if (body !== undefined) headers["Content-Type"] = "application/json";
  let answer;
  try {
    answer = await fetch(path, { method, headers, signal, body: body === undefined ? undefined : JSON.stringify(body) });
  } catch (error) {
    if (error.name === "AbortError") throw error;
    throw new Refusal(0, "The server does not answer.", { hint: "It may have been stopped, or the network is down." });
  }
  if (answer.ok) return answer;
  if (answer.status === 401) {
    await askForToken();
    return request(path, { method, body, signal });
  }
  throw await refusal(answer);
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

export const get = async (path, signal) => (await request(path, { signal })).json();
export const post = async (path, body) => (await request(path, { method: "POST", body })).json();
export const put = async (path, body) => (await request(path, { method: "PUT", body })).json();
export const remove = async (path) => void (await request(path, { method: "DELETE" }));

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
