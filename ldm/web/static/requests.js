// What both pages use: requests to the server, and new elements.

export const get = (id) => document.getElementById(id);

function clientId() {
  const key = "ldm-client";
  let id = localStorage.getItem(key);
  if (!id) {
    id = Array.from(crypto.getRandomValues(new Uint8Array(16)), (byte) => byte.toString(16).padStart(2, "0")).join("");
    localStorage.setItem(key, id);
  }
  return id;
}

export async function call(path, { method = "GET", body } = {}) {
  const headers = { "x-client": clientId() };
  if (body !== undefined) headers["content-type"] = "application/json";
  const answer = await fetch(path, { method, headers, body: body === undefined ? undefined : JSON.stringify(body) });
  const value = await answer.json().catch(() => ({}));
  if (!answer.ok) throw new Error(value.error?.message ?? `the server answered ${answer.status}`);
  return value;
}

export function say(message) {
  get("message").textContent = message;
}

export async function attempt(action) {
  say("");
  try {
    return await action();
  } catch (error) {
    say(error.message);
    return undefined;
  }
}

export function element(tag, properties = {}, ...children) {
  const made = Object.assign(document.createElement(tag), properties);
  made.append(...children);
  return made;
}
