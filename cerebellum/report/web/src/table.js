import { el } from "./dom.js";

/**
 * A table that sorts by its columns.
 * @param columns {title, value(row) to sort by, cell(row) as text or element, numeric, note}
 * @param options caption; sort: [column, descending]; limit: rows shown at first; rowClass(row)
 */
export function sortableTable(columns, rows, { caption, sort = null, limit = 0, rowClass } = {}) {
  let [column, descending] = sort ?? [-1, false];
  let all = limit === 0;
  let shown = rows;
  const body = el("tbody");
  const heads = columns.map((c, i) => {
    const button = el("button", { type: "button", onclick: () => sortBy(i) }, c.title);
    return el("th", { scope: "col", class: c.numeric ? "number" : null, title: c.note }, button);
  });
  const more = el("button", { type: "button", class: "quiet more", onclick: () => { all = !all; draw(); } });
  const table = el("table", { class: "sortable" }, el("caption", {}, caption), el("thead", {}, el("tr", {}, heads)), body);

  function sortBy(i) {
    descending = i === column ? !descending : Boolean(columns[i].numeric);
    column = i;
    draw();
  }
  function draw() {
    heads.forEach((head, i) => {
      if (i === column) head.setAttribute("aria-sort", descending ? "descending" : "ascending");
      else head.removeAttribute("aria-sort");
    });
    const sorted = column < 0 ? shown : [...shown].sort((a, b) => {
      const x = columns[column].value(a), y = columns[column].value(b);
      // What has no figure stands last in either order.
      if (x === null || x === undefined || y === null || y === undefined) return (x ?? null) === (y ?? null) ? 0 : (x ?? null) === null ? 1 : -1;
      const order = typeof x === "string" ? x.localeCompare(y, "en", { numeric: true }) : x - y;
      return descending ? -order : order;
    });
    body.replaceChildren(...(all ? sorted : sorted.slice(0, limit)).map((row) =>
      el("tr", { class: rowClass?.(row) }, columns.map((c, i) => el(i === 0 ? "th" : "td", { scope: i === 0 ? "row" : null, class: c.numeric ? "number" : null }, c.cell(row))))));
    more.hidden = limit === 0 || shown.length <= limit;
    more.textContent = all ? `Show the first ${limit} only` : `Show all ${shown.length}`;
  }
  draw();
  return {
    element: el("div", {}, el("div", { class: "scroll", tabindex: "0", role: "region", "aria-label": caption }, table), more),
    /** Other rows, in the order that the user chose. */
    update(newRows) {
      shown = newRows;
      draw();
    },
  };
}
