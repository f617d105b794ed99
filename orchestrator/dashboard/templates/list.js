"use strict";
// The selection of runs to compare. It survives when rows appear and change.
(() => {
  const chosen = new Set();
  const bar = document.getElementById("chosen");
  const runs = () => [...document.querySelectorAll("input[data-run]")];
  const inGroup = (group) => runs().filter((box) => box.dataset.run.slice(0, box.dataset.run.lastIndexOf("/")) === group);

  function show() {
    const boxes = runs();
    const names = new Set(boxes.map((box) => box.dataset.run));
    for (const name of chosen) if (!names.has(name) && names.size) chosen.delete(name);
    for (const box of boxes) box.checked = chosen.has(box.dataset.run);
    for (const box of document.querySelectorAll("input[data-group]")) {
      const members = inGroup(box.dataset.group);
      box.checked = members.length > 0 && members.every((member) => member.checked);
      box.indeterminate = !box.checked && members.some((member) => member.checked);
    }
    bar.hidden = chosen.size === 0;
    bar.querySelector("span").textContent = `${chosen.size} run${chosen.size === 1 ? "" : "s"} selected`;
    const query = [...chosen].map((name) => `run=${encodeURIComponent(name)}`).join("&");
    bar.querySelector("a").href = `/compare?${query}`;
  }

  // Long groups without a running run are folded until the user unfolds them.
  const folded = new Map();
  function fold() {
    for (const button of document.querySelectorAll("button[data-fold]")) {
      const rows = [...button.closest("tbody").querySelectorAll("tr[data-part]")];
      const isQuiet = rows.length > 20 && !rows.some((row) => row.querySelector(".state.running"));
      const isFolded = folded.get(button.dataset.fold) ?? isQuiet;
      button.setAttribute("aria-expanded", String(!isFolded));
      for (const row of rows) row.hidden = isFolded;
    }
  }
  document.addEventListener("click", ({ target }) => {
    const button = target.closest("button[data-fold]");
    if (!button) return;
    folded.set(button.dataset.fold, button.getAttribute("aria-expanded") === "true");
    fold();
  });

  // Pointing at a run usually means opening it: let the server start reading.
  const asked = new Set();
  document.addEventListener("pointerover", ({ target }) => {
    const link = target.closest?.('.runs a[href^="/run/"]');
    if (!link || asked.has(link.href)) return;
    asked.add(link.href);
    fetch(link.href, { priority: "low" }).catch(() => asked.delete(link.href));
  });

  document.addEventListener("change", ({ target }) => {
    if (target.dataset.run !== undefined) {
      if (target.checked) chosen.add(target.dataset.run);
      else chosen.delete(target.dataset.run);
    } else if (target.dataset.group !== undefined) {
      for (const box of inGroup(target.dataset.group)) {
        if (target.checked) chosen.add(box.dataset.run);
        else chosen.delete(box.dataset.run);
      }
    }
    show();
  });
  bar.querySelector("button").addEventListener("click", () => {
    chosen.clear();
    show();
  });
  raymixLive.onUpdate(show);
  raymixLive.onUpdate(fold);
})();
