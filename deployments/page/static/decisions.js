// What the autoscaler has decided, with every option that lost, and the buttons to answer what it proposes.

import { answerPath, ask } from "./api.js";
import { askPerson } from "./asking.js";
import { el, keyed, redraw } from "./dom.js";
import { figure, lasting, moment, percent, pools } from "./words.js";

const SILENT_S = 120;
const STATES = { waiting: "main", acted: "good", approved: "good", failed: "bad", rejected: "warn", trying: "busy" };
const COLUMNS = ["option", "pools", "SLO kept", "once it serves", "GPU-s", "for the change", "takes", "stall"];
const target = document.getElementById("decisions");
let changed = () => {};

export function onAnswer(listener) {
  changed = listener;
}

export function drawDecisions(page) {
  target.classList.toggle("empty", page.models.length === 0);
  keyed(target, page.models, (said) => said.model, () => el("section", { class: "said" }, el("header"), el("div")), (box, said) => {
    const isSilent = said.age_s > SILENT_S;
    redraw(box.firstChild, { model: said.model, mode: said.mode, silent: isSilent ? lasting(said.age_s) : "" }, drawHead);
    const entries = [...said.entries].reverse();
    keyed(box.lastChild, entries, (entry) => `${entry.number} ${entry.at_s}`, makeEntry, (item, entry) => {
      const answer = page.approvals.find((one) => one.model === said.model && one.number === entry.number) || null;
      redraw(item.firstChild, { entry, answer, model: said.model }, drawSummary);
      redraw(item.lastChild, { entry, answer, model: said.model }, drawInside);
    });
  });
}

// What waits for a person and nobody has answered yet.
export function waitingIn(page) {
  const isAnswered = (model, number) => page.approvals.some((one) => one.model === model && one.number === number);
  return page.models.flatMap(({ model, entries }) => entries.filter((entry) => entry.state === "waiting" && !isAnswered(model, entry.number)).map((entry) => ({ model, entry })));
}

// Go to the first of them.
export function showWaiting() {
  const approve = target.querySelector(".decision .buttons .main");
  if (!approve) return;
  approve.closest("details").open = true;
  approve.scrollIntoView({ block: "center" });
  approve.focus({ preventScroll: true });
}

function drawHead({ model, mode, silent }) {
  return [el("h3", {}, model), el("span", { class: "badge soft" }, mode), silent ? el("span", { class: "note bad" }, `not heard of for ${silent}`) : null];
}

function makeEntry(entry) {
  return el("details", { class: "decision", open: entry.state === "waiting" }, el("summary"), el("div", { class: "inside" }));
}

function drawSummary({ entry, answer }) {
  const change = entry.kind === "hold" ? ["hold ", el("b", {}, pools(entry.target))] : [`${pools(entry.before)} \u2192 `, el("b", {}, pools(entry.target))];
  const state = entry.state === "noted" ? (entry.kind === "hold" ? "hold" : "advised") : entry.state;
  return [
    el("span", { class: "number" }, `#${entry.number}`), el("span", { class: "what" }, ...change),
    el("span", { class: `badge ${STATES[entry.state] || "soft"}` }, answer ? (answer.is_approved ? "being approved" : "being rejected") : state),
    entry.outcome ? el("span", { class: `badge ${entry.outcome.is_regretted ? "bad" : "good"}` }, entry.outcome.verdict) : null,
    el("time", {}, moment(entry.at_s)), el("span", { class: "why" }, el("i", {}, entry.cause.replace("-", " ")), entry.reason),
  ];
}

function drawInside({ entry, answer, model }) {
  const fate = [entry.by ? `${entry.state} by ${entry.by} at ${moment(entry.since_s)}.` : "", entry.why].filter(Boolean).join(" ");
  return [
    entry.state === "waiting" ? drawAnswering(entry, answer, model) : null,
    fate ? el("p", {}, fate) : null,
    entry.outcome ? el("p", {}, `Outcome, ${entry.outcome.verdict}: ${entry.outcome.why}`) : null,
    entry.expected ? el("p", { class: "soft" }, `Expected for the next ${lasting(entry.expected.horizon_s)}: ${figure(entry.expected.requests_per_s)} requests/s (${figure(entry.expected.mean_requests_per_s)} in the mean), ${figure(entry.expected.input_tokens)} tokens in and ${figure(entry.expected.output_tokens)} out.`) : null,
    entry.options.length ? drawOptions(entry) : el("p", { class: "soft" }, "Nothing was weighed."),
    entry.options_left_out ? el("p", { class: "soft" }, `${entry.options_left_out} more lost too; archipelago decisions --why ${entry.number} has them all.`) : null,
  ];
}

function drawAnswering(entry, answer, model) {
  if (answer) return el("p", { class: "note main" }, `${answer.is_approved ? "Approved" : "Rejected"} by ${answer.by}. The autoscaler takes it with its next look.`);
  return el("div", { class: "buttons" },
    el("button", { type: "button", class: "main", onclick: () => answerIt(entry, model, true) }, "Approve"),
    el("button", { type: "button", onclick: () => answerIt(entry, model, false) }, "Reject"));
}

function answerIt(entry, model, isApproved) {
  const change = `${pools(entry.before)} \u2192 ${pools(entry.target)}`;
  askPerson({
    title: `${isApproved ? "Approve" : "Reject"} decision ${entry.number}`,
    text: isApproved ? `${model}: ${change}. The autoscaler carries it out with its next look, unless what it sees then speaks for something else.` : `${model}: ${change} is not proposed again for a while.`,
    yes: isApproved ? "Approve" : "Reject",
    act: (why) => ask(answerPath(model, entry.number), { method: "PUT", body: { is_approved: isApproved, at_s: entry.at_s, why } }),
    done: () => changed(),
  });
}

function drawOptions(entry) {
  const isTaken = (option) => option.kind === entry.kind && pools(option.pools) === pools(entry.target);
  const rows = entry.options.flatMap((option) => {
    const { attainment, final_attainment, gpu_s, transition_gpu_s, transition_s, stall_s } = option.price;
    const cells = [pools(option.pools), percent(attainment), percent(final_attainment), figure(gpu_s), figure(transition_gpu_s), lasting(transition_s), lasting(stall_s)];
    const fate = isTaken(option) ? "won" : "lost";
    return [
      el("tr", { class: fate }, el("th", { scope: "row" }, option.kind), ...cells.map((cell) => el("td", {}, cell))),
      el("tr", { class: `${fate} reason` }, el("td", { colspan: String(COLUMNS.length) }, option.why)),
    ];
  });
  return el("div", { class: "scroll" }, el("table", { class: "options" }, el("thead", {}, el("tr", {}, ...COLUMNS.map((name) => el("th", { scope: "col" }, name)))), el("tbody", {}, ...rows)));
}
