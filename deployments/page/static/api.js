// The control API. The token lives in this tab's session storage and in the header of each request, and nowhere else.

const KEY = "archipelago-token";

export class Problem extends Error {
  constructor(status, sentence) {
    super(sentence);
    this.status = status;
  }
}

export function hasToken() {
  return sessionStorage.getItem(KEY) !== null;
}

export function keepToken(token) {
  sessionStorage.setItem(KEY, token);
}

export function forgetToken() {
  sessionStorage.removeItem(KEY);
}

// The answer to one request. Throws `Problem`; its status is 0 where there was no answer.
export async function ask(path, { method = "GET", body, signal } = {}) {
  const headers = { Authorization: `Bearer ${sessionStorage.getItem(KEY)}` };
  if (body !== undefined) headers["Content-Type"] = "application/json";
  let response, text;
  try {
    response = await fetch(path, { method, headers, signal, cache: "no-store", credentials: "omit", redirect: "error", body: body && JSON.stringify(body) });
    text = await response.text();
  } catch (error) {
    if (error.name === "AbortError") throw error;
    throw new Problem(0, "The control API does not answer.");
  }
  let answer = null;
  try {
    answer = text ? JSON.parse(text) : null;
  } catch {
    throw new Problem(response.status, `The server answered ${response.status}, but not as the control API would.`);
  }
  if (!response.ok) throw new Problem(response.status, answer?.detail || `The control API answered ${response.status}.`);
  return answer;
}

export function isToken(text) {
  return /^[A-Za-z0-9._~+/-]+=*$/.test(text); // RFC 6750, section 2.1
}

export const answerPath = (model, number) => `v1/approvals/${encodeURIComponent(model)}/${number}`;
