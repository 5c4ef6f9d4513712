"use strict";
(() => {
  const table = document.getElementById("board"), body = table.tBodies[0], heads = [...table.tHead.rows[0].cells];
  const rows = [...body.rows], kinds = [...document.querySelectorAll(".kind")];
  const find = document.getElementById("find"), count = document.getElementById("count");

  // What a run lacks stands last in both directions.
  function sort(place, ascending) {
    const key = (row) => row.cells[place].dataset.value ?? "";
    const isText = place < 3;
    const direction = ascending ? 1 : -1;
    const sorted = [...rows].sort((one, other) => {
      const [a, b] = [key(one), key(other)];
      if (a === "" || b === "") return (a === "") - (b === "");
      return direction * (isText ? a.localeCompare(b, undefined, { numeric: true }) : a - b);
    });
    body.append(...sorted);
    heads.forEach((head) => head.removeAttribute("aria-sort"));
    heads[place].setAttribute("aria-sort", ascending ? "ascending" : "descending");
  }

  // The better end comes first; a second click turns the order.
  heads.forEach((head, place) => {
    const button = head.querySelector("button");
    button.addEventListener("click", () => {
      const now = head.getAttribute("aria-sort");
      const first = place < 3 || button.dataset.better === "-1";
      sort(place, now === null ? first : now !== "ascending");
    });
  });

  function filter() {
    const words = find.value.toLowerCase().split(/\s+/).filter(Boolean);
    const chosen = new Set(kinds.filter((box) => box.checked).map((box) => box.value));
    rows.forEach((row) => {
      const text = [...row.cells].slice(0, 3).map((cell) => cell.textContent.toLowerCase()).join(" ");
      row.hidden = !chosen.has(row.dataset.kind) || !words.every((word) => text.includes(word));
    });
    count.textContent = `${rows.filter((row) => !row.hidden).length} of ${rows.length} rows`;
  }
  find.addEventListener("input", filter);
  kinds.forEach((box) => box.addEventListener("change", filter));

  document.querySelectorAll(".column").forEach((box) => box.addEventListener("change", () => {
    table.querySelectorAll(`[data-column="${box.value}"]`).forEach((cell) => { cell.hidden = !box.checked; });
  }));

  const quoted = (text) => `"${(/^[=+\-@\t\r\n]/.test(text) ? "'" + text : text).replaceAll('"', '""')}"`;
  document.getElementById("save").addEventListener("click", () => {
    const shown = heads.map((head, place) => place).filter((place) => !heads[place].hidden);
    const titles = shown.flatMap((place) => {
      const parts = [...heads[place].querySelectorAll("button, small")].map((part) => part.firstChild?.textContent ?? "");
      const title = parts.filter(Boolean).join(", ");
      return place < 3 ? [quoted(title)] : [quoted(title), quoted(title + " low"), quoted(title + " high")];
    });
    const lines = [...body.rows].filter((row) => !row.hidden).map((row) => shown.flatMap((place) => {
      const { value, interval } = row.cells[place].dataset;
      return place < 3 ? [quoted(value)] : [value, ...(interval ? interval.split(" ") : ["", ""])];
    }).join(","));
    const link = document.createElement("a");
    link.href = URL.createObjectURL(new Blob([[titles.join(","), ...lines].join("\n") + "\n"], { type: "text/csv" }));
    link.download = "board.csv";
    link.click();
    URL.revokeObjectURL(link.href);
  });

  filter();
})();
