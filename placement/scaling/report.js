"use strict";
const study = JSON.parse(document.getElementById("data").textContent);
const W = 560, H = 330, LEFT = 58, RIGHT = 14, TOP = 22, BOTTOM = 44;
const PANELS = [
  { key: "decode_ms", measure: "decode", parts: "parts_ms", title: `Time per token, ${count(study.running)} requests running`, unit: "ms a step", perfect: -1 },
  { key: "prefill_ms", measure: "prefill", parts: "prefill_parts_ms", title: `Time to read a prompt of ${count(study.input_tokens)} tokens`, unit: "ms", perfect: -1 },
  { key: "tokens_per_s", measure: "tokens", parts: "best_parts_ms", title: "Output of the replica at its best batch", unit: "tokens/s", perfect: 1 },
  { key: "tokens_per_s_per_gpu", measure: "tokens", parts: "best_parts_ms", title: "Output per GPU at the best batch", unit: "tokens/s per GPU", perfect: 0 },
];
const BARS = [
  { key: "parts_ms", title: `One decode step, ${count(study.running)} requests running`, unit: "ms a step" },
  { key: "prefill_parts_ms", title: `Reading a prompt of ${count(study.input_tokens)} tokens`, unit: "ms a prompt" },
];
const PARTS_OF = { parts_ms: "a decode step", prefill_parts_ms: "reading a prompt", best_parts_ms: "a token at the best batch" };
const SHAPES = ["circle", "square", "diamond", "up", "down", "circle"];
const shown = new Set(study.curves.map((curve) => curve.way));
let logarithmic = true;
let barsOf = study.telling_way;

function esc(text) { return String(text).replace(/[&<>"]/g, (c) => ({ "&": "&amp;", "<": "&lt;", ">": "&gt;", '"': "&quot;" })[c]); }
function count(number) { return Math.round(number).toLocaleString("en"); }
function figure(number) {
  if (number === 0) return "0";
  const size = Math.abs(number);
  return size >= 100 ? count(number) : size >= 10 ? number.toFixed(1) : size >= 1 ? number.toFixed(2) : number.toPrecision(2);
}
function percent(share) { return `${Math.round(share * 100)}%`; }
function tick(number) { return number >= 1e6 ? `${number / 1e6}M` : number >= 1e4 ? `${number / 1e3}k` : `${+number.toPrecision(3)}`; }
function fitting(curve) { return curve.points.filter((point) => point.fits); }

function ticks(low, high, log) {
  if (!log) {
    const raw = high / 5, power = 10 ** Math.floor(Math.log10(raw));
    const stride = power * [1, 2, 5, 10].find((factor) => factor * power >= raw);
    return Array.from({ length: Math.floor(high / stride) + 1 }, (_, index) => index * stride);
  }
  const inside = (factors) => {
    const found = [];
    for (let power = Math.floor(Math.log10(low)); power <= Math.ceil(Math.log10(high)); power++)
      for (const factor of factors) found.push(factor * 10 ** power);
    return found.filter((value) => value >= low * 0.999 && value <= high * 1.001);
  };
  const choices = [[1], [1, 3], [1, 2, 5], [1, 1.5, 2, 3, 5, 7], [1, 1.2, 1.4, 1.6, 1.8, 2, 2.5, 3, 3.5, 4, 5, 6, 7, 8, 9]].map(inside);
  return choices.find((found) => found.length >= 4) || choices[4];
}

function frame(marks, y, unit, across) {
  const rows = marks.map((value) => `<line class="gridline" x1="${LEFT}" x2="${W - RIGHT}" y1="${y(value)}" y2="${y(value)}"/>
    <text x="${LEFT - 7}" y="${y(value) + 4}" text-anchor="end">${tick(value)}</text>`);
  return `${rows.join("")}<line class="axis" x1="${LEFT}" x2="${W - RIGHT}" y1="${H - BOTTOM}" y2="${H - BOTTOM}"/>
    <text x="${LEFT - 50}" y="13">${esc(unit)}</text><text x="${(LEFT + W - RIGHT) / 2}" y="${H - 8}" text-anchor="middle">${across}</text>`;
}

function mark(shape, x, y, attributes) {
  const at = (points) => `<polygon points="${points.map(([dx, dy]) => `${x + dx},${y + dy}`).join(" ")}" ${attributes}/>`;
  if (shape === "square") return at([[-4.3, -4.3], [4.3, -4.3], [4.3, 4.3], [-4.3, 4.3]]);
  if (shape === "diamond") return at([[0, -6.2], [6.2, 0], [0, 6.2], [-6.2, 0]]);
  if (shape === "up") return at([[0, -6], [5.6, 4.4], [-5.6, 4.4]]);
  if (shape === "down") return at([[0, 6], [5.6, -4.4], [-5.6, -4.4]]);
  return `<circle cx="${x}" cy="${y}" r="5" ${attributes}/>`;
}

function panel(spec) {
  const curves = study.curves.filter((curve) => shown.has(curve.way) && fitting(curve).length);
  const points = curves.flatMap(fitting);
  if (!points.length) return `<h3>${esc(spec.title)}</h3><p class="soft">No way is chosen that fits.</p>`;
  const smallest = Math.min(...points.map((point) => point.gpus)), from = reference(points, spec);
  const values = points.map((point) => point[spec.key]), largest = Math.max(...points.map((point) => point.gpus));
  const high = Math.max(...values) * (logarithmic ? 1.25 : 1.06), low = logarithmic ? Math.min(...values) / 1.25 : 0;
  const most = Math.log2(Math.max(2 * smallest, largest));
  const x = (gpus) => LEFT + 14 + ((Math.log2(gpus) - Math.log2(smallest)) / (most - Math.log2(smallest))) * (W - LEFT - RIGHT - 28);
  const share = logarithmic ? (value) => Math.log(value / low) / Math.log(high / low) : (value) => value / high;
  const y = (value) => H - BOTTOM - share(value) * (H - TOP - BOTTOM);
  const sizes = [...new Set(points.map((point) => point.gpus))].sort((a, b) => a - b).filter((gpus) => Number.isInteger(Math.log2(gpus)));
  const labels = sizes.map((gpus) => `<text x="${x(gpus)}" y="${H - BOTTOM + 16}" text-anchor="middle">${gpus}</text>`).join("");
  const edge = study.island_gpus > smallest && study.island_gpus < largest
    ? `<line class="edge" x1="${x(study.island_gpus)}" x2="${x(study.island_gpus)}" y1="${TOP}" y2="${H - BOTTOM}"/>
       <text x="${x(study.island_gpus) + 5}" y="${TOP + 9}">island of ${study.island_gpus}</text>` : "";
  const ideal = Array.from({ length: 97 }, (_, step) => from.gpus * 2 ** ((step / 96) * (most - Math.log2(from.gpus))))
    .map((gpus) => [gpus, from[spec.key] * (gpus / from.gpus) ** spec.perfect]).filter(([, value]) => value >= low && value <= high);
  const perfect = ideal.length > 1 ? `<path class="perfect" d="M${ideal.map(([gpus, value]) => `${x(gpus)},${y(value)}`).join("L")}"/>` : "";
  const drawn = curves.map((curve) => line(curve, spec, x, y)).join("") + curves.map(losses(spec, x, y)).join("");
  return `<h3>${esc(spec.title)}</h3><svg viewBox="0 0 ${W} ${H}" role="img" aria-label="${esc(spec.title)} by GPUs">
    ${frame(ticks(low, high, logarithmic), y, spec.unit, "GPUs of one replica")}${labels}${edge}${perfect}${drawn}</svg>`;
}

// Perfect is a time that falls as GPUs are added to the smallest replica, and the output of copies of the best one.
function reference(points, spec) {
  const full = points.filter((point) => spec.measure !== "decode" || point.running >= study.running);
  if (spec.perfect >= 0) return points.reduce((a, b) => (b.tokens_per_s_per_gpu > a.tokens_per_s_per_gpu ? b : a));
  return (full.length ? full : points).reduce((a, b) => (b.gpus < a.gpus || (b.gpus === a.gpus && b[spec.key] < a[spec.key]) ? b : a));
}

function line(curve, spec, x, y) {
  const index = study.curves.indexOf(curve), colour = `var(--${curve.way})`;
  const path = fitting(curve).map((point) => `${x(point.gpus)},${y(point[spec.key])}`).join("L");
  const dash = curve.way === "tp_across" ? 'stroke-dasharray="7 4"' : "";
  const marks = curve.points.map((point, number) => {
    if (!point.fits) return "";
    const name = `${curve.title}, ${point.shape}: ${figure(point[spec.key])} ${spec.unit}`;
    const isShort = spec.measure === "decode" && point.running < study.running;
    return mark(SHAPES[index], x(point.gpus), y(point[spec.key]),
      `class="point" ${isShort ? `style="fill:var(--panel);stroke:${colour}"` : `fill="${colour}"`} tabindex="0" data-curve="${index}" data-point="${number}" data-parts="${spec.parts}" aria-label="${esc(name)}"`);
  });
  const turned = curve.turns.filter((turn) => turn.measure === spec.measure).map((turn) => {
    const point = curve.points.find((each) => each.gpus === turn.after_gpus), px = x(point.gpus), py = y(point[spec.key]);
    return turn.kind === "diminishing" ? `<circle class="ring" cx="${px}" cy="${py}" r="9"/>` : "";
  });
  return `<path class="curve" stroke="${colour}" ${dash} d="M${path}"/>${marks.join("")}${turned.join("")}`;
}

// Crosses of several curves at one place go above each other.
function losses(spec, x, y) {
  const taken = [];
  return (curve) => curve.turns.filter((turn) => turn.measure === spec.measure && turn.kind === "negative").map((turn) => {
    const [before, after] = [turn.before_gpus, turn.after_gpus].map((gpus) => curve.points.find((point) => point.gpus === gpus));
    const ratio = after[spec.key] / before[spec.key], px = x(after.gpus);
    let py = y(after[spec.key]) - 14;
    while (taken.some(([tx, ty]) => Math.abs(tx - px) < 50 && Math.abs(ty - py) < 14)) py -= 3;
    taken.push([px, py]);
    const beside = px > W - 70 ? `x="${px - 9}" text-anchor="end"` : `x="${px + 9}"`;
    return `<path class="cross" d="M${px - 5},${py - 5}l10,10m0,-10l-10,10"/>
      <text class="bad" ${beside} y="${py + 4}">${ratio > 1 ? "+" : "−"}${percent(Math.abs(ratio - 1))}</text>`;
  }).join("");
}

function bars(spec) {
  const curve = study.curves.find((each) => each.way === barsOf);
  if (!curve) return "";
  const total = (point) => Object.values(point[spec.key]).reduce((sum, value) => sum + value, 0);
  const high = Math.max(1e-9, ...fitting(curve).map(total)) * 1.1, slot = (W - LEFT - RIGHT) / curve.points.length;
  const y = (value) => H - BOTTOM - (value / high) * (H - TOP - BOTTOM), width = Math.min(58, slot * 0.66);
  const drawn = curve.points.map((point, number) => {
    const middle = LEFT + slot * (number + 0.5);
    const fewer = point.fits && spec.key === "parts_ms" && point.running < study.running ? ` (${count(point.running)} running)` : "";
    const label = `<text x="${middle}" y="${H - BOTTOM + 16}" text-anchor="middle">${point.gpus}${fewer}</text>`;
    const where = `data-curve="${study.curves.indexOf(curve)}" data-point="${number}" data-parts="${spec.key}"`;
    if (!point.fits)
      return `${label}<text x="${middle + 4}" y="${H - BOTTOM - 8}" transform="rotate(-90 ${middle + 4} ${H - BOTTOM - 8})" ${where}>not possible</text>`;
    let sum = 0;
    const stack = Object.keys(study.parts).filter((part) => point[spec.key][part] > 0).map((part) => {
      const bottom = y(sum);
      sum += point[spec.key][part];
      return `<rect class="part" x="${middle - width / 2}" y="${y(sum)}" width="${width}" height="${bottom - y(sum)}" fill="var(--${part})"/>`;
    });
    return `<g ${where} tabindex="0" class="bar">${stack.join("")}</g>${label}
      <text class="value" x="${middle}" y="${y(sum) - 5}" text-anchor="middle">${figure(sum)}</text>`;
  });
  return `<h3>${esc(spec.title)}: ${esc(curve.title)}</h3><svg viewBox="0 0 ${W} ${H}" role="img" aria-label="${esc(spec.title)} by part">
    ${frame(ticks(0, high, false), y, spec.unit, "GPUs of one replica")}${drawn.join("")}</svg>`;
}

function rows(pairs) { return `<table>${pairs.map(([name, value]) => `<tr><td>${name}</td><td style="text-align:right;white-space:nowrap">${value}</td></tr>`).join("")}</table>`; }

function describe(curve, point, of) {
  const head = `<b>${esc(point.shape)}</b> · ${point.gpus} GPU${point.gpus > 1 ? "s" : ""}<br><span class="soft">${esc(curve.title)}</span>`;
  if (!point.fits) return `${head}<hr>${esc(point.reason)}`;
  const gain = (measure) => (measure in point.gain_per_gpu ? percent(point.gain_per_gpu[measure]) : "–");
  const parts = Object.entries(point[of]).filter(([, value]) => value > 0)
    .map(([part, value]) => [`<i style="display:inline-block;width:9px;height:9px;background:var(--${part});margin-right:5px"></i>${esc(study.parts[part])}`, `${figure(value)} ms`]);
  return `${head}<hr>${rows([
    [`time per token, ${count(point.running)} running`, `${figure(point.decode_ms)} ms`], ["with prompts in between", `${figure(point.tpot_ms)} ms`],
    ["time to read a prompt", `${figure(point.prefill_ms)} ms`], [`output tokens, ${count(point.best_running)} running`, `${count(point.tokens_per_s)} /s`],
    ["output tokens per GPU", `${count(point.tokens_per_s_per_gpu)} /s`], ["prompt tokens, nothing else", `${count(point.prompt_tokens_per_s)} /s`],
    ["communication in a step", percent(point.communication_share)],
    ["added GPU: speed, output", `${gain("decode")}, ${gain("tokens")}`]])}<hr><span class="soft">${PARTS_OF[of]}</span>${rows(parts)}`;
}

function draw() {
  document.getElementById("curves").innerHTML = PANELS.map((spec) => `<div class="panel">${panel(spec)}</div>`).join("");
  document.getElementById("bars").innerHTML = BARS.map((spec) => `<div class="panel">${bars(spec)}</div>`).join("");
}

function controls() {
  const swatch = (curve, index) => `<svg viewBox="0 0 26 14" style="width:26px"><path class="curve" stroke="var(--${curve.way})" d="M0,7H26"
    ${curve.way === "tp_across" ? 'stroke-dasharray="7 4"' : ""}/>${mark(SHAPES[index], 13, 7, `fill="var(--${curve.way})"`)}</svg>`;
  document.getElementById("ways").innerHTML = study.curves.map((curve, index) =>
    `<label class="chip"><input type="checkbox" checked data-way="${curve.way}">${swatch(curve, index)}${esc(curve.title)}</label>`).join("")
    + '<span class="grow"></span><label class="chip screen"><input type="checkbox" checked id="log">logarithmic y axis</label>';
  document.getElementById("bars-of").innerHTML = study.curves.map((curve) =>
    `<label class="chip"><input type="radio" name="bars" ${curve.way === barsOf ? "checked" : ""} data-way="${curve.way}">${esc(curve.title)}</label>`).join("");
  const used = Object.keys(study.parts).filter((part) => study.curves.some((curve) =>
    fitting(curve).some((point) => point.parts_ms[part] > 0 || point.prefill_parts_ms[part] > 0)));
  document.getElementById("parts").innerHTML = used.map((part) => `<span><i style="background:var(--${part})"></i>${esc(study.parts[part])}</span>`).join("");
}

function listen() {
  document.getElementById("ways").addEventListener("change", ({ target }) => {
    if (target.id === "log") logarithmic = target.checked;
    else if (target.checked) shown.add(target.dataset.way);
    else shown.delete(target.dataset.way);
    draw();
  });
  document.getElementById("bars-of").addEventListener("change", ({ target }) => { barsOf = target.dataset.way; draw(); });
  const tip = document.getElementById("tip");
  const show = (event) => {
    const found = event.target.closest && event.target.closest("[data-point]");
    if (!found) { tip.style.display = "none"; return; }
    const curve = study.curves[found.dataset.curve];
    tip.innerHTML = describe(curve, curve.points[found.dataset.point], found.dataset.parts);
    tip.style.display = "block";
    const box = found.getBoundingClientRect(), size = tip.getBoundingClientRect();
    const left = box.right + 12 + size.width < innerWidth ? box.right + 12 : box.left - 12 - size.width;
    tip.style.left = `${Math.max(6, left)}px`;
    tip.style.top = `${Math.min(innerHeight - size.height - 6, Math.max(6, box.top - 20))}px`;
  };
  for (const kind of ["pointerover", "focusin"]) document.addEventListener(kind, show);
  for (const kind of ["pointerleave", "focusout", "scroll"]) document.addEventListener(kind, () => { tip.style.display = "none"; });
  addEventListener("beforeprint", () => { for (const each of document.querySelectorAll("details")) each.open = true; });
}

controls();
draw();
listen();
