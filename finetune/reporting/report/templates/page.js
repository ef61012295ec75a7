"use strict";

// ---- charts: the values at the place that is pointed at, touched or reached with the arrow keys ---------------------
for (const figure of document.querySelectorAll(".chart")) {
  const { names, colors, stops } = JSON.parse(figure.querySelector("script").textContent);
  const plot = figure.querySelector(".plot");
  const [cursor, tip] = [plot.querySelector(".cursor"), plot.querySelector(".tip")];
  let shown = -1;

  const show = (k) => {
    shown = k;
    cursor.hidden = tip.hidden = k < 0;
    if (k < 0) return;
    const stop = stops[k];
    cursor.style.left = `${stop.x}%`;
    tip.style.left = stop.x < 50 ? `${stop.x}%` : "auto";
    tip.style.right = stop.x < 50 ? "auto" : `${100 - stop.x}%`;
    const title = document.createElement("b");
    title.textContent = stop.text;
    tip.replaceChildren(title, ...stop.values.map(({ series, text }) => {
      const line = document.createElement("span");
      line.style.setProperty("--color", `var(--c${colors[series] % 7})`);
      const value = document.createElement("i");
      value.textContent = text;
      line.append(names[series], value);
      return line;
    }));
  };
  const nearest = (event) => {
    const box = plot.getBoundingClientRect();
    const x = (100 * (event.clientX - box.left)) / box.width;
    const distances = stops.map((stop) => Math.abs(stop.x - x));
    show(distances.indexOf(Math.min(...distances)));
  };
  plot.addEventListener("pointermove", nearest);
  plot.addEventListener("pointerdown", nearest);
  plot.addEventListener("pointerleave", (event) => event.pointerType === "mouse" && show(-1));
  plot.addEventListener("blur", () => show(-1));
  plot.addEventListener("keydown", (event) => {
    const last = stops.length - 1;
    const next = { ArrowRight: Math.min(shown + 1, last), ArrowLeft: shown < 0 ? last : Math.max(shown - 1, 0),
                   Home: 0, End: last, Escape: -1 }[event.key];
    if (next === undefined) return;
    event.preventDefault();
    show(next);
  });
}

// ---- tables that sort by a click on a heading -----------------------------------------------------------------------
for (const table of document.querySelectorAll("table.sortable")) {
  const headings = [...table.tHead.rows[0].cells];
  const compare = (one, other, number) => {
    if (!number) return one.localeCompare(other, undefined, { numeric: true });
    const [a, b] = [parseFloat(one), parseFloat(other)];
    return (Number.isNaN(a) ? -Infinity : a) - (Number.isNaN(b) ? -Infinity : b) || 0;
  };
  headings.forEach((heading, column) => heading.querySelector("button")?.addEventListener("click", () => {
    const number = heading.dataset.kind === "number";
    const first = number ? "descending" : "ascending";
    const other = number ? "ascending" : "descending";
    const order = heading.getAttribute("aria-sort") === first ? other : first;
    headings.forEach((one) => one.removeAttribute("aria-sort"));
    heading.setAttribute("aria-sort", order);
    const sign = order === "ascending" ? 1 : -1;
    const text = (row) => row.cells[column].textContent.trim();
    const rows = [...table.tBodies[0].rows];
    rows.sort((one, two) => sign * compare(text(one), text(two), number));
    table.tBodies[0].append(...rows);
  }));
}

// ---- confusion matrix: the images of a cell -------------------------------------------------------------------------
const dialog = document.querySelector("dialog");
dialog.querySelector(".close").addEventListener("click", () => dialog.close());
dialog.addEventListener("click", (event) => event.target === dialog && dialog.close());

for (const section of document.querySelectorAll("section.confusion")) {
  const { classes, cells, images } = JSON.parse(section.querySelector(":scope > script").textContent);
  const article = section.closest("article");
  const cellAt = new Map(cells.map((cell) => [`${cell[0]},${cell[1]}`, cell]));
  const count = (n) => `${n} image${n === 1 ? "" : "s"}`;
  // An image of the worst mistakes is in the page already.
  const source = (k) => images[k].src ?? article.querySelector(`[data-image="${k}"]`).src;

  const open = ([row, column, total, shown]) => {
    const [title, hint] = [dialog.querySelector("h2"), dialog.querySelector("p")];
    title.textContent = row === column ? `${classes[row]}, predicted correctly`
      : `${classes[row]}, predicted as ${classes[column]}`;
    hint.textContent = shown.length === total ? count(total) : `${count(total)}, of which the page holds ${shown.length}`;
    dialog.querySelector(".pictures").replaceChildren(...shown.map((k) => {
      const item = document.createElement("figure");
      item.style.margin = 0;
      const picture = document.createElement("img");
      picture.src = source(k);
      picture.alt = images[k].name;
      const text = document.createElement("p");
      const name = document.createElement("small");
      name.textContent = name.title = images[k].name;
      text.append(images[k].text, name);
      item.append(picture, text);
      return item;
    }));
    dialog.showModal();
    dialog.scrollTop = 0;
  };
  section.addEventListener("click", (event) => {
    const button = event.target.closest("[data-cell]");
    if (button) open(cellAt.get(button.dataset.cell));
  });

  const large = section.querySelector(".large");
  if (large && Object.keys(images).length) {
    const [here, status] = [large.querySelector(".here"), section.querySelector(".status")];
    let current = null;
    const mark = (cell) => {
      current = cell;
      here.toggleAttribute("hidden", !cell);
      if (!cell) return;
      here.setAttribute("x", cell[1]);
      here.setAttribute("y", cell[0]);
      const [one, other] = [document.createElement("b"), document.createElement("b")];
      one.textContent = classes[cell[0]];
      other.textContent = classes[cell[1]];
      status.replaceChildren("true ", one, ", predicted ", other, `: ${count(cell[2])}`);
    };
    const pointedAt = (event) => {
      const box = large.getBoundingClientRect();
      const [x, y] = [event.clientX - box.left, event.clientY - box.top].map((at) => (at / box.width) * classes.length);
      const distance = ([row, column]) => Math.hypot(row + 0.5 - y, column + 0.5 - x);
      const found = cells.reduce((best, cell) => (distance(cell) < distance(best) ? cell : best));
      return (distance(found) * box.width) / classes.length < 24 ? found : null; // CSS pixels: a finger's width
    };
    large.addEventListener("pointermove", (event) => mark(pointedAt(event)));
    large.addEventListener("click", (event) => {
      mark(pointedAt(event));
      if (current) open(current);
    });
    const beside = (key) => {
      const k = cells.indexOf(current);
      if (k < 0) return cells[0];
      if (key === "ArrowRight") return cells[Math.min(k + 1, cells.length - 1)];
      if (key === "ArrowLeft") return cells[Math.max(k - 1, 0)];
      const rows = key === "ArrowDown" ? cells.filter(([row]) => row > current[0])
        : cells.filter(([row]) => row < current[0]).reverse();
      const next = rows.filter(([row]) => row === rows[0][0]);
      return next.sort((a, b) => Math.abs(a[1] - current[1]) - Math.abs(b[1] - current[1]))[0] ?? current;
    };
    large.addEventListener("keydown", (event) => {
      if (event.key.startsWith("Arrow")) mark(beside(event.key));
      else if (event.key === "Enter" && current) open(current);
      else return;
      event.preventDefault();
    });
  }

  const picker = section.querySelector(".picker");
  picker?.querySelector("select").addEventListener("change", (event) => {
    const label = Number(event.target.value);
    const found = event.target.value === "" ? [] : cells.filter(([row, column]) => row === label || column === label);
    found.sort((one, other) => (other[0] === label) - (one[0] === label) || other[2] - one[2]);
    picker.querySelector("ul").replaceChildren(...found.map(([row, column, total]) => {
      const item = document.createElement("li");
      const button = document.createElement("button");
      button.type = "button";
      button.dataset.cell = `${row},${column}`;
      button.textContent = count(total);
      const text = row === column ? "correct" : row === label ? `predicted as ${classes[column]}`
        : `${classes[row]} predicted as it`;
      item.append(text, button);
      return item;
    }));
  });
}
