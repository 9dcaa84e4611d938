// Figures and times as people read them. A figure that is not known is a dash.

export const NOTHING = "\u2013";
const known = (value) => value !== null && value !== undefined;

export function counted(count, what) {
  return `${count.toLocaleString("en")} ${what}${count === 1 ? "" : "s"}`;
}

export function figure(value) {
  if (!known(value)) return NOTHING;
  if (value >= 1e6) return `${(value / 1e6).toPrecision(3)} M`;
  if (value >= 100) return Math.round(value).toLocaleString("en");
  return value === 0 ? "0" : value >= 10 ? value.toFixed(0) : `${+value.toFixed(1)}`;
}

export function lasting(length_s) {
  if (!known(length_s)) return NOTHING;
  if (length_s === 0) return "0 s";
  if (length_s < 0.0995) return `${+(length_s * 1e3).toPrecision(2)} ms`;
  if (length_s < 0.9995) return `${Math.round(length_s * 1e3)} ms`;
  if (length_s < 99.5) return `${+length_s.toPrecision(3)} s`;
  if (length_s < 5400) return `${Math.round(length_s / 60)} min`;
  return length_s < 172800 ? `${Math.round(length_s / 3600)} h` : `${Math.round(length_s / 86400)} days`;
}

export function percent(share) {
  if (!known(share)) return NOTHING;
  const digits = share >= 0.99995 ? 0 : share >= 0.99 ? 2 : share >= 0.1 ? 1 : 2;
  return `${(Math.floor(share * 100 * 10 ** digits + 1e-6) / 10 ** digits).toFixed(digits)} %`;
}

export function clock(at) {
  return at.toLocaleTimeString("en-GB");
}

export function moment(at_s, now = new Date()) {
  const at = new Date(at_s * 1000);
  return at.toDateString() === now.toDateString() ? clock(at) : `${at.toLocaleDateString("en-GB", { day: "numeric", month: "short" })} ${clock(at)}`;
}

export function pools(replicas) {
  return Object.entries(replicas).map(([shape, count]) => `${count} \u00d7 ${shape}`).join(" + ") || "nothing";
}
