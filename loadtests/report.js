"use strict";
const run = JSON.parse(document.getElementById("data").textContent);
const time = run.over_time, MINUTE = 60;
// A telephone would show a wide drawing with letters that are too small to read.
const IS_NARROW = innerWidth <= 560, MOST_TIMES = IS_NARROW ? 5 : 8;
const W = IS_NARROW ? 360 : 600, H = 232, LEFT = 56, RIGHT = 12, TOP = 26, BOTTOM = 26;
const COLOURS = ["one", "two", "three", "four", "five", "six"].map((name) => `var(--${name})`);
const SHARES = [["p50", "var(--low)"], ["p95", "var(--middle)"], ["p99", "var(--high)"]];
const marks = run.events.filter((event) => event.kind !== "gpus");
const end = Math.max(time.from_s.length * time.window_s, ...run.events.map((event) => event.at_s), 1e-9);
const x = (at) => LEFT + (at / end) * (W - LEFT - RIGHT);

function esc(text) { return String(text).replace(/[&<>"]/g, (c) => ({ "&": "&amp;", "<": "&lt;", ">": "&gt;", '"': "&quot;" })[c]); }
function count(value) { return value >= 100 ? Math.round(value).toLocaleString("en") : value >= 10 ? value.toFixed(1) : +value.toFixed(2); }
function percent(share) { return `${+(share * 100).toFixed(share > 0.99 && share < 1 ? 2 : 1)} %`; }
function duration(s) {
  if (s >= 1) return `${s < 100 ? s.toFixed(2) : count(s)} s`;
  return `${s * 1000 >= 100 ? Math.round(s * 1000) : +(s * 1000).toPrecision(3)} ms`;
}
// All marks of an axis in the unit of its largest.
function durationMark(s, most) { return most >= 1 ? `${+s.toPrecision(3)} s` : `${+(s * 1000).toPrecision(3)} ms`; }
function countMark(value) { return value >= 1000 ? Math.round(value).toLocaleString("en") : `${+value.toPrecision(3)}`; }
function clock(s) {
  const whole = Math.round(s), hours = Math.floor(whole / 3600), minutes = Math.floor(whole / 60) % 60, rest = String(whole % 60).padStart(2, "0");
  return hours ? `${hours}:${String(minutes).padStart(2, "0")}:${rest}` : `${minutes}:${rest}`;
}

function latency(key) {
  const limits = [run.slo.limits, ...Object.values(run.slo.classes)].map((each) => each[key]).filter((limit) => limit !== null && limit !== undefined);
  return [...new Set(limits)];
}
function shares(name) { return SHARES.map(([rank, colour]) => ({ name: rank, colour, values: time[`${name}_${rank}_s`] })); }
const PANELS = [
  { title: "Requests per second", unit: "1/s", text: count, lines: [
    { name: "scheduled", colour: "var(--line)", values: time.scheduled_per_s, area: true }, { name: "sent", colour: "var(--one)", values: time.sent_per_s },
    { name: "answered", colour: "var(--three)", values: time.answered_per_s }, { name: "failed", colour: "var(--bad)", values: time.failed_per_s, unlessZero: true }] },
  { title: "SLO attainment by minute", unit: "of arrivals", minutes: true },
  { title: "Time to first token", unit: "", text: duration, lines: shares("ttft"), limits: latency("ttft_s"), latency: true },
  { title: "Time per output token", unit: "", text: duration, lines: shares("tpot"), limits: latency("tpot_s"), latency: true },
  { title: "Tokens per second", unit: "tokens/s", text: count, lines: [
    { name: "output", colour: "var(--one)", values: time.output_tokens_per_s }, { name: "input", colour: "var(--five)", values: time.input_tokens_per_s }] },
  { title: "GPUs by shape", unit: "GPUs", shapes: true },
  { title: "Longest stall of a stream", unit: "", text: duration, latency: true, lines: [{ name: "longest", colour: "var(--four)", values: time.longest_stall_s }] },
  { title: "Requests in flight", unit: "", text: count, lines: [{ name: "in flight", colour: "var(--one)", values: time.in_flight }] },
  { title: "Client lag", unit: "", text: duration, latency: true, lines: [{ name: "most in a window", colour: "var(--soft)", values: time.lag_max_s }] },
].filter((spec) => !spec.shapes || run.events.some((event) => event.kind === "gpus"));
for (const spec of PANELS) if (spec.lines) spec.lines = spec.lines.filter((line) => !line.unlessZero || line.values.some((value) => value > 0));

function steps(high) {
  const raw = high / 4, power = 10 ** Math.floor(Math.log10(raw));
  const stride = power * [1, 2, 2.5, 5, 10].find((factor) => factor * power >= raw * 0.999);
  return Array.from({ length: Math.floor(high / stride + 1e-9) + 1 }, (_, index) => index * stride);
}
// Marks of a logarithmic axis: the fewest that are at least three.
function decades(low, high) {
  const choices = [[1], [1, 3], [1, 2, 5], [1, 1.5, 2, 3, 5, 7], [1, 1.2, 1.4, 1.6, 1.8, 2, 2.5, 3, 3.5, 4, 5, 6, 7, 8, 9]].map((factors) => {
    const found = [];
    for (let power = Math.floor(Math.log10(low)); power <= Math.ceil(Math.log10(high)); power++)
      for (const factor of factors) found.push(factor * 10 ** power);
    return found.filter((value) => value >= low * 0.999 && value <= high * 1.001);
  });
  return choices.find((found) => found.length >= 3) || choices.at(-1);
}
function strides() {
  const stride = [1, 2, 5, 10, 15, 30, 60, 120, 300, 600, 1200, 1800, 3600, 7200, 14400, 21600, 43200, 86400].find((each) => end / each <= MOST_TIMES) || 86400 * Math.ceil(end / 86400 / MOST_TIMES);
  return Array.from({ length: Math.floor(end / stride) + 1 }, (_, index) => index * stride);
}

function frame(rows, y, text, unit) {
  const lines = rows.map((value) => `<line class="gridline" x1="${LEFT}" x2="${W - RIGHT}" y1="${y(value)}" y2="${y(value)}"/>
    <text x="${LEFT - 7}" y="${y(value) + 4}" text-anchor="end">${text(value, rows.at(-1))}</text>`);
  const across = strides().map((at) => `<text x="${x(at)}" y="${H - 8}" text-anchor="middle">${clock(at)}</text>`);
  return `${lines.join("")}<line class="axis" x1="${LEFT}" x2="${W - RIGHT}" y1="${H - BOTTOM}" y2="${H - BOTTOM}"/>
    ${across.join("")}<text x="2" y="11">${esc(unit)}</text>`;
}
// Events that are near each other share one mark: their heads would cover each other.
function clusters() {
  const found = [];
  marks.forEach((event, index) => {
    const last = found.at(-1), at = x(event.at_s);
    if (last && at - last.from < 16) Object.assign(last, { to: at, until: index + 1, failed: last.failed || event.outcome === "failed" });
    else found.push({ from: at, to: at, first: index + 1, until: index + 1, failed: event.outcome === "failed" });
  });
  return found;
}
function eventMarks() {
  const lines = marks.map((event, index) => `<g class="event ${event.outcome === "failed" ? "failed" : ""}" data-event="${index}">
    <line x1="${x(event.at_s)}" x2="${x(event.at_s)}" y1="8" y2="${H - BOTTOM}"/></g>`);
  const heads = clusters().map((each) => {
    const text = each.first === each.until ? each.first : `${each.first}\u2013${each.until}`, middle = (each.from + each.to) / 2;
    const half = Math.max(7.5, String(text).length * 3.6 + 2);
    return `<g class="event ${each.failed ? "failed" : ""}"><rect x="${middle - half}" y="1" width="${2 * half}" height="15" rx="7.5"/>
      <text x="${middle}" y="12.3" text-anchor="middle">${text}</text></g>`;
  });
  return lines.join("") + heads.join("");
}
function svg(spec, inside) {
  return `<svg viewBox="0 0 ${W} ${H}" role="img" aria-label="${esc(spec.title)} over time">${inside}${eventMarks()}
    <line class="cursor" y1="${TOP}" y2="${H - BOTTOM}"/></svg>`;
}
function header(spec, keys) { return `<header><h3>${esc(spec.title)}</h3>${keys.join("")}</header>`; }
function key(name, colour, kind = "") { return `<span class="key"><i class="${kind}" style="background:${colour}"></i>${esc(name)}</span>`; }

function path(values, y) {
  let drawn = "", open = false;
  values.forEach((value, index) => {
    if (value === null) { open = false; return; }
    const middle = x((index + 0.5) * time.window_s);
    // A window between two empty ones is a dot: a line of no length with round ends.
    drawn += `${open ? "L" : "M"}${middle.toFixed(1)},${y(value).toFixed(1)}${open ? "" : "h0.01"}`;
    open = true;
  });
  return drawn;
}
function band(values, y) {
  return values.map((value, index) => value === null ? "" :
    `M${x(index * time.window_s)},${y(0)}V${y(value)}H${x(Math.min(end, (index + 1) * time.window_s))}V${y(0)}Z`).join("");
}
function linePanel(spec) {
  const logarithmic = spec.latency && document.getElementById("log").checked;
  const values = spec.lines.flatMap((line) => line.values).filter((value) => value !== null && (!logarithmic || value > 0));
  if (!values.length) return header(spec, []) + svg(spec, `<text x="${W / 2}" y="${H / 2}" text-anchor="middle">nothing was measured</text>`);
  const most = Math.max(...values), limits = (spec.limits || []).filter((limit) => limit < most * 2.5);
  const high = Math.max(most, ...limits, 1e-9) * (logarithmic ? 1.3 : 1.08), low = Math.min(...values, ...limits) / 1.3;
  const share = logarithmic ? (value) => Math.log(Math.max(value, low) / low) / Math.log(high / low) : (value) => value / high;
  const y = (value) => H - BOTTOM - share(value) * (H - TOP - BOTTOM);
  const bands = spec.lines.filter((line) => line.area).map((line) => `<path fill="${line.colour}" d="${band(line.values, y)}"/>`);
  const lines = spec.lines.filter((line) => !line.area).map((line) => `<path class="curve" stroke="${line.colour}" d="${path(line.values, y)}"/>`);
  const asked = limits.map((limit) => `<line class="slo" x1="${LEFT}" x2="${W - RIGHT}" y1="${y(limit)}" y2="${y(limit)}"/>`);
  const keys = spec.lines.map((line) => key(line.name, line.colour, line.area ? "area" : ""));
  for (const limit of spec.limits || []) keys.push(`<span class="key"><i class="dashed"></i>SLO ${durationMark(limit, limit)}</span>`);
  return header(spec, keys) + svg(spec, frame(logarithmic ? decades(low, high) : steps(high), y, spec.latency ? durationMark : countMark, spec.unit) + bands.join("") + lines.join("") + asked.join(""));
}

// Bars hang from 100 %: their length is what was missed.
function minutePanel(spec) {
  const minutes = run.by_minute, found = minutes.filter((each) => each.attainment !== null), target = run.slo.attainment;
  const least = Math.min(...found.map((each) => each.attainment), target === null ? 1 : target, 0.999);
  const span = [0.002, 0.01, 0.02, 0.05, 0.1, 0.25, 0.5, 1].find((each) => each >= (1 - least) * 1.04) || 1;
  const y = (value) => TOP + 8 + ((1 - value) / span) * (H - TOP - 8 - BOTTOM);
  const bars = found.map((each) => {
    const left = x(each.from_s) + 1, width = Math.max(1.5, x(Math.min(each.from_s + MINUTE, end)) - left - 1);
    const colour = target === null ? "var(--one)" : each.attainment >= target ? "var(--good)" : "var(--bad)";
    return `<rect data-minute x="${left}" y="${y(1) - 4}" width="${width}" height="${y(each.attainment) - y(1) + 4}" rx="1.5" fill="${colour}"/>`;
  });
  const asked = target === null ? "" : `<line class="slo" x1="${LEFT}" x2="${W - RIGHT}" y1="${y(target)}" y2="${y(target)}"/>`;
  const rows = [0, 0.25, 0.5, 0.75, 1].map((part) => 1 - part * span);
  const keys = target === null ? [] : [key("reached", "var(--good)", "area"), key("missed", "var(--bad)", "area"), `<span class="key"><i class="dashed"></i>SLO ${percent(target)}</span>`];
  return header(spec, keys) + svg(spec, frame(rows, y, percent, spec.unit) + bars.join("") + asked);
}

const outcomes = document.getElementById("outcomes");
const gpus = run.events.filter((event) => event.kind === "gpus").map((event) => ({
  at_s: event.at_s, shapes: Object.fromEntries([...event.what.matchAll(/([a-z0-9]+)=(\d+)/g)].map(([, shape, number]) => [shape, +number])),
}));
const shapes = [...new Set(gpus.flatMap((each) => Object.keys(each.shapes)))].sort();
function shapePanel(spec) {
  const totals = gpus.map((each) => Object.values(each.shapes).reduce((sum, value) => sum + value, 0)), high = Math.max(...totals, 1) * 1.12;
  const y = (value) => H - BOTTOM - (value / high) * (H - TOP - BOTTOM);
  const areas = gpus.flatMap((each, index) => {
    const left = x(each.at_s), right = x(index + 1 < gpus.length ? gpus[index + 1].at_s : end);
    let sum = 0;
    return shapes.map((shape, number) => {
      const bottom = y(sum);
      sum += each.shapes[shape] || 0;
      return `<rect data-shape="${esc(shape)}" x="${left}" y="${y(sum)}" width="${Math.max(0, right - left)}" height="${bottom - y(sum)}" fill="${COLOURS[number % COLOURS.length]}" opacity=".85" shape-rendering="crispEdges"/>`;
    });
  });
  const rows = steps(high).filter(Number.isInteger);
  return header(spec, shapes.map((shape, number) => key(shape, COLOURS[number % COLOURS.length], "area"))) + svg(spec, frame(rows, y, countMark, spec.unit) + areas.join(""));
}

function draw() {
  document.getElementById("charts").innerHTML = PANELS.map((spec, index) =>
    `<section class="panel" data-panel="${index}">${spec.minutes ? minutePanel(spec) : spec.shapes ? shapePanel(spec) : linePanel(spec)}</section>`).join("");
  // An odd number of charts leaves a place, which the table beneath fills.
  if (PANELS.length % 2) document.getElementById("charts").append(outcomes);
}
function list() {
  document.getElementById("windows").textContent = `Windows of ${time.window_s} s; a latency belongs to the time at which its request was scheduled.`;
  document.getElementById("events").innerHTML = marks.map((event, index) => `<li class="${event.outcome === "failed" ? "failed" : ""}"><span class="no">${index + 1}</span>
    <span><time>${clock(event.at_s)}</time> <b>${esc(event.kind)}</b> ${esc(event.what)}${event.outcome === "failed" ? " <b style='color:var(--bad)'>failed</b>" : ""}${event.detail ? ` <span class="soft">${esc(event.detail)}</span>` : ""}</span></li>`).join("");
}

function values(spec, at) {
  const index = Math.min(time.from_s.length - 1, Math.floor(at / time.window_s));
  if (spec.lines) return spec.lines.map((line) => [line.colour, line.name, line.values[index] === null ? "–" : spec.text(line.values[index])]);
  if (spec.shapes) {
    const now = gpus.filter((each) => each.at_s <= at).at(-1);
    return shapes.map((shape, number) => [COLOURS[number % COLOURS.length], shape, now ? now.shapes[shape] || 0 : "–"]);
  }
  const minute = run.by_minute[Math.floor(at / MINUTE)];
  if (!minute || minute.attainment === null) return [["transparent", "no arrival", ""]];
  return [["transparent", "attainment", percent(minute.attainment)], ["transparent", "good", `${minute.good} of ${minute.arrivals}`]];
}
function point(event) {
  const tip = document.getElementById("tip"), panel = event.target.closest && event.target.closest(".panel"), box = panel && panel.querySelector("svg").getBoundingClientRect();
  const at = box ? (((event.clientX - box.left) / box.width) * W - LEFT) / (W - LEFT - RIGHT) * end : -1;
  const inside = at >= 0 && at < end && time.from_s.length > 0;
  tip.style.display = inside ? "block" : "none";
  for (const cursor of document.querySelectorAll(".cursor")) {
    cursor.style.visibility = inside ? "visible" : "hidden";
    if (inside) for (const side of ["x1", "x2"]) cursor.setAttribute(side, x(at));
  }
  if (!inside) return;
  const rows = values(PANELS[panel.dataset.panel], at).map(([colour, name, value]) => `<tr><td style="text-align:left"><i style="background:${colour}"></i>${esc(name)}</td><td>${esc(value)}</td></tr>`);
  tip.innerHTML = `<b>${clock(at)}</b><table>${rows.join("")}</table>`;
  const size = tip.getBoundingClientRect();
  tip.style.left = `${event.clientX + 16 + size.width < innerWidth ? event.clientX + 16 : event.clientX - 16 - size.width}px`;
  tip.style.top = `${Math.max(6, Math.min(innerHeight - size.height - 6, event.clientY - 20))}px`;
}

list();
draw();
document.getElementById("log").addEventListener("change", draw);
document.addEventListener("pointermove", point);
document.addEventListener("pointerleave", point);
addEventListener("beforeprint", () => { for (const each of document.querySelectorAll("details")) each.open = true; });
