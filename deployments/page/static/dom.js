// Elements from data. Text only ever goes in as text: there is no way from a string to markup here.

export function el(tag, attributes = {}, ...children) {
  const node = document.createElement(tag);
  for (const [name, value] of Object.entries(attributes)) {
    if (value === null || value === undefined || value === false) continue;
    if (name === "class") node.className = value;
    else if (name.startsWith("on")) node.addEventListener(name.slice(2), value);
    else node.setAttribute(name, value === true ? "" : value);
  }
  node.append(...children.filter((child) => child !== null && child !== undefined).map((child) => (child instanceof Node ? child : String(child))));
  return node;
}

export function setText(node, text) {
  if (node.textContent !== text) node.textContent = text;
}

export function setAttribute(node, name, value) {
  if (node.getAttribute(name) !== value) node.setAttribute(name, value);
}

// One child of `parent` for each item, in their order. What is there already is kept, and with it focus and scrolling.
export function keyed(parent, items, keyOf, make, update) {
  const known = parent.keyedChildren || (parent.keyedChildren = new Map());
  const found = new Map();
  let place = parent.firstChild;
  for (const item of items) {
    const key = keyOf(item);
    let node = known.get(key);
    if (!node) node = make(item);
    found.set(key, node);
    if (node === place) place = place.nextSibling;
    else parent.insertBefore(node, place);
    update(node, item);
  }
  for (const [key, node] of known) if (!found.has(key)) node.remove();
  parent.keyedChildren = found;
}

// Replace what is in `parent`, but only where `data` is not what it was made from.
export function redraw(parent, data, draw) {
  const text = JSON.stringify(data);
  if (parent.drawnFrom === text) return;
  parent.drawnFrom = text;
  parent.replaceChildren(...draw(data).filter((child) => child !== null));
}
