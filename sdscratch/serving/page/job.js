// One drawing on the server: asked for, followed to its end across lost connections, cancelled.

import { Refusal, events, get, post, remove } from "./api.js";

const ENDS = new Set(["done", "failed", "cancelled"]);
const RETRY = 2000; // ms between tries while the server does not answer

export const submit = async (wanted) => (await post("jobs", wanted)).id;

export const cancel = (id) => remove(`jobs/${id}`);

// Yields {event, data} as the server sends them, and {event: "lost"} while it does not answer. The last one is an end.
// signal: lets go of it where there is nobody to end it.
export async function* follow(id, signal) {
  for (;;) {
    try {
      for await (const message of events(`jobs/${id}/events`, signal)) {
        yield message;
        if (ENDS.has(message.event)) return;
      }
      const job = await get(`jobs/${id}`, signal); // the connection was closed without a word of the end
      if (ENDS.has(job.status)) {
        yield { event: job.status, data: job };
        return;
      }
    } catch (error) {
      if (!(error instanceof Refusal) || error.status !== 0) throw error;
      yield { event: "lost", data: error };
    }
    await new Promise((resolve) => setTimeout(resolve, RETRY));
    signal.throwIfAborted();
  }
}
