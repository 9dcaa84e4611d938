// One panel for each model: how it does against its SLO, its pools and their load, and the change that is under way.

import { el, keyed, redraw } from "./dom.js";
import { colourOf } from "./islands.js";
import { NOTHING, clock, figure, lasting, percent, pools } from "./words.js";

const STEPS = new Set(["target", "step", "stall", "failure", "rollback", "replan", "migration", "replica"]);
const PHASES = { steady: "good", starting: "busy", repartitioning: "busy", "rolling-back": "warn", degraded: "warn", stopped: "soft" };
const COLUMNS = ["pool", "serving", "wanted", "running", "waiting", "KV cache", "tokens/s", "TTFT", "TPOT"];

export function drawModels(overview, load, decisions, events) {
  const target = document.getElementById("models");
  keyed(target, overview.fleets, (fleet) => fleet.model, () => el("article", { class: "model" }), (panel, fleet) => {
    const data = {
      fleet: { ...fleet, replicas: fleet.replicas.map(({ shape, phase, cause, name }) => ({ shape, phase, cause, name })) },
      load: load?.models.find((one) => one.model === fleet.model) || null,
      slo: sloOf(fleet.model, load, decisions),
      steps: fleet.repartition ? stepsOf(events, fleet.model) : [],
    };
    redraw(panel, data, drawModel);
  });
  target.classList.toggle("empty", overview.fleets.length === 0);
}

// What the autoscaler holds the model to; without one, what the ingresses promise.
function sloOf(model, load, decisions) {
  const said = decisions?.models.find((one) => one.model === model)?.slo;
  const told = load?.models.find((one) => one.model === model);
  if (said) return { ttft_s: said.ttft_s, tpot_s: said.tpot_s };
  return told && (told.slo_ttft_s !== null || told.slo_tpot_s !== null) ? { ttft_s: told.slo_ttft_s, tpot_s: told.slo_tpot_s } : null;
}

// What has happened since the target that is being worked towards was taken.
function stepsOf(events, model) {
  const mine = events.filter((event) => event.model === model && STEPS.has(event.kind));
  return mine.slice(Math.max(0, mine.findLastIndex((event) => event.kind === "target"))).slice(-12);
}

function drawModel({ fleet, load, slo, steps }) {
  return [
    el("header", {}, el("h3", {}, fleet.model), el("span", { class: `badge ${PHASES[fleet.phase] || "soft"}` }, fleet.phase.replace("-", " ")),
      el("span", { class: "soft" }, `${pools(fleet.desired_pools)}, version ${fleet.version}`)),
    fleet.shortfall ? el("p", { class: "note warn" }, `Only ${pools(fleet.effective_pools)}: ${fleet.shortfall}`) : null,
    el("div", { class: "tiles" },
      held("TTFT", load?.ttft_s, slo?.ttft_s, load, slo), held("TPOT", load?.tpot_s, slo?.tpot_s, load, slo),
      tile("Requests", figure(load?.requests_per_s), "a second"), tile("Tokens out", figure(load?.tokens_per_s), "a second"),
      tile("Waiting", load ? figure(sum(load.pools, "waiting")) : NOTHING, load ? `${figure(sum(load.pools, "running"))} running` : "load not known")),
    fleet.repartition ? drawRepartition(fleet, steps) : null,
    drawPools(fleet, load),
    ...fleet.replicas.filter((replica) => replica.cause).map((replica) => el("p", { class: "note bad" }, `${replica.name}: ${replica.cause}`)),
  ];
}

const sum = (rows, name) => rows.reduce((total, row) => total + row[name], 0);

function tile(title, value, below, extra = null, kind = "") {
  return el("div", { class: `tile ${kind}` }, el("h4", {}, title), el("b", {}, value), extra, el("p", {}, below));
}

// A time beside the limit of the SLO: the bar is full where the limit is reached.
function held(title, value_s, limit_s, load, slo) {
  const share = load ? `p${+(load.percentile * 100).toFixed(1)}` : "";
  const isKnown = typeof value_s === "number", isLimited = typeof limit_s === "number";
  const used = isKnown && isLimited ? value_s / limit_s : null;
  const kind = used === null ? "" : used > 1 ? "bad" : used > 0.85 ? "warn" : "good";
  const bar = used === null ? null : el("progress", { max: "1", value: String(Math.min(1, used)), "aria-label": `${title}: ${percent(used)} of its limit` });
  const verdict = used !== null && used > 1 ? "over" : "of";
  return tile(`${title} ${share}`, lasting(value_s), isLimited ? `${isKnown ? verdict : "limit"} ${lasting(limit_s)}` : slo ? "no limit" : "SLO not known", bar, kind);
}

function drawRepartition({ repartition: now, desired_pools: desired }, steps) {
  const all = Math.max(now.steps, now.step, 1), done = Math.min(now.step, all);
  const title = Object.keys(desired).length ? `Repartition to ${pools(desired)}` : "Removal of the model";
  return el("section", { class: "change", "aria-label": `${title}, in progress` },
    el("header", {}, el("h4", {}, title), el("span", { class: "soft" }, `${now.way}, for ${lasting(Math.floor(now.running_s))}; longest stall announced ${lasting(now.announced_stall_s)}`)),
    el("div", { class: "steps", role: "progressbar", "aria-valuemin": "0", "aria-valuemax": String(all), "aria-valuenow": String(done), "aria-label": `step ${done} of ${all}` },
      ...Array.from({ length: Math.min(all, 60) }, (_, place) => el("i", { class: place < done - 1 ? "done" : place === done - 1 ? "now" : "" }))),
    el("ol", {},
      ...steps.map((event) => el("li", { class: event.kind }, el("time", {}, clock(new Date(event.at))), el("span", {}, event.text))),
      el("li", { class: "doing" }, el("time", {}, `${done} of ${all}`), el("span", {}, now.doing))));
}

function drawPools(fleet, load) {
  const shapes = [...new Set([...Object.keys(fleet.desired_pools), ...fleet.replicas.map((replica) => replica.shape)])].sort((a, b) => a.localeCompare(b, "en", { numeric: true }));
  if (!shapes.length) return el("p", { class: "soft" }, "No replica runs, and none is wanted.");
  const rows = shapes.map((shape) => poolRow(fleet, shape, load?.pools.find((pool) => pool.shape === shape)));
  return el("div", { class: "scroll" }, el("table", { class: "pools" }, el("thead", {}, el("tr", {}, ...COLUMNS.map((name) => el("th", { scope: "col" }, name)))), el("tbody", {}, ...rows)));
}

function poolRow(fleet, shape, load) {
  const phases = new Map();
  for (const replica of fleet.replicas) if (replica.shape === shape) phases.set(replica.phase, (phases.get(replica.phase) || 0) + 1);
  const wanted = fleet.desired_pools[shape] || 0, serving = phases.get("serving") || 0;
  phases.delete("serving");
  const others = [...phases].map(([phase, count]) => `${count} ${phase}`).join(", ");
  const kv = load ? el("span", { class: "kv" }, el("progress", { max: "1", value: String(Math.min(1, load.kv_usage)), "aria-label": "KV cache in use" }), percent(load.kv_usage).replace(/\.\d+/, "")) : NOTHING;
  const cells = [figure(serving), figure(wanted), figure(load?.running), figure(load?.waiting), kv, figure(load?.tokens_per_s), lasting(load?.ttft_s), lasting(load?.tpot_s)];
  return el("tr", {},
    el("th", { scope: "row" }, el("i", { class: `gpu serving ${colourOf(fleet.model, shape)}` }), shape, others ? el("span", { class: "soft" }, others) : null),
    ...cells.map((cell) => el("td", {}, cell)));
}
