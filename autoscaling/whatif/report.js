"use strict";
const study = JSON.parse(document.getElementById("data").textContent);
const END = study.bins * study.bin_s, DAY = 86400;
const shapes = [...new Set(study.ways.flatMap((way) => Object.keys(way.gpus)))].sort((a, b) => size(a) - size(b) || (a < b ? -1 : 1));
const colour = (shape) => `var(--s${1 + ((shapes.length <= 4 ? shapes.indexOf(shape) + (shapes.length < 3 ? 1 : 0) : shapes.indexOf(shape)) % 8)})`;

function size(shape) { return [...shape.matchAll(/(tp|pp|dp)(\d+)/g)].reduce((gpus, found) => gpus * Number(found[2]), 1); }
function esc(text) { return String(text).replace(/[&<>"]/g, (c) => ({ "&": "&amp;", "<": "&lt;", ">": "&gt;", '"': "&quot;" })[c]); }
function figure(value) { return value >= 100 ? Math.round(value).toLocaleString("en") : value >= 10 ? value.toFixed(1) : `${+value.toPrecision(2)}`; }
function mark(value) { return value >= 1e6 ? `${+(value / 1e6).toPrecision(3)}M` : value >= 1e4 ? `${+(value / 1e3).toPrecision(3)}k` : `${+value.toPrecision(3)}`; }
function percent(share) { const digits = share >= 1 ? 0 : share >= 0.99 ? 2 : 1; return `${(Math.floor(share * 100 * 10 ** digits + 1e-6) / 10 ** digits).toFixed(digits)} %`; }
function steps(high, most = 4, low = 0) {
  const raw = Math.max(high - low, 1e-9) / most, power = 10 ** Math.floor(Math.log10(raw));
  const stride = power * [1, 2, 2.5, 5, 10].find((factor) => factor * power >= raw * 0.999);
  const first = Math.ceil(low / stride - 1e-9);
  return Array.from({ length: Math.max(0, Math.floor(high / stride + 1e-9) - first + 1) }, (_, index) => (first + index) * stride);
}
function two(number) { return String(number).padStart(2, "0"); }
function clock(at_s, withDate = false) {
  if (study.start_s === null) return `${Math.floor(at_s / 3600)}:${two(Math.floor(at_s / 60) % 60)}`;
  const date = new Date((study.start_s + at_s) * 1000), time = `${two(date.getUTCHours())}:${two(date.getUTCMinutes())}`;
  return withDate ? `${date.toLocaleDateString("en-GB", { day: "numeric", month: "short", timeZone: "UTC" })} ${time}` : time;
}

// Marks at whole hours or midnights of the day that was, so that a daily wave is read at once.
function times(most) {
  const stride = [300, 900, 1800, 3600, 7200, 10800, 21600, 43200, DAY, 2 * DAY].find((length) => END / length <= most) || 4 * DAY;
  const offset = study.start_s === null ? 0 : study.start_s % stride, found = [];
  for (let at = offset ? stride - offset : 0; at <= END; at += stride) found.push(at);
  return found.map((at) => [at, stride >= DAY || (study.start_s !== null && (study.start_s + at) % DAY === 0 && END > DAY * 1.2)
    ? clock(at, true).replace(" 00:00", "") : clock(at)]);
}

function plot({ width, height, left = 44, right = 8, top = 8, bottom = 20, high, unit, strip = 0 }) {
  const x = (at) => left + (at / END) * (width - left - right);
  const y = (value) => height - bottom - strip - (value / high) * (height - top - bottom - strip);
  const rows = steps(high, height > 120 ? 4 : 3).map((value) => `<line class="gridline" x1="${left}" x2="${width - right}" y1="${y(value)}" y2="${y(value)}"/>
    <text x="${left - 7}" y="${y(value) + 4}" text-anchor="end">${mark(value)}</text>`).join("");
  const columns = times(width > 700 ? 13 : 5).map(([at, text]) => `<text x="${x(at)}" y="${height - 4}" text-anchor="middle">${text}</text>`).join("");
  const frame = `${rows}<line class="axis" x1="${left}" x2="${width - right}" y1="${y(0)}" y2="${y(0)}"/>${columns}${unit ? `<text x="0" y="4">${unit}</text>` : ""}`;
  return { x, y, frame, cursor: `<line class="cursor" y1="${top}" y2="${height - bottom}"/>`, open: `<svg viewBox="0 0 ${width} ${height}" data-left="${left}" data-right="${right}" data-width="${width}"` };
}
function staircase(values, x, y) { return values.map((value, index) => `${x(index * study.bin_s).toFixed(1)},${y(value).toFixed(1)}H${x((index + 1) * study.bin_s).toFixed(1)}`).join("V").replace(/V([\d.]+),/g, (_, at) => `L${at},`); }

const DEMANDS = [["requests", "Requests/s", "requests/s"], ["input", "Input tokens/s", "tokens/s"], ["output", "Output tokens/s", "tokens/s"]];
function demand([key, title]) {
  const values = study.demand[key], most = Math.max(...values), mean = values.reduce((sum, value) => sum + value, 0) / values.length;
  const at = plot({ width: 400, height: 170, high: most * 1.08 || 1 });
  const gaps = study.unknown.map((share, index) => (share > 0 ? `<rect class="gap" x="${at.x(index * study.bin_s)}" width="${at.x(study.bin_s) - at.x(0)}" y="8" height="${at.y(0) - 8}"/>` : "")).join("");
  const path = staircase(values, at.x, at.y);
  return `<div class="panel"><header><h3>${title}</h3><span>mean <b>${figure(mean)}</b> · most <b>${figure(most)}</b></span></header>
    ${at.open} data-demand="${key}" role="img" aria-label="${title} over time">${at.frame}${gaps}
    <path class="under" d="M${at.x(0)},${at.y(0)}L${path}V${at.y(0)}Z"/><path class="curve" d="M${path}"/>${at.cursor}</svg></div>`;
}

function shade(share) {
  if (share >= study.target) return "var(--kept)";
  const part = Math.min(1, (study.target - share) / 0.1);
  return part < 0.5 ? `color-mix(in srgb, var(--mid) ${Math.round(50 + 100 * part)}%, var(--kept))` : `color-mix(in srgb, var(--missed) ${Math.round(200 * part - 100)}%, var(--mid))`;
}
function strip(way, at, y) {
  const cells = [];
  for (let index = 0; index < way.kept.length; ) {
    const fill = way.kept[index] === null ? null : shade(way.kept[index]);
    let until = index + 1;
    while (until < way.kept.length && (way.kept[until] === null ? null : shade(way.kept[until])) === fill) until++;
    if (fill) cells.push(`<rect x="${at.x(index * study.bin_s)}" width="${at.x(until * study.bin_s) - at.x(index * study.bin_s) + 0.2}" y="${y}" height="8" fill="${fill}"/>`);
    index = until;
  }
  return cells.join("");
}
function fleet(way, high) {
  const isOurs = way.name === "archipelago", height = isOurs ? 190 : 140;
  const at = plot({ width: 1180, height, high, top: isOurs ? 20 : 8, strip: 14, left: 36 });
  const below = new Array(study.bins).fill(0);
  const areas = shapes.filter((shape) => way.gpus[shape]).map((shape) => {
    const base = [...below];
    way.gpus[shape].forEach((gpus, index) => { below[index] += gpus; });
    const over = staircase(below, at.x, at.y), back = [];
    for (let index = study.bins - 1; index >= 0; index--) back.push(`${at.x((index + 1) * study.bin_s).toFixed(1)},${at.y(base[index]).toFixed(1)}L${at.x(index * study.bin_s).toFixed(1)},${at.y(base[index]).toFixed(1)}`);
    return `<path fill="${colour(shape)}" d="M${over}L${back.join("L")}Z"/>`;
  }).join("");
  const changes = !isOurs ? "" : study.changes.map((change, index) => `<g class="change ${change.kind}" data-change="${index}" tabindex="0">
    <path d="${change.kind === "repartition" ? `M${at.x(change.at_s)},3l6,6l-6,6l-6,-6z` : `M${at.x(change.at_s) - 4.5},6h9l-4.5,8z`}"/></g>`).join("");
  const missed = way.attainment !== null && way.attainment < study.target;
  const kept = way.attainment === null ? "attainment unknown" : `<b class="${missed ? "no" : ""}">${percent(way.attainment)}</b> kept the SLO`;
  return `<div class="panel ${isOurs ? "ours" : ""}"><header><h3>${esc(way.title)}</h3><span><b>${figure(way.gpu_hours)}</b> GPU-hours</span><span>${kept}</span></header>
    ${at.open} data-fleet="${study.ways.indexOf(way)}" role="img" aria-label="GPUs of ${esc(way.title)} over time">${at.frame}${areas}${strip(way, at, height - 31)}${changes}${at.cursor}</svg></div>`;
}

// The nearer to all, the wider apart: a miss of 0.1 % and one of 1 % are not the same, and both are seen.
function scatter() {
  const known = study.ways.filter((way) => way.attainment !== null), W = 400, H = 290, LEFT = 56, RIGHT = 22, TOP = 18, BOTTOM = 34;
  if (!known.length) return "<p class='soft'>No attainment is known.</p>";
  const missed = (way) => Math.min(1, Math.max(1 - way.attainment, 1e-4)), allowed = Math.max(1 - study.target, 1e-4);
  const worst = Math.max(...known.map(missed), allowed * 2) * 1.5, best = Math.min(...known.map(missed), allowed) / 1.6;
  const most = Math.max(...known.map((way) => way.gpu_hours)), least = Math.min(...known.map((way) => way.gpu_hours));
  const low = least - (most - least || most) * 0.12, high = most + (most - least || most) * 0.12;
  const x = (hours) => LEFT + ((hours - low) / (high - low)) * (W - LEFT - RIGHT);
  const y = (share) => TOP + (Math.log(share / best) / Math.log(worst / best)) * (H - TOP - BOTTOM);
  const shares = [0.0001, 0.0003, 0.001, 0.003, 0.01, 0.03, 0.1, 0.3, 1].filter((share) => share >= best && share <= worst);
  const rows = shares.map((share) => `<line class="gridline" x1="${LEFT}" x2="${W - RIGHT}" y1="${y(share)}" y2="${y(share)}"/>
    <text x="${LEFT - 7}" y="${y(share) + 4}" text-anchor="end">${+(100 - share * 100).toFixed(2)} %</text>`).join("");
  const marks = steps(high, 4, Math.max(0, low)).map((hours) => `<text x="${x(hours)}" y="${H - 16}" text-anchor="middle">${mark(hours)}</text>`).join("");
  const taken = [];
  const order = [...known].sort((a, b) => (b.name === "archipelago") - (a.name === "archipelago"));
  const points = order.map((way) => {
    const isOurs = way.name === "archipelago", isReal = way.name === "measured", px = x(way.gpu_hours), py = y(missed(way));
    const left = px > W * 0.6, wide = way.title.length * 6.3, from = left ? px - 10 - wide : px + 10;
    let ty = py + 4;
    for (const nudge of [0, -14, 14, -28, 28, -42, 42]) {
      ty = py + 4 + nudge;
      if (!taken.some(([a, b, other]) => a < from + wide && b > from && Math.abs(other - ty) < 13)) break;
    }
    taken.push([from, from + wide, ty]);
    const fill = isOurs ? "var(--ours)" : isReal ? "var(--real)" : "var(--other)";
    const dot = isReal ? `<rect x="${px - 5.5}" y="${py - 5.5}" width="11" height="11" rx="1.5" fill="${fill}"/>` : `<circle cx="${px}" cy="${py}" r="${isOurs ? 7.5 : 5.5}" fill="${fill}"/>`;
    return `<g data-way="${study.ways.indexOf(way)}" class="dot">${dot}<text class="name ${isOurs ? "ours" : ""}" x="${left ? px - 11 : px + 11}" y="${ty}" text-anchor="${left ? "end" : "start"}">${esc(way.title)}</text></g>`;
  });
  return `<svg viewBox="0 0 ${W} ${H}" role="img" aria-label="GPU-hours and SLO attainment of each way">${rows}${marks}
    <line class="axis" x1="${LEFT}" x2="${W - RIGHT}" y1="${H - BOTTOM}" y2="${H - BOTTOM}"/><text x="${(LEFT + W - RIGHT) / 2}" y="${H - 1}" text-anchor="middle">GPU-hours</text>
    <line class="target" x1="${LEFT}" x2="${W - RIGHT}" y1="${y(allowed)}" y2="${y(allowed)}"/>${points.reverse().join("")}</svg>`;
}

function draw() {
  const total = (way) => Math.max(...Array.from({ length: study.bins }, (_, bin) => Object.values(way.gpus).reduce((sum, row) => sum + row[bin], 0)), 1);
  const high = Math.max(...study.ways.map(total)) * 1.05;
  document.getElementById("scatter").innerHTML = scatter();
  document.getElementById("demand").innerHTML = DEMANDS.map(demand).join("");
  document.getElementById("key").innerHTML = shapes.map((shape) => `<span><i style="background:${colour(shape)}"></i>${esc(shape)}</span>`).join("")
    + `<span style="margin-left:14px"><i style="background:var(--kept)"></i>keeps ${+(study.target * 100).toFixed(2)} %</span><span><i style="background:var(--mid)"></i>5 points short</span><span><i style="background:var(--missed)"></i>10 or more</span>`
    + (study.changes.length ? '<span style="margin-left:14px"><b style="color:var(--replicas)">▼</b> replicas</span><span><b style="color:var(--repartition)">◆</b> repartition</span>' : "");
  document.getElementById("fleets").innerHTML = study.ways.map((way) => fleet(way, high)).join("");
}

function rows(pairs) { return `<table>${pairs.map(([name, value]) => `<tr><td>${name}</td><td style="text-align:right">${value}</td></tr>`).join("")}</table>`; }
function describe(svg, bin) {
  const head = `<b>${clock(bin * study.bin_s, true)}</b>`;
  if (svg.dataset.demand) return head + rows(DEMANDS.map(([key, , unit]) => [key === "requests" ? "asked" : key, `${figure(study.demand[key][bin])} ${unit}`]));
  const way = study.ways[svg.dataset.fleet], kept = way.kept[bin];
  const held = shapes.filter((shape) => way.gpus[shape] && way.gpus[shape][bin] > 0).map((shape) => [esc(shape), `${figure(way.gpus[shape][bin])} GPUs`]);
  return `${head} ${esc(way.title)}${rows([...held, ["kept the SLO", kept === null ? "–" : percent(kept)], ["requests", `${figure(study.demand.requests[bin])}/s`]])}`;
}

function listen() {
  const tip = document.getElementById("tip");
  const hide = () => { tip.style.display = "none"; for (const line of document.querySelectorAll(".cursor")) line.style.visibility = "hidden"; };
  const place = (html, px, py) => {
    tip.innerHTML = html;
    tip.style.display = "block";
    const box = tip.getBoundingClientRect();
    tip.style.left = `${px + 16 + box.width < innerWidth ? px + 16 : Math.max(6, px - 16 - box.width)}px`;
    tip.style.top = `${Math.min(innerHeight - box.height - 6, Math.max(6, py - 20))}px`;
  };
  document.addEventListener("pointermove", (event) => {
    const change = event.target.closest("[data-change]"), dot = event.target.closest("g.dot"), svg = event.target.closest("svg[data-demand], svg[data-fleet]");
    if (change) { const one = study.changes[change.dataset.change]; return place(`<b>${clock(one.at_s, true)}</b> ${one.kind}<br>${esc(one.reason)}`, event.clientX, event.clientY); }
    if (dot) {
      const way = study.ways[dot.dataset.way];
      return place(`<b>${esc(way.title)}</b>${rows([["GPU-hours", figure(way.gpu_hours)], ["kept the SLO", percent(way.attainment)], ["worst 5 minutes", way.worst === null ? "–" : percent(way.worst)]])}`, event.clientX, event.clientY);
    }
    if (!svg) return hide();
    const box = svg.getBoundingClientRect(), { left, right, width } = svg.dataset;
    const share = (((event.clientX - box.left) / box.width) * width - left) / (width - left - right), bin = Math.floor(share * study.bins);
    if (bin < 0 || bin >= study.bins) return hide();
    for (const each of document.querySelectorAll("svg[data-demand], svg[data-fleet]")) {
      const line = each.querySelector(".cursor"), at = +each.dataset.left + share * (each.dataset.width - each.dataset.left - each.dataset.right);
      line.setAttribute("x1", at);
      line.setAttribute("x2", at);
      line.style.visibility = "visible";
    }
    return place(describe(svg, bin), event.clientX, event.clientY);
  });
  document.addEventListener("scroll", hide);
  const follow = (event) => {
    const change = event.target.closest("[data-change]");
    if (!change || (event.key && event.key !== "Enter")) return;
    const entry = document.querySelector(`.decision:not(.hold)[data-at="${+study.changes[change.dataset.change].at_s}"]`);
    if (entry) { entry.open = true; entry.scrollIntoView({ block: "center" }); }
  };
  document.addEventListener("click", follow);
  document.addEventListener("keydown", follow);
  const only = document.getElementById("changes");
  only.addEventListener("change", () => document.getElementById("decisions").classList.toggle("changes-only", only.checked));
}

draw();
listen();
