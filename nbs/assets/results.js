(() => {
  const { columns, decimals, rows, selects } = JSON.parse(document.getElementById("results-data").textContent);
  const root = document.getElementById("results"), find = (selector) => root.querySelector(selector);
  const make = (name, attributes = {}, ...children) => {
    const made = Object.assign(document.createElement(name), attributes);
    made.append(...children);
    return made;
  };
  const numeric = columns.map((_, i) => rows.some((row) => typeof row[i] === "number"));
  const shown = (cell, i) => (cell === null ? "–" : typeof cell === "number" && decimals[i] !== null ? cell.toFixed(decimals[i]) : String(cell));
  const texts = new Map(rows.map((row) => [row, row.map(shown).join(" ").toLowerCase()]));
  const sorted = { column: null, descending: false };
  let visible = rows;

  const chosen = selects.map((name) => {
    const i = columns.indexOf(name), values = [...new Set(rows.map((row) => shown(row[i], i)))].sort();
    const select = make("select", { onchange: show }, make("option", { value: "" }, "all"), ...values.map((value) => make("option", { value }, value)));
    find(".choices").append(make("label", {}, `${name} `, select));
    return { i, select };
  });
  const heads = columns.map((name, i) => make("th", { scope: "col", className: numeric[i] ? "number" : "" }, make("button", { type: "button", onclick: () => sort(i) }, name)));
  const body = make("tbody");
  find(".scroll").append(make("table", {}, make("thead", {}, make("tr", {}, ...heads)), body));

  function sort(column) {
    sorted.descending = sorted.column === column && !sorted.descending;
    sorted.column = column;
    heads.forEach((head, i) => (i === column ? head.setAttribute("aria-sort", sorted.descending ? "descending" : "ascending") : head.removeAttribute("aria-sort")));
    show();
  }

  // What is not there stands last, whichever way the rest is sorted.
  function order(a, b) {
    const [left, right] = [a[sorted.column], b[sorted.column]];
    if (left === null || right === null) return (left === null) - (right === null);
    const ascending = numeric[sorted.column] ? left - right : String(left).localeCompare(right, "en", { numeric: true });
    return sorted.descending ? -ascending : ascending;
  }

  function show() {
    const words = find("input").value.toLowerCase().split(/\s+/).filter(Boolean);
    visible = rows.filter((row) => chosen.every(({ i, select }) => !select.value || shown(row[i], i) === select.value) && words.every((word) => texts.get(row).includes(word)));
    if (sorted.column !== null) visible.sort(order);
    body.replaceChildren(...visible.map((row) => make("tr", {}, ...row.map((cell, i) => make("td", { className: numeric[i] ? "number" : "" }, shown(cell, i))))));
    find("[role=status]").textContent = `${visible.length} of ${rows.length} runs`;
  }

  function save() {
    const quoted = (cell) => (cell === null ? "" : /[",\n]/.test(cell) ? `"${String(cell).replaceAll('"', '""')}"` : String(cell));
    const text = [columns, ...visible].map((row) => row.map(quoted).join(",")).join("\r\n") + "\r\n";
    const address = URL.createObjectURL(new Blob([text], { type: "text/csv" }));
    make("a", { href: address, download: "sivit-results.csv" }).click();
    setTimeout(() => URL.revokeObjectURL(address), 1000);
  }

  find("input").addEventListener("input", show);
  find(".save").addEventListener("click", save);
  show();
})();
