// Every GPU as a cell, island by island, with who sits on it. An update touches only the cells that have changed.

import { el, keyed, redraw, setAttribute, setText } from "./dom.js";
import { counted } from "./words.js";

const COLOURS = 12;
const SIZES = [[64, "large"], [320, "medium"], [Infinity, "small"]];
const STATES = [["free", "free"], ["starting", "starting"], ["draining", "draining"], ["lost", "failed or lost"], ["leaving", "its node will go"]];
const colours = new Map(); // a pool keeps its colour as long as the page is open
const map = document.getElementById("islands"), readout = document.getElementById("readout"), legend = document.getElementById("legend");
const hint = readout.textContent;
let seatedCells = new Map(); // replica -> its cells
let current = null;

const poolKey = (model, shape) => `${model}\n${shape}`;

export function colourOf(model, shape) {
  const key = poolKey(model, shape);
  if (!colours.has(key)) colours.set(key, colours.size % COLOURS);
  return `p${colours.get(key)}`;
}

// Islands with their nodes and, for each GPU, who sits there.
function seated(overview) {
  const nodes = new Map(overview.cluster.nodes.map((node) => [node.name, { ...node, isGone: false, slots: Array(node.gpus).fill(null) }]));
  for (const fleet of overview.fleets) for (const replica of fleet.replicas) for (const seat of replica.seats) {
    if (!nodes.has(seat.node)) nodes.set(seat.node, { name: seat.node, island: seat.island, isGone: true, draining: false, slots: [] });
    const slots = nodes.get(seat.node).slots;
    while (slots.length <= seat.slot) slots.push(null);
    slots[seat.slot] = { fleet, replica, rank: seat.rank };
  }
  const islands = new Map();
  for (const node of nodes.values()) islands.set(node.island, [...(islands.get(node.island) || []), node]);
  const natural = (a, b) => a.name.localeCompare(b.name, "en", { numeric: true });
  return [...islands].map(([name, members]) => ({ name, nodes: members.sort(natural) })).sort(natural);
}

function stateOf(taken, node) {
  if (!taken) return node.isGone ? "lost" : node.draining ? "leaving" : "free";
  const phase = taken.replica.phase;
  if (node.isGone || phase === "failed" || phase === "lost") return "lost";
  return phase === "stopping" ? "draining" : phase;
}

function told(taken, node, slot) {
  const place = `${node.island}, ${node.name}, GPU ${slot}${node.isGone ? ", gone" : node.draining ? ", will go" : ""}`;
  if (!taken) return `${place}: ${node.isGone ? "lost" : "free"}`;
  const { fleet, replica, rank } = taken;
  return `${place}: ${replica.name} of ${fleet.model}, ${replica.shape}, rank ${rank}, ${replica.phase}${replica.cause ? `: ${replica.cause}` : ""}`;
}

export function drawIslands(overview) {
  const islands = seated(overview), gpus = islands.reduce((sum, island) => sum + island.nodes.reduce((all, node) => all + node.slots.length, 0), 0);
  for (const fleet of overview.fleets) for (const replica of fleet.replicas) colourOf(fleet.model, replica.shape);
  const size = SIZES.find(([most]) => gpus <= most)[1];
  for (const [, name] of SIZES) map.classList.toggle(name, name === size);
  seatedCells = new Map();
  keyed(map, islands, (island) => island.name, makeIsland, updateIsland);
  if (!current?.isConnected) choose(map.querySelector(".gpu"), false);
  map.classList.toggle("empty", gpus === 0);
  for (const part of [readout, legend]) part.hidden = gpus === 0;
  drawLegend(overview);
}

function makeIsland(island) {
  return el("article", { class: "island" }, el("header", {}, el("h3", {}, island.name), el("span")), el("div", { class: "nodes" }));
}

function updateIsland(card, island) {
  const all = island.nodes.flatMap((node) => node.slots.map((taken) => ({ taken, node })));
  const free = all.filter(({ taken, node }) => stateOf(taken, node) === "free").length;
  setText(card.querySelector("header span"), free ? `${free} of ${all.length} free` : all.every(({ taken }) => taken) ? `${all.length}, full` : `${all.length}, none free`);
  setAttribute(card, "aria-label", `${island.name}: ${counted(all.length, "GPU")}, ${free} free`);
  keyed(card.querySelector(".nodes"), island.nodes, (node) => node.name, makeNode, updateNode);
}

function makeNode() {
  return el("div", { class: "node" }, el("span", { class: "name" }), el("div", { class: "gpus" }));
}

function updateNode(row, node) {
  setAttribute(row, "class", `node${node.draining ? " leaving" : ""}${node.isGone ? " gone" : ""}`);
  setText(row.querySelector(".name"), `${node.name}${node.isGone ? " (gone)" : node.draining ? " (will go)" : ""}`);
  const cells = node.slots.map((taken, slot) => ({ taken, slot, node, before: node.slots[slot - 1], after: node.slots[slot + 1] }));
  keyed(row.querySelector(".gpus"), cells, (cell) => cell.slot, () => el("span", { role: "img", tabindex: "-1" }), updateCell);
}

function updateCell(cell, { taken, slot, node, before, after }) {
  const name = taken?.replica.name;
  const joined = `${name && before?.replica.name === name ? " joined" : ""}${name && after?.replica.name === name ? " joins" : ""}`;
  const colour = taken ? ` ${colourOf(taken.fleet.model, taken.replica.shape)}` : "";
  const lit = cell.classList.contains("lit") ? " lit" : "";
  setAttribute(cell, "class", `gpu ${stateOf(taken, node)}${colour}${joined}${lit}`);
  setAttribute(cell, "aria-label", told(taken, node, slot));
  setText(cell, taken ? String(taken.rank) : "");
  cell.replica = name;
  cell.pool = taken && poolKey(taken.fleet.model, taken.replica.shape);
  if (name) seatedCells.set(name, [...(seatedCells.get(name) || []), cell]);
}

function light(cells) {
  for (const cell of map.querySelectorAll(".lit")) if (!cells.includes(cell)) cell.classList.remove("lit");
  for (const cell of cells) cell.classList.add("lit");
  map.classList.toggle("dimmed", cells.length > 0);
}

function show(cell) {
  setText(readout, cell ? cell.getAttribute("aria-label") : hint);
  readout.classList.toggle("soft", !cell);
  light(cell?.replica ? seatedCells.get(cell.replica) || [] : []);
}

// One cell at a time can be reached with Tab: a thousand stops would lock everybody in.
function choose(cell, focus = true) {
  if (!cell) return;
  current?.setAttribute("tabindex", "-1");
  current = cell;
  cell.setAttribute("tabindex", "0");
  if (focus) cell.focus();
}

map.addEventListener("pointerover", (event) => show(event.target.closest(".gpu")));
map.addEventListener("pointerleave", () => show(null));
map.addEventListener("focusin", (event) => { show(event.target.closest(".gpu")); choose(event.target.closest(".gpu"), false); });
map.addEventListener("focusout", () => show(null));
map.addEventListener("keydown", (event) => {
  const steps = { ArrowRight: 1, ArrowLeft: -1, Home: -Infinity, End: Infinity };
  const cells = [...map.querySelectorAll(".gpu")], place = cells.indexOf(event.target);
  if (place < 0) return;
  if (event.key in steps) choose(cells[Math.min(cells.length - 1, Math.max(0, place + steps[event.key]))]);
  else if (event.key === "ArrowDown" || event.key === "ArrowUp") choose(beside(cells, event.target, event.key === "ArrowDown"));
  else return;
  event.preventDefault();
});

// The nearest cell of the next line, as the page is laid out now.
function beside(cells, from, isDown) {
  const here = from.getBoundingClientRect(), lines = cells.map((cell) => [cell, cell.getBoundingClientRect()]);
  const away = ([, box]) => (isDown ? box.top - here.top : here.top - box.top);
  const others = lines.filter((line) => away(line) > 2);
  const nearest = Math.min(...others.map(away));
  return others.filter((line) => away(line) < nearest + 2)
    .reduce((best, line) => (!best || Math.abs(line[1].left - here.left) < Math.abs(best[1].left - here.left) ? line : best), null)?.[0];
}

function drawLegend(overview) {
  const found = new Map();
  for (const fleet of overview.fleets) for (const { shape, seats } of fleet.replicas) {
    const key = poolKey(fleet.model, shape), known = found.get(key);
    found.set(key, { key, model: fleet.model, shape, gpus: (known?.gpus || 0) + seats.length });
  }
  redraw(legend, [...found.values()], (entries) => [
    ...entries.map(({ key, model, shape, gpus }) => el("span", { class: "entry pool", onpointerenter: () => light([...map.querySelectorAll(".gpu")].filter((cell) => cell.pool === key)), onpointerleave: () => light([]) },
      el("i", { class: `gpu serving ${colourOf(model, shape)}` }), el("span", {}, model), el("b", {}, shape), el("span", { class: "soft" }, counted(gpus, "GPU")))),
    ...STATES.map(([state, text]) => el("span", { class: "entry soft" }, el("i", { class: `gpu ${state} grey` }), text)),
  ]);
}
