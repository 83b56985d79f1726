// What is drawn grows: what stays the same is kept, so that nobody who selects, scrolls or presses there is disturbed.

// Make `old` like `next`, which is used up.
export function morph(old, next) {
  if (old.nodeName !== next.nodeName) old.replaceWith(next);
  else if (old.nodeType === Node.TEXT_NODE) write(old, next.data);
  else {
    dress(old, next);
    const before = [...old.childNodes], after = [...next.childNodes];
    for (const [number, child] of after.entries()) number < before.length ? morph(before[number], child) : old.append(child);
    for (const left of before.slice(after.length)) left.remove();
  }
}

function write(node, text) {
  if (text.startsWith(node.data)) node.appendData(text.slice(node.data.length));
  else node.data = text;
}

function dress(old, next) {
  for (const { name } of [...old.attributes]) if (!next.hasAttribute(name)) old.removeAttribute(name);
  for (const { name, value } of next.attributes) if (old.getAttribute(name) !== value) old.setAttribute(name, value);
}
