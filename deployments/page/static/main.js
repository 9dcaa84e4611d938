// The page as a whole: who may see it, when it looks, and what it says of itself.

import { Problem, ask, forgetToken, hasToken, isToken, keepToken } from "./api.js";
import { askPerson } from "./asking.js";
import { drawDecisions, onAnswer, showWaiting, waitingIn } from "./decisions.js";
import { setText } from "./dom.js";
import { events, followEvents, stopEvents } from "./events.js";
import { drawIslands } from "./islands.js";
import { drawModels } from "./models.js";
import { clock, counted, moment, pools } from "./words.js";

const PERIOD_MS = 2000, SOON_MS = 250, PATIENCE_MS = 15000;
const part = (id) => document.getElementById(id);
let seen = null, seenAt = null, timer = null, round = 0, isLooking = false, again = false;

function openDoor(sentence = "") {
  round += 1; // an answer that is still on its way is for nobody
  clearTimeout(timer);
  stopEvents();
  forgetToken();
  seen = null;
  drawWaiting([]);
  part("fleet").hidden = true;
  part("door").hidden = false;
  setText(part("refused"), sentence);
  part("token").value = "";
  part("token").focus();
}

function enter() {
  part("door").hidden = true;
  part("fleet").hidden = false;
  followEvents((error) => openDoor(error.message), look);
  look();
}

// Look at everything once, and again after a while. Whoever asks meanwhile is answered by the next look: however fast
// things happen, each look is finished and shown.
async function look() {
  clearTimeout(timer);
  again = isLooking;
  if (isLooking) return;
  isLooking = true;
  await lookOnce(round).finally(() => { isLooking = false; });
  if (!document.hidden && !part("fleet").hidden) timer = setTimeout(look, again ? SOON_MS : PERIOD_MS);
}

async function lookOnce(mine) {
  const read = (path) => ask(path, { signal: AbortSignal.timeout(PATIENCE_MS) });
  const unlessAway = (error) => { if (error.status === 401) throw error; return null; }; // the load is worth less than the rest
  try {
    const [overview, decisions, load] = await Promise.all([read("v1/fleet"), read("v1/decisions"), read("v1/load").catch(unlessAway)]);
    if (mine !== round) return;
    seen = { overview, decisions, load };
    seenAt = new Date();
    draw();
  } catch (error) {
    if (mine !== round) return;
    if (error.status === 401) return openDoor(error.message);
    if (!(error instanceof Problem)) console.error(error); // a mistake of this page: it is said, and the next look may do
    trouble(seen ? `${error.message} What is shown is of ${clock(seenAt)}.` : error.message);
  }
}

function draw() {
  const begun = performance.now();
  const { overview, decisions, load } = seen;
  drawIslands(overview);
  drawModels(overview, load, decisions, events);
  drawDecisions(decisions);
  drawBar(overview, decisions);
  trouble(load?.troubles.join(" ") || "");
  performance.clearMeasures("update");
  performance.measure("update", { start: begun });
}

function drawBar({ cluster }, decisions) {
  const gpus = cluster.nodes.reduce((sum, node) => sum + node.gpus, 0);
  const free = cluster.nodes.reduce((sum, node) => sum + (node.draining ? 0 : node.free_gpus), 0);
  setText(part("hardware"), [counted(new Set(cluster.nodes.map((node) => node.island)).size, "island"), counted(cluster.nodes.length, "node"), counted(gpus, "GPU"), `${free.toLocaleString("en")} free`].join(" \u00b7 "));
  setText(part("pulse"), `live, ${clock(seenAt)}`);
  part("pulse").className = "good";
  drawWaiting(waitingIn(decisions));
  drawFreeze(decisions);
}

// On top, since what waits for a person may be far below a thousand GPUs; and in the title, for who looks at another tab.
function drawWaiting(waiting) {
  const [first] = waiting, banner = part("waiting");
  const one = first && `Decision ${first.entry.number} of ${first.model} waits for an answer: ${pools(first.entry.before)} \u2192 ${pools(first.entry.target)}.`;
  setText(banner.firstChild, waiting.length > 1 ? `${counted(waiting.length, "decision")} wait for an answer.` : one || "");
  banner.hidden = waiting.length === 0;
  document.title = waiting.length ? `(${waiting.length}) Archipelago` : "Archipelago";
}

function drawFreeze({ models, freeze: asked }) {
  const frozen = models.map((said) => said.frozen).find(Boolean) || null;
  const acting = models.filter((said) => said.mode !== "advise");
  const button = part("freeze"), banner = part("frozen");
  setText(button, frozen ? "Allow changes" : "Freeze changes");
  button.disabled = acting.length === 0 || asked !== null;
  button.title = acting.length ? "" : models.length ? "The autoscaler only advises." : "No autoscaler was heard of.";
  button.dataset.freezes = String(!frozen);
  const parts = [];
  if (frozen) parts.push(`Frozen by ${frozen.by}${frozen.since_s ? ` since ${moment(frozen.since_s)}` : ""}${frozen.why ? `: ${frozen.why}` : ""}. The autoscaler changes nothing.`);
  if (asked) parts.push(`${asked.by} asks to ${asked.is_frozen ? "freeze" : "allow changes"}; the autoscaler takes it with its next look.`);
  setText(banner, parts.join(" "));
  banner.hidden = parts.length === 0;
}

function trouble(sentence) {
  setText(part("trouble"), sentence);
  part("trouble").hidden = sentence === "";
  if (sentence && seenAt && Date.now() - seenAt > PERIOD_MS * 2) {
    setText(part("pulse"), "no answer");
    part("pulse").className = "bad";
  }
}

part("entrance").addEventListener("submit", (event) => {
  event.preventDefault();
  const token = part("token").value.trim();
  if (!isToken(token)) return setText(part("refused"), "A token has only letters, digits and - . _ ~ + / =; give it as it was made.");
  keepToken(token);
  ask("v1/fleet").then(enter, (error) => (error.status === 401 ? openDoor(error.message) : error.status ? enter() : openDoor(error.message)));
});
part("leave").addEventListener("click", () => openDoor());
part("freeze").addEventListener("click", () => {
  const isFrozen = part("freeze").dataset.freezes === "true";
  askPerson({
    title: isFrozen ? "Freeze changes" : "Allow changes",
    text: isFrozen ? "The autoscaler goes on looking, but changes nothing of any model until changes are allowed again." : "The autoscaler may change fleets again.",
    yes: isFrozen ? "Freeze" : "Allow",
    act: (why) => ask("v1/freeze", { method: "PUT", body: { is_frozen: isFrozen, why } }),
    done: look,
  });
});
part("waiting").lastChild.addEventListener("click", showWaiting);
onAnswer(look);
document.addEventListener("visibilitychange", () => { if (!document.hidden && !part("fleet").hidden) look(); });
if (hasToken()) enter();
else openDoor();
