// The files of what is dropped or chosen: of folders those inside, to their depths.

const MOST = 2000; // files of one drop
const names = new WeakMap(); // file -> where it lies in a folder
// What systems and programs leave behind, and what is never a document.
const LEFT = /(^|\/)(\.|~\$|__MACOSX\/|node_modules\/|Thumbs\.db$|desktop\.ini$)/;
const NEVER = /\.(exe|dll|so|dylib|o|class|jar|pyc|zip|rar|7z|gz|xz|bz2|tar|iso|dmg|apk|mp3|wav|flac|m4a|mp4|mov|avi|mkv|sqlite3?|ttf|otf|woff2?|ico)$/i;

// "folder/part/file.txt", or the name alone of a file that lies in none.
export const nameOf = (file) => names.get(file) || file.webkitRelativePath || file.name;
export const inFolder = (file) => nameOf(file) !== file.name;
const pathOf = (entry) => entry.fullPath.replace(/^\//, "");
const isLeft = (path) => path.includes("/") && LEFT.test(path);

// Of a drop; what is dropped is known only while the event lasts, so it is asked for at once.
export function dropped(transfer) {
  const entries = [...transfer.items].filter((item) => item.kind === "file").map((item) => item.webkitGetAsEntry?.());
  if (!entries.length || entries.some((entry) => !entry)) return Promise.resolve([...transfer.files]);
  return below(entries);
}

// What is left out is not looked into, and does not count: a project's .git may hold more than its documents.
async function below(entries) {
  const found = [], left = [...entries];
  let wanted = 0;
  while (left.length && wanted <= MOST) {
    const entry = left.shift();
    if (isLeft(pathOf(entry) + (entry.isDirectory ? "/" : ""))) continue;
    if (entry.isDirectory) left.unshift(...await listed(entry));
    else {
      const file = await fileOf(entry);
      found.push(file);
      if (!NEVER.test(file.name)) wanted++;
    }
  }
  return found;
}

// A browser tells some at a time. A folder that may not be read is like a file that cannot be.
async function listed(folder) {
  const reader = folder.createReader(), all = [];
  for (;;) {
    const some = await new Promise((resolve) => reader.readEntries(resolve, () => resolve(null)));
    if (!some) return [...all, { isDirectory: false, fullPath: folder.fullPath, file: (_, fail) => fail() }];
    if (!some.length) return all.sort((one, two) => (one.name < two.name ? -1 : 1));
    all.push(...some);
  }
}

async function fileOf(entry) {
  const path = pathOf(entry);
  const file = await new Promise((resolve) => entry.file(resolve, () => resolve(null))) || unreadable(path);
  if (path !== file.name) names.set(file, path);
  return file;
}

function unreadable(path) {
  const file = new File([], path.split("/").at(-1));
  Object.defineProperty(file, "slice", { value: () => ({ arrayBuffer: () => Promise.reject(new Error(path)) }) });
  return file;
}

// {wanted, never: names of what is left out because nothing reads it, more: whether there were too many}
export function chosen(files) {
  const seen = files.filter((file) => !isLeft(nameOf(file)));
  const never = seen.filter((file) => inFolder(file) && NEVER.test(file.name));
  const wanted = seen.filter((file) => !never.includes(file));
  return { wanted: wanted.slice(0, MOST), never: never.map(nameOf), more: wanted.length > MOST };
}
