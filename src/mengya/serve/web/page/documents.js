// Files of the conversation and of knowledge bases: adding, progress, removing; and the passage that a citation opens.

import { $, call, icon, make, notice, post } from "./calls.js";
import { chosen as sorted, dropped, inFolder, nameOf as pathOf } from "./folders.js";
import { told } from "./told.js";
import { say } from "./words.js";

let most = 20e6; // bytes of a file
let hooks = {}; // {conversation(): id or "", begin(title): a new one, panel(id, open)}
let chosen = new Set(); // places of the bases that are asked
const nameOf = (place) => place.slice(place.indexOf(":") + 1);
let timer = 0;
const pictures = {}; // conversation -> those that go with its next question: {id, name}
const coming = new Map(); // files that are on their way -> {place, control: AbortController}
const waiting = new Map(); // place -> files that go after those
const AT_A_TIME = 2, AHEAD = 20; // files that are sent, and that the server has still to read before more are
let uploads = Promise.resolve();
export const uploaded = () => uploads; // a question that follows waits for its files

export function connectDocuments(given) {
  hooks = given;
  most = given.most;
  $("attach").addEventListener("click", () => $("attach-files").click());
  $("attach-files").addEventListener("change", (event) => { addHere([...event.target.files]); event.target.value = ""; });
  $("new-base").addEventListener("submit", async (event) => {
    event.preventDefault();
    await call("make_base", $("base-name").value);
    $("base-name").value = "";
    shelf();
  });
  $("new-address").classList.toggle("hidden", !given.addresses);
  $("new-address").addEventListener("submit", async (event) => {
    event.preventDefault();
    const url = $("address").value, conversation = hooks.conversation() || await hooks.begin(url);
    await call("add_address", `conversation:${conversation}`, url);
    $("address").value = "";
    refreshFiles();
  });
  $("text").addEventListener("paste", (event) => {
    const pasted = [...event.clipboardData.files];
    if (!pasted.length || event.clipboardData.types.includes("text/plain")) return; // of a text processor: a picture of the text, too
    event.preventDefault();
    const now = new Date().toTimeString().slice(0, 8).replaceAll(":", ".");
    addHere(pasted.map((file) => (file.name === "image.png" ? new File([file], `image ${now}.png`, { type: file.type }) : file))); // all have that name
  });
  let inside = 0;
  const files = (event) => [...(event.dataTransfer?.types || [])].includes("Files");
  addEventListener("dragenter", (event) => { if (files(event)) { inside++; $("drop").classList.remove("hidden"); } });
  addEventListener("dragleave", (event) => { if (files(event) && --inside <= 0) $("drop").classList.add("hidden"); });
  addEventListener("dragover", (event) => { if (files(event)) event.preventDefault(); });
  addEventListener("drop", (event) => {
    inside = 0;
    $("drop").classList.add("hidden");
    if (!files(event)) return;
    event.preventDefault();
    const place = event.target.closest?.("[data-place]")?.dataset.place, given = dropped(event.dataTransfer);
    place ? add(place, given) : addHere(given);
  });
}

const here = () => (hooks.conversation() ? `conversation:${hooks.conversation()}` : "");
const megabytes = () => Math.round(most / 1e6);
export const bases = () => [...chosen];

export function chooseBases(places) {
  chosen = new Set(places || []);
}

function addHere(files) {
  const done = takeHere(files);
  uploads = Promise.allSettled([uploads, done]);
  return done;
}

async function takeHere(files) {
  const fit = await usable(files);
  if (!fit.length) return;
  const conversation = hooks.conversation() || await hooks.begin(pathOf(fit[0]).split("/")[0]); // whichever is in sight when all are sent
  const seen = hooks.sees() ? fit.filter((file) => file.type.startsWith("image/") && !inFolder(file)) : [];
  const place = `conversation:${conversation}`;
  for (const file of seen) {
    const going = sent(`/pictures?${new URLSearchParams({ conversation, name: file.name })}`, place, file);
    refreshFiles();
    const id = await going.catch(() => ""); // why is shown
    if (id) (pictures[conversation] ??= []).push({ id, name: file.name });
  }
  await upload(place, fit.filter((file) => !seen.includes(file)));
}

const mine = () => pictures[hooks.conversation()] || [];
export const pending = () => mine().map((picture) => picture.id);
export const clearPictures = (conversation) => delete pictures[conversation];

const add = async (place, files) => upload(place, await usable(files));

// Those that are not too large and can be read: a file that was moved meanwhile cannot.
async function usable(given) {
  const all = await given;
  const { wanted: files, never, more } = sorted(all);
  const read = await Promise.allSettled(files.map((file) => file.slice(0, 1).arrayBuffer()));
  const wrong = files.map((file, n) => (read[n].status === "rejected" ? say("unreadable", pathOf(file)) : file.size > most ? say("too_large", pathOf(file), megabytes()) : ""));
  if (more) wrong.push(say("too_many", files.length));
  if (never.length) wrong.push(say("not_documents", never));
  if (!files.length && !never.length) wrong.push(say("no_files_inside"));
  const told = wrong.filter(Boolean);
  if (told.length) notice(told.length > 5 ? `${told.slice(0, 5).join(" ")} …` : told.join(" "));
  return files.filter((_, n) => !wrong[n]);
}

// A few at a time: browsers have six connections to a server, and the server takes a hundred files at a time.
async function upload(place, files) {
  const left = waiting.get(place) || [];
  left.push(...files);
  waiting.set(place, left);
  const send = async () => {
    for (let refused = 0; left.length && refused < 3;) {
      if (files.length > AHEAD) await room(place);
      const file = left.shift();
      if (!file) break;
      const going = sent(`/files?${new URLSearchParams({ place, name: pathOf(file) })}`, place, file);
      refreshFiles();
      await going.catch((error) => { refused += error.message ? 1 : 0; }); // why is shown
    }
  };
  await Promise.allSettled(Array.from({ length: AT_A_TIME }, send));
  if (left.length) notice(`${$("notice").textContent} ${say("left_files", left.splice(0).length)}`);
  await refreshFiles();
}

async function room(place) {
  while ((await call("files", place)).jobs.filter((job) => job.state !== "error").length >= AHEAD) await new Promise((resolve) => setTimeout(resolve, 500));
}

async function sent(path, place, file) {
  const control = new AbortController();
  coming.set(file, { place, control });
  try {
    return await post(path, file, { headers: { "Content-Type": "application/octet-stream" }, signal: control.signal });
  } finally {
    coming.delete(file);
  }
}

const comingTo = (place) => [...coming].filter(([, on]) => on.place === place).map(([file, { control }]) => [pathOf(file), control]);

// Everything that shows files; again as long as something is being read.
export async function refreshFiles() {
  clearTimeout(timer);
  const open = !$("library").classList.contains("hidden");
  const busy = [await chips(), open && await shelf()];
  if (busy.some(Boolean)) timer = setTimeout(refreshFiles, 800);
}

const SHOWN = 8; // files of the conversation beside what is written; all are in the panel
const reading = (found) => found.jobs.some((job) => job.state !== "error");
const progress = (job) => (job.state === "waiting" ? say("waiting_file") : say("reading", job.done, job.pages));

async function chips() {
  const place = here(), found = place ? await call("files", place) : { files: [], jobs: [] };
  if (place !== here()) return false;
  const entry = (name, about, label, remove, kind = "") => make("li", { class: `chip ${kind}` }, icon(kind === "base" ? "book" : "clip"),
    make("span", { class: "name", text: name }), about ? make("span", { class: "quiet", text: about }) : "",
    make("button", { class: "icon-button", label, on: async () => { await remove(); refreshFiles(); } }, icon("close")));
  $("chips").replaceChildren(
    ...found.files.slice(0, SHOWN).map((file) => entry(file.name, pagesOf(file), say("remove", file.name), () => call("remove_file", place, file.name))),
    ...(found.files.length > SHOWN ? [make("li", {}, make("button", { class: "plain-button chip", text: say("all_files", found.files.length), on: () => hooks.panel("library", true) }))] : []),
    ...found.jobs.map((job) => entry(job.name, told(job.error) || progress(job), say("cancel_file", job.name), () => call("cancel_file", job.id), job.state === "error" ? "failed" : "busy")),
    ...comingTo(place).map(([name, control]) => entry(name, say("uploading"), say("cancel_file", name), () => control.abort(), "busy")),
    ...(waiting.get(place)?.length ? [entry(say("more_files", waiting.get(place).length), "", say("cancel_rest"), () => waiting.get(place).splice(0), "busy")] : []),
    ...mine().map((picture) => {
      const chip = entry(picture.name, "", say("remove", picture.name), async () => { mine().splice(mine().indexOf(picture), 1); });
      chip.querySelector("svg").replaceWith(make("img", { src: `/pictures/${picture.id}`, alt: "" }));
      return chip;
    }),
    ...bases().map((base) => entry(say("base", nameOf(base)), "", say("remove", nameOf(base)), async () => { chosen.delete(base); hooks.changed(); }, "base")));
  return reading(found);
}

function pagesOf(file) {
  const parts = file.pages ? [say("pages", file.pages)] : [];
  for (const state of ["ocr", "blank", "unread"]) if (file[state]) parts.push(say(`${state}_pages`, file[state]));
  return parts.join(" · ");
}

export async function shelf() {
  $("documents-hint").textContent = say("documents_hint", megabytes());
  const places = [["own-files", here()]];
  const known = await call("bases");
  $("bases").replaceChildren(...(await Promise.all(known.map(base))));
  let busy = false;
  for (const [id, place] of places) {
    const found = place ? await call("files", place) : { files: [], jobs: [] };
    $(id).replaceChildren(listOf(place, found, (folder) => addFrom(place ? (files) => add(place, files) : addHere, folder)));
    if (place) $(id).dataset.place = place;
    else delete $(id).dataset.place;
    busy ||= reading(found);
  }
  return busy || [...document.querySelectorAll("#bases .busy")].length > 0;
}

const opened = new Set();
async function base(place) {
  const found = await call("files", place), name = nameOf(place), shared = place.startsWith("shared:");
  const use = make("input", { type: "checkbox", "aria-label": say("use_base", name) });
  use.checked = chosen.has(place);
  use.addEventListener("change", () => { use.checked ? chosen.add(place) : chosen.delete(place); hooks.changed(); chips(); });
  const sure = make("button", { class: "icon-button", label: say("remove_base", name), on: async () => {
    if (!sure.classList.contains("sure")) {
      sure.classList.add("sure");
      sure.replaceChildren(say("delete_sure"));
      return;
    }
    await call("remove_base", name);
    chosen.delete(place);
    hooks.changed();
    refreshFiles();
  } }, icon("close"));
  const more = make("details", { class: "place", "data-place": shared ? null : place }, make("summary", { text: `${name} (${found.files.length})` }),
    listOf(place, found, shared ? null : (folder) => addFrom((files) => { opened.add(place); add(place, files); }, folder)));
  more.open = opened.has(place);
  more.addEventListener("toggle", () => (more.open ? opened.add(place) : opened.delete(place)));
  return make("div", { class: "base" }, use, more, shared ? "" : sure);
}

function addFrom(take, folder) {
  const input = make("input", { type: "file", multiple: true, webkitdirectory: folder });
  input.addEventListener("change", () => take([...input.files]));
  input.click();
}

function listOf(place, found, pick) {
  const entry = (name, about, label, remove, kind = "", notes = []) => make("li", { class: kind }, make("div", { class: "grow" },
    make("div", { class: "name", text: name }), make("div", { class: "quiet", text: [about, ...notes].filter(Boolean).join(" · ") })),
    pick ? make("button", { class: "icon-button", label, on: async () => { await remove(); refreshFiles(); } }, icon("close")) : "");
  const list = make("ul", { class: "files" },
    ...found.files.map((file) => entry(file.name, pagesOf(file), say("remove", file.name), () => call("remove_file", place, file.name), "", file.notes.map(told))),
    ...found.jobs.map((job) => entry(job.name, told(job.error) || progress(job), say("cancel_file", job.name), () => call("cancel_file", job.id), job.state === "error" ? "failed" : "busy")));
  if (!list.children.length) list.append(make("li", { class: "quiet", text: say("no_files") }));
  const button = (name, folder) => make("button", { class: "plain-button", text: say(name), on: () => pick(folder) });
  return make("div", {}, list, pick ? make("div", { class: "row" }, button("add_files", false), "webkitdirectory" in HTMLInputElement.prototype ? button("add_folder", true) : "") : "");
}

export async function openSource(conversation, message, number, from) {
  const shown = await call("source", conversation, message, number);
  $("source-name").textContent = shown.file;
  const where = [...(shown.pages || []).map((n) => say("page_number", n)), (shown.headings || []).join(" › ")];
  $("source-place").textContent = [...where, shown.gone ? say("source_gone") : ""].filter(Boolean).join(" · ");
  $("source-text").replaceChildren(...shown.paragraphs.map(({ kind, parts }) => make(kind === "heading" ? "h4" : kind === "table" ? "pre" : "p", {},
    ...parts.map(([text, cited]) => (cited ? make("mark", { text }) : text)))));
  hooks.panel("source", true, from);
  $("source-text").querySelector("mark")?.scrollIntoView({ block: "center" });
}
