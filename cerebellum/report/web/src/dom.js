/** An element: properties (on…: listeners; dataset, style: objects; others: attributes) and children. */
export function el(tag, properties = {}, ...children) {
  const element = document.createElement(tag);
  for (const [name, value] of Object.entries(properties)) {
    if (value === undefined || value === null || value === false) continue;
    if (name.startsWith("on")) element.addEventListener(name.slice(2), value);
    else if (name === "style") for (const [key, entry] of Object.entries(value)) element.style.setProperty(key, entry);
    else if (name === "value" || name === "textContent") element[name] = value;
    else element.setAttribute(name, value === true ? "" : value);
  }
  element.append(...children.flat(Infinity).filter((child) => child !== null && child !== undefined && child !== false));
  return element;
}

export function select(label, options, value, onchange) {
  const list = el("select", { onchange: () => onchange(list.value) }, options.map(([key, text]) => el("option", { value: key }, text)));
  list.value = value;
  return { element: el("label", { class: "field" }, el("span", {}, label), list), list };
}

export function section(id, title, ...children) {
  return el("section", { id, "aria-labelledby": `${id}-title` }, el("h2", { id: `${id}-title` }, title), children);
}

export function tile(label, value, note, emphasis = false) {
  return el("div", { class: emphasis ? "tile main" : "tile" }, el("div", { class: "label" }, label), el("div", { class: "value" }, value), note && el("div", { class: "note" }, note));
}

/** Says something to people who listen to the page. */
export function announce(text) {
  document.getElementById("announce").textContent = text;
}
