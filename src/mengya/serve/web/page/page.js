// The page: conversations at the side, the one in sight, how it is answered.

import { $, Refused, call, copy, icon, make, notice, post } from "./calls.js";
import { bases, chooseBases, clearPictures, connectDocuments, openSource, pending, refreshFiles, uploaded } from "./documents.js";
import { answering, clear, composing, connect, draw, reveal } from "./messages.js";
import { say, switchLanguage, translate } from "./words.js";

const NUMBERS = ["temperature", "top_p", "repetition_penalty", "top_k", "max_new_tokens", "seed"];
const THEMES = ["auto", "light", "dark"];
let models = [], usual = {};
let view = null; // the conversation in sight; null: a new one
let sending = false;

// --- how it is answered -----------------------------------------------------------------------------------------------

function settings() {
  const values = { model: $("model").value, system: $("system").value, bases: bases() };
  for (const name of NUMBERS) values[name] = $(name).value === "" ? null : Number($(name).value);
  return values;
}

function setSettings(values) {
  const all = { ...usual, ...values };
  if (models.some((m) => m.name === all.model)) $("model").value = all.model;
  $("system").value = all.system || "";
  chooseBases(all.bases);
  for (const name of NUMBERS) $(name).value = all[name] ?? "";
  outputs();
}

function outputs() {
  for (const output of document.querySelectorAll("output")) output.textContent = $(output.htmlFor[0]).value;
  $("about").textContent = models.find((m) => m.name === $("model").value)?.about || "";
}

function rememberSettings() {
  outputs();
  localStorage.setItem("settings", JSON.stringify(settings()));
}

function lastSettings() {
  try {
    return JSON.parse(localStorage.getItem("settings")) || {};
  } catch {
    return {};
  }
}

// --- conversations ----------------------------------------------------------------------------------------------------

let asked = 0;
async function list() {
  const number = ++asked, search = $("search").value.trim();
  const found = await call("conversations", search);
  if (number !== asked) return;
  $("conversations").replaceChildren(...found.map(entry));
  if (!found.length) $("conversations").append(make("li", { class: "quiet none", text: say(search ? "not_found" : "none") }));
}

function entry(c) {
  const open = make("button", { class: "conversation", "aria-current": view?.id === c.id ? "page" : false, on: () => go(c.id, $("search").value.trim()) },
    make("span", { class: "name", dir: "auto", text: c.title }));
  if (c.busy) open.append(make("span", { class: "dot" }, make("span", { class: "unseen", text: say("busy") })));
  return make("li", {}, open, make("button", { class: "icon-button", label: say("more", c.title), on: () => manage(c) }, icon("more")));
}

let going = 0; // who chooses twice wants the second, whichever comes first
async function go(id, search = "") {
  const number = ++going;
  side(false);
  const given = search ? await call("find", id, search) : await call("open", id);
  if (number !== going) return;
  show(given);
  recall();
  $("text").focus();
  if (given.found) reveal(given.found);
}

function show(given, asked = false) {
  const same = view?.id === given.id;
  view = given;
  history.replaceState(null, "", `#${given.id}`);
  title(given.title);
  if (!same) setSettings(given.settings);
  draw(given, asked);
  buttons();
  list();
  refreshFiles();
}

function fresh() {
  going++;
  view = null;
  history.replaceState(null, "", location.pathname);
  title("");
  setSettings({ ...lastSettings(), bases: [] });
  clear();
  buttons();
  list();
  refreshFiles();
  recall();
  side(false);
  $("text").focus();
}

// It was deleted, in another tab perhaps. What is not sent yet goes along to a new one.
function gone() {
  const text = $("text").value;
  sessionStorage.removeItem(draft(view.id));
  fresh();
  $("text").value = [text, $("text").value].filter(Boolean).join("\n\n");
  remember();
  fit();
  notice(say("gone"));
}

function title(text) {
  $("title").textContent = text || say("first_title");
  document.title = text ? `${text} · 萌芽` : "萌芽 Mengya";
}

function manage(c) {
  const dialog = $("conversation-dialog"), remove = $("delete");
  $("new-title").value = c.title;
  $("export-md").href = `/export/${encodeURIComponent(c.id)}.md`;
  $("export-json").href = `/export/${encodeURIComponent(c.id)}.json`;
  remove.textContent = say("delete");
  remove.onclick = async () => {
    if (remove.textContent !== say("delete_sure")) { remove.textContent = say("delete_sure"); return; }
    await call("delete", c.id);
    sessionStorage.removeItem(draft(c.id));
    dialog.close();
    if (view?.id === c.id) fresh();
    else list();
  };
  $("rename-save").onclick = async (event) => {
    event.preventDefault();
    await call("rename", c.id, $("new-title").value);
    dialog.close();
    if (view?.id === c.id) title($("new-title").value.trim());
    list();
  };
  dialog.showModal();
  $("new-title").select();
}

// --- writing ----------------------------------------------------------------------------------------------------------

// What is not sent yet stays with its conversation, also after a reload.
const draft = (id) => `draft ${id || ""}`;

function remember() {
  try {
    sessionStorage.setItem(draft(view?.id), $("text").value);
  } catch { /* no room for so long a text */ }
}

function recall() {
  $("text").value = sessionStorage.getItem(draft(view?.id)) || "";
  fit();
}

// What was written for a new conversation goes along when it is made.
function made(given, asked) {
  const before = draft(view?.id);
  show(given, asked);
  sessionStorage.removeItem(before);
  remember();
}

async function send() {
  if (answering() || sending) return;
  const number = going;
  sending = true;
  try {
    await uploaded();
    if (number !== going) return; // another is in sight by now: what was written stays with its own
    const text = $("text").value, from = view;
    if (!(text.trim() || pending().length)) return;
    const parent = view?.messages.at(-1)?.id || "";
    const given = await call("send", view?.id || "", parent, text, { ...settings(), pictures: pending() });
    clearPictures(from?.id);
    if (view !== from) { // another is in sight by now, with what is written there
      sessionStorage.removeItem(draft(from?.id));
      list();
      return;
    }
    $("text").value = "";
    fit();
    made(given, true);
  } catch { /* it was said, and the text is still there */ } finally {
    sending = false;
    buttons();
  }
}

async function stop() {
  const id = answering();
  if (id) await call("stop", id);
}

function buttons() {
  const busy = Boolean(answering()), button = $("send");
  button.replaceChildren(icon(busy ? "stop" : "send"));
  button.setAttribute("aria-label", say(busy ? "stop" : "send"));
  button.title = say(busy ? "stop" : "send");
  button.classList.toggle("stop", busy);
}

function fit() {
  const area = $("text");
  area.style.height = "auto";
  area.style.height = `${Math.min(area.scrollHeight, innerHeight * 0.4)}px`;
}

// --- appearance -------------------------------------------------------------------------------------------------------

function side(open) {
  $("side").classList.toggle("open", open);
  $("shade").classList.toggle("hidden", !open);
  $("menu").setAttribute("aria-expanded", String(open));
  if (open) $("side-close").focus();
}

const OPENERS = { settings: "tune", library: "shelf" };
let before = null; // what had the focus before a panel was opened
function panel(id, open, from = null) {
  for (const other of document.querySelectorAll(".panel")) if (other.id !== id) other.classList.add("hidden");
  $(id).classList.toggle("hidden", !open);
  for (const [name, opener] of Object.entries(OPENERS)) $(opener).setAttribute("aria-expanded", String(!$(name).classList.contains("hidden")));
  if (open) {
    before = from || $(OPENERS[id]);
    $(id).querySelector(".panel-head button").focus();
    if (id === "library") refreshFiles();
  } else (before?.isConnected ? before : $("text")).focus();
}

function theme() {
  const chosen = localStorage.getItem("theme") || "auto";
  if (chosen === "auto") delete document.documentElement.dataset.theme;
  else document.documentElement.dataset.theme = chosen;
  const button = $("theme");
  button.replaceChildren(chosen === "auto" ? make("span", { text: "A" }) : icon(chosen === "dark" ? "moon" : "sun"));
  button.setAttribute("aria-label", say(`theme_${chosen}`));
  button.title = say(`theme_${chosen}`);
}

function words() {
  translate();
  $("language").textContent = say("language_short");
  theme();
}

// --- what is pressed --------------------------------------------------------------------------------------------------

function listen() {
  $("composer").addEventListener("submit", (event) => { event.preventDefault(); answering() ? stop() : send(); });
  $("text").addEventListener("input", () => { fit(); remember(); });
  $("sign-out").addEventListener("submit", () => { sessionStorage.clear(); localStorage.removeItem("settings"); }); // another may come
  $("text").addEventListener("keydown", (event) => {
    if (composing(event) || event.key !== "Enter" || event.shiftKey) return;
    event.preventDefault();
    send();
  });
  document.addEventListener("keydown", (event) => {
    if (composing(event) || event.key !== "Escape" || document.querySelector("dialog[open]")) return;
    if (answering()) stop();
    else for (const open of document.querySelectorAll(".panel:not(.hidden)")) panel(open.id, false);
    side(false);
  });
  $("new").addEventListener("click", fresh);
  $("menu").addEventListener("click", () => side(true));
  $("shade").addEventListener("click", () => side(false));
  $("side-close").addEventListener("click", () => { side(false); $("menu").focus(); });
  $("tune").addEventListener("click", () => panel("settings", $("settings").classList.contains("hidden")));
  $("shelf").addEventListener("click", () => panel("library", $("library").classList.contains("hidden")));
  $("search").addEventListener("input", list);
  $("model").addEventListener("change", rememberSettings);
  for (const name of [...NUMBERS, "system"]) $(name).addEventListener("input", rememberSettings);
  $("usual").addEventListener("click", () => { setSettings({ model: $("model").value }); rememberSettings(); });
  $("language").addEventListener("click", () => {
    switchLanguage();
    words();
    title(view?.title);
    view ? draw(view) : clear();
    buttons();
    list();
    refreshFiles();
  });
  $("theme").addEventListener("click", () => {
    const now = localStorage.getItem("theme") || "auto";
    localStorage.setItem("theme", THEMES[(THEMES.indexOf(now) + 1) % 3]);
    theme();
  });
  $("data").addEventListener("click", () => $("data-dialog").showModal());
  document.querySelector('[href="/export.zip"]').addEventListener("click", (event) => {
    event.currentTarget.download = `mengya-${new Date().toLocaleDateString("sv")}.zip`; // of the day here, wherever the server is
  });
  $("import").addEventListener("click", () => $("import-file").click());
  $("import-file").addEventListener("change", async (event) => {
    const [file] = event.target.files;
    event.target.value = "";
    if (!file) return;
    $("data-dialog").close();
    const { conversations, files } = await post("/import", file);
    notice(say("imported", conversations, files));
    refresh();
  });
  for (const button of document.querySelectorAll("[data-dialog-close]")) button.addEventListener("click", () => button.closest("dialog").close());
  for (const button of document.querySelectorAll("[data-close]")) button.addEventListener("click", () => panel(button.dataset.close, false));
  document.addEventListener("click", (event) => {
    const button = event.target.closest?.(".copy-code");
    if (button) copy(button.closest(".code").querySelector("code").textContent, button);
    const cite = event.target.closest?.("[data-source]");
    if (cite && view) openSource(view.id, cite.closest("[data-id]").dataset.id, Number(cite.dataset.source), cite);
  });
  document.addEventListener("visibilitychange", refresh);
  addEventListener("focus", refresh); // of another window beside this one
  addEventListener("missing", (event) => {
    $("conversation-dialog").close();
    if (view?.id === event.detail) gone();
    else list();
  });
  addEventListener("unhandledrejection", (event) => { if (event.reason instanceof Refused) event.preventDefault(); }); // it was shown
  addEventListener("hashchange", () => { if (location.hash.slice(1) && location.hash.slice(1) !== view?.id) go(location.hash.slice(1)); });
}

// Another tab may have written on, given it another title, or deleted it.
async function refresh() {
  const idle = () => !document.hidden && !answering() && !sending && !document.querySelector(".edit");
  if (document.hidden) return;
  list();
  if (!view || !idle()) return;
  const now = await call("open", view.id);
  if (idle() && view?.id === now.id && (now.updated !== view.updated || now.title !== view.title)) show(now);
}

async function begin() {
  words();
  const known = await call("start");
  models = known.models;
  usual = known.settings;
  $("model").replaceChildren(...models.map((m) => make("option", { value: m.name, text: m.name })));
  $("sign-out").classList.toggle("hidden", !known.signed_in);
  connect({ show, settings, here: (id) => view?.id === id, gone, ended: () => { buttons(); list(); } });
  connectDocuments({
    most: known.file_bytes, addresses: known.addresses, sees: () => Boolean(models.find((m) => m.name === $("model").value)?.sees), panel, changed: rememberSettings, conversation: () => view?.id || "",
    begin: async (title) => {
      const given = await call("create", title, settings());
      made(given);
      return given.id;
    },
  });
  listen();
  const id = location.hash.slice(1);
  try {
    if (id) return await go(id);
  } catch { /* it was deleted */ }
  fresh();
}

begin();
