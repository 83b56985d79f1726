// Calls of the server's endpoints, and small tools for the page.

import { told } from "./told.js";
import { say } from "./words.js";

export const $ = (id) => document.getElementById(id);

let noticeTimer = 0;
export function notice(text) {
  $("notice").textContent = text;
  clearTimeout(noticeTimer);
  if (text) noticeTimer = setTimeout(() => ($("notice").textContent = ""), 9000);
}

// `missing`: what was asked about is not there any more.
export class Refused extends Error {
  constructor(message, missing = false) {
    super(message);
    this.missing = missing;
  }
}

async function answerOf(response) {
  let body = {};
  try {
    body = await response.json();
  } catch { /* not ours: a proxy's page */ }
  if (response.status === 401) throw new Refused(say("signed_out"));
  const answer = body.data ? body.data[0] : body;
  if (!response.ok || answer.error) throw new Refused(told(answer.error) || say("http", response.status), answer.missing);
  return answer.value;
}

// The value, or a Refused that was shown already. A conversation that is missing is told to the page, too.
export async function call(name, ...values) {
  try {
    return await asked(() => fetch(`/gradio/gradio_api/run/${name}`, {
      method: "POST", headers: { "Content-Type": "application/json" }, body: JSON.stringify({ data: values }),
    }));
  } catch (error) {
    if (error.missing) dispatchEvent(new CustomEvent("missing", { detail: String(values[0]).replace(/^conversation:/, "") }));
    throw error;
  }
}

export async function post(path, body, more = {}) {
  return asked(() => fetch(path, { method: "POST", body, ...more }));
}

async function asked(request) {
  try {
    return await answerOf(await request());
  } catch (error) {
    if (!(error instanceof Refused)) error = new Refused(error.name === "AbortError" ? "" : say("offline"));
    notice(error.message);
    throw error;
  }
}

// make("button", {class: "x", text: "…", label: "…", on: f}, ...children): text is text, never markup.
export function make(tag, given = {}, ...children) {
  const made = document.createElement(tag);
  for (const [name, value] of Object.entries(given)) {
    if (value === undefined || value === null || value === false) continue;
    if (name === "text") made.textContent = value;
    else if (name === "on") made.addEventListener("click", value);
    else if (name === "label") { made.setAttribute("aria-label", value); made.title = value; }
    else made.setAttribute(name, value === true ? "" : value);
  }
  if (tag === "button" && !given.type) made.type = "button";
  made.append(...children);
  return made;
}

export function icon(name) {
  const space = "http://www.w3.org/2000/svg";
  const svg = document.createElementNS(space, "svg"), use = document.createElementNS(space, "use");
  svg.setAttribute("aria-hidden", "true");
  use.setAttribute("href", `#i-${name}`);
  svg.append(use);
  return svg;
}

// A button that shows the icon "copy".
export async function copy(text, button) {
  if (!await copied(text, button)) {
    notice(say("not_copied"));
    return;
  }
  button.replaceChildren(icon("check"));
  $("status").textContent = say("copied");
  setTimeout(() => button.replaceChildren(icon("copy")), 1500);
}

async function copied(text, button) {
  try {
    await navigator.clipboard.writeText(text);
    return true;
  } catch { // not allowed without https
    const area = make("textarea", { class: "unseen" });
    area.value = text;
    document.body.append(area);
    area.select();
    const done = document.execCommand("copy");
    area.remove();
    button.focus();
    return done;
  }
}
