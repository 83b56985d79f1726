// The messages of a conversation: drawn from what the server says, and grown while an answer is written.

import { $, call, copy, icon, make, notice } from "./calls.js";
import { morph } from "./morph.js";
import { told as inWords } from "./told.js";
import { say } from "./words.js";

let source = null; // of the answer that is followed
let followed = null; // its id
let hooks = {}; // {show(view, asked), ended(), gone(), settings(), here(id)}
let drawn = null; // the conversation whose messages are shown
let down = true, place = 0; // whether who reads goes along with the answer, until they move up; where they are

export function connect(given) {
  hooks = given;
  const box = $("messages");
  box.addEventListener("scroll", () => {
    const up = box.scrollTop < place, end = box.scrollHeight - box.scrollTop - box.clientHeight < 20;
    place = box.scrollTop;
    down = end || (down && !up);
  });
  box.addEventListener("wheel", (event) => { if (event.deltaY < 0 && box.scrollTop > 0) down = false; }, { passive: true }); // before it moves
}

export const answering = () => followed;

// Once, when it is whole: nobody wants to hear an answer grow.
function announce(told) {
  const how = told.info.error ? `${say("failed")} ${inWords(told.info.error)}` : told.state === "stopped" ? say("stopped") : say("done");
  $("status").textContent = `${how} ${told.text.slice(0, 4000)}`;
}

// `asked`: for a new answer, which may be whole already. Otherwise who reads the conversation stays in their place.
export function draw(view, asked) {
  unfollow();
  const box = $("messages"), same = drawn === view.id, stay = same && !asked, before = box.scrollTop;
  const open = same ? [...box.querySelectorAll(".edit")].map((area) => [area, area === document.activeElement]) : [];
  drawn = view.id;
  box.replaceChildren(...view.messages.map((message) => (message.role === "user" ? question(view, message) : answer(view, message))));
  if (!view.messages.length) box.append(greeting());
  for (const [area, focused] of open) reopen(view, area, focused);
  box.scrollTop = stay ? before : box.scrollHeight;
  down = !stay || down;
  place = box.scrollTop;
  const last = view.messages.at(-1);
  if (last?.state === "answering") {
    $("status").textContent = say("answering");
    follow(view, last.id);
  } else if (asked) announce(last);
}

const articleOf = (id) => document.querySelector(`article[data-id="${CSS.escape(id)}"]`);
const selecting = (box) => !getSelection().isCollapsed && box.contains(getSelection().anchorNode);

// The message that a search has found.
export function reveal(id) {
  const found = articleOf(id);
  if (!found) return;
  found.classList.add("found");
  found.scrollIntoView({ block: "start" });
  down = false;
}

export function clear() {
  unfollow();
  drawn = null;
  $("messages").replaceChildren(greeting());
}

// Ask for a change of the conversation, once however often it is pressed, and show what becomes of it, unless another is
// in sight by then.
let changing = false;
async function change(view, name, ...values) {
  if (changing) return;
  changing = true;
  try {
    const given = await call(name, view.id, ...values);
    if (hooks.here(view.id)) hooks.show(given, name !== "choose");
  } finally {
    changing = false;
  }
}

function greeting() {
  return make("div", { class: "greeting" }, make("img", { src: "/page/sprout.svg", alt: "", width: 64, height: 64 }),
    make("p", { text: say("hello") }));
}

function question(view, message) {
  const words = make("div", { class: "words", dir: "auto", text: message.text });
  const pictures = make("div", { class: "pictures" }, ...message.pictures.map((p) => make("img", { src: `/pictures/${encodeURIComponent(p.id)}`, alt: p.name })));
  const tools = make("div", { class: "tools" }, ...versions(view, message),
    make("button", { class: "icon-button", label: say("copy"), on: (e) => copy(message.text, e.currentTarget) }, icon("copy")),
    make("button", { class: "icon-button", label: say("edit"), on: () => edit(view, message, article).focus() }, icon("edit")));
  const article = make("article", { class: "message user", "aria-label": say("you"), "data-id": message.id }, pictures, words, tools);
  return article;
}

function edit(view, message, article, text = message.text) {
  const area = make("textarea", { class: "edit", dir: "auto", "aria-label": say("edit"), rows: 3 });
  area.value = text;
  const back = () => { article.replaceWith(question(view, message)); };
  const send = async () => {
    if (!area.value.trim() && !message.pictures.length) return;
    await change(view, "send", message.parent, area.value, { ...hooks.settings(), pictures: message.pictures.map((p) => p.id) });
    $("text").focus();
  };
  area.addEventListener("keydown", (event) => {
    if (composing(event)) return;
    if (event.key === "Enter" && !event.shiftKey) { event.preventDefault(); send(); }
    if (event.key === "Escape") { event.stopPropagation(); back(); }
  });
  article.replaceChildren(area, make("div", { class: "row end" },
    make("button", { class: "plain-button", text: say("cancel"), on: back }),
    make("button", { class: "main-button", text: say("send_edit"), on: send })));
  return area;
}

// A change that was begun, when all is drawn anew.
function reopen(view, area, focused) {
  const id = area.closest("article").dataset.id, message = view.messages.find((m) => m.id === id);
  if (!message) return;
  const again = edit(view, message, articleOf(id), area.value);
  if (!focused) return;
  again.focus({ preventScroll: true });
  again.setSelectionRange(area.selectionStart, area.selectionEnd);
}

// Enter that ends the spelling of a word belongs to the input method.
export const composing = (event) => event.isComposing || event.keyCode === 229;

function answer(view, message) {
  const thought = make("details", { class: "thought" }, make("summary"), make("div", { class: "thought-text", dir: "auto" }));
  const article = make("article", { class: "message assistant", "aria-label": message.info.model || say("model"), "data-id": message.id },
    make("div", { class: "who", text: message.info.model || "" }), thought, make("div", { class: "body" }),
    make("div", { class: "state" }), make("ul", { class: "sources", "aria-label": say("sources") }), make("div", { class: "tools" }));
  grow(article, { ...message, from: 0, thought_from: 0 });
  if (message.state !== "answering") finish(view, article, message);
  return article;
}

function grow(article, told) {
  const body = article.querySelector(".body");
  while (body.children.length > told.from + told.blocks.length) body.lastChild.remove();
  for (const [number, html] of told.blocks.entries()) {
    const before = body.children[told.from + number];
    if (before?.html === html) continue; // told anew, to one who comes back: what is read stays
    const block = make("div", { class: "block", dir: "auto" });
    block.html = html;
    block.innerHTML = html; // made by the server, which lets nothing of the answer become a tag
    for (const button of block.querySelectorAll(".copy-code")) {
      button.append(icon("copy"));
      button.setAttribute("aria-label", say("copy"));
    }
    for (const button of block.querySelectorAll(".cite")) {
      const source = (told.info.sources || []).find((s) => String(s.id) === button.dataset.source);
      button.setAttribute("aria-label", say("open_source", button.textContent, source?.file || ""));
    }
    for (const region of block.querySelectorAll(".table")) region.setAttribute("aria-label", say("table"));
    if (before) {
      morph(before, block);
      before.html = html;
    } else body.append(block);
  }
  const thought = article.querySelector(".thought"), text = thought.querySelector(".thought-text");
  if (!told.thought_from) morph(text, make("div", { class: "thought-text", dir: "auto", text: told.thought }));
  else if (told.thought) text.append(told.thought);
  thought.classList.toggle("hidden", !text.textContent && !told.thinking);
  thought.querySelector("summary").textContent = told.thinking ? say("thinking") : say("thought");
  article.classList.toggle("waiting", told.state === "answering" && !body.children.length && !told.thinking);
  article.classList.toggle("writing", told.state === "answering");
  article.querySelector(".state").replaceChildren(...state(told));
  article.querySelector(".sources").replaceChildren(...(told.info.sources || []).map((source) => make("li", {},
    make("button", { class: "source", "data-source": source.id, text: [`[${source.id}]`, source.file, ...source.pages.map((n) => say("page_number", n))].join(" ") }))));
  if (told.state === "answering") article.querySelector(".tools").replaceChildren(meta(told.info));
}

function state(told) {
  const parts = [];
  if (["quotation", "refusal"].includes(told.info.kind)) parts.push(make("p", { class: "quiet", text: say(told.info.kind) }));
  for (const name of ["absent", "unread", "unseen"]) if (told.info[name]) parts.push(make("p", { class: "quiet", text: say(name, told.info[name]) }));
  if (told.state === "stopped") parts.push(make("p", { class: "quiet", text: say("stopped") }));
  if (told.info.error) parts.push(make("p", { class: "error" }, make("strong", { text: say("failed") }), ` ${inWords(told.info.error)}`));
  else if (told.state === "done" && !told.blocks.length && !told.from && !told.thought) parts.push(make("p", { class: "quiet", text: say("nothing") }));
  return parts;
}

function meta(info) {
  const parts = [];
  if (info.tokens) parts.push(say("tokens", info.tokens));
  if (info.tokens && info.seconds) parts.push(say("rate", (info.tokens / info.seconds).toFixed(1)));
  if (info.prompt_tokens) parts.push(say("prompt_tokens", info.prompt_tokens));
  return make("span", { class: "meta", text: parts.join(" · ") });
}

function finish(view, article, message) {
  article.querySelector(".tools").replaceChildren(...versions(view, message),
    make("button", { class: "icon-button", label: say("copy"), on: (e) => copy(message.text, e.currentTarget) }, icon("copy")),
    make("button", { class: "icon-button again", label: say("again"), on: () => change(view, "again", message.id, hooks.settings()) }, icon("again")), meta(message.info));
}

function versions(view, message) {
  const at = message.beside.indexOf(message.id), count = message.beside.length;
  if (count < 2) return [];
  const go = (to) => async () => {
    await change(view, "choose", message.beside[to]);
    const there = articleOf(message.beside[to])?.querySelector(".versions");
    (there?.querySelector(`button:${to < at ? "first" : "last"}-child:enabled`) || there?.querySelector("button:enabled"))?.focus({ preventScroll: true });
  };
  return [make("span", { class: "versions", role: "group", "aria-label": say("version", at + 1, count) },
    make("button", { class: "icon-button", label: say("earlier"), disabled: at === 0, on: go(at - 1) }, icon("left")),
    make("span", { text: `${at + 1}/${count}` }),
    make("button", { class: "icon-button", label: say("later"), disabled: at === count - 1, on: go(at + 1) }, icon("right")))];
}

// What was told, in the view, from which everything is drawn when the language changes.
function keep(message, told) {
  const blocks = [...message.blocks.slice(0, told.from), ...told.blocks], thought = (told.thought_from ? message.thought : "") + told.thought;
  Object.assign(message, told, { blocks, thought });
}

// The server tells an answer anew to whoever comes back, also one that has ended meanwhile.
function follow(view, id) {
  followed = id;
  const stream = source = new EventSource(`/answers/${encodeURIComponent(id)}`);
  stream.addEventListener("message", (event) => {
    const article = articleOf(id);
    if (stream !== source || !article) return;
    const box = $("messages"), told = JSON.parse(event.data), message = view.messages.find((m) => m.id === id);
    grow(article, told);
    keep(message, told);
    if (told.state !== "answering") {
      unfollow();
      finish(view, article, message);
      announce(told);
      hooks.ended();
    }
    if (down && !selecting(box)) box.scrollTop = box.scrollHeight;
  });
  stream.addEventListener("later", () => { // other tabs follow enough answers already
    stream.close();
    setTimeout(() => { if (stream === source) follow(view, id); }, 1000);
  });
  stream.addEventListener("gone", () => {
    if (stream !== source) return;
    unfollow();
    hooks.gone();
  });
  stream.addEventListener("error", () => {
    if (stream !== source) return;
    notice(say("lost"));
    if (stream.readyState !== EventSource.CLOSED) return; // a browser tries again by itself
    setTimeout(async () => { // but not after an answer of a proxy, or of a server that wants a key
      if (stream === source) await call("open", view.id).catch(() => {}); // why is shown
      if (stream === source) follow(view, id);
    }, 2000);
  });
}

export function unfollow() {
  source?.close();
  source = followed = null;
}
