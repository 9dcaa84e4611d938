// What happens, as it comes: each answer is waited for, and the next is asked for from there.

import { ask } from "./api.js";
import { el, keyed } from "./dom.js";
import { clock } from "./words.js";

const MOST = 200, WAIT_S = 25, PAUSE_MS = 3000;
const KINDS = { failure: "bad", loss: "bad", quarantine: "bad", rollback: "warn", "rolled-back": "warn", stall: "warn", reached: "good", target: "main" };
export const events = [];
let newest = null, following = null;

export function stopEvents() {
  following?.abort();
  following = null;
  events.length = 0;
  newest = null;
  draw();
}

// `failed` hears of what cannot be put right by asking again.
export async function followEvents(failed, changed) {
  stopEvents();
  const mine = (following = new AbortController());
  while (!mine.signal.aborted) {
    try {
      const query = newest === null ? "" : `?after=${newest}&wait_s=${WAIT_S}`;
      const page = await ask(`v1/events${query}`, { signal: mine.signal });
      if (page.gap) events.push({ number: `gap ${page.gap.first}`, at: new Date().toISOString(), kind: "gap", model: "", text: `Events ${page.gap.first} to ${page.gap.last} are gone: they came faster than they were read.` });
      events.push(...page.events);
      events.splice(0, events.length - MOST);
      newest = page.newest;
      draw();
      if (page.events.length) changed();
    } catch (error) {
      if (mine.signal.aborted) return;
      if (error.status === 401) return failed(error);
      if (error.status === 422) newest = null; // another controller, with numbers of its own
      await new Promise((resolve) => setTimeout(resolve, PAUSE_MS));
    }
  }
}

function draw() {
  const list = document.getElementById("events");
  keyed(list, [...events].reverse(), (event) => event.number, make, () => {});
  list.classList.toggle("empty", events.length === 0);
}

function make(event) {
  return el("li", {}, el("time", { datetime: event.at }, clock(new Date(event.at))), el("span", { class: `kind ${KINDS[event.kind] || ""}` }, event.kind),
    el("span", { class: "text" }, event.model ? el("b", {}, event.replica || event.model) : null, event.text));
}
