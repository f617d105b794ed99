"use strict";
// Follows the page's event stream: parts of the page as HTML escaped by the server, figures as data, then changes.
// Disconnects while the page is hidden: a browser allows few connections per server.
const raymixLive = (() => {
  const address = document.body.dataset.live;
  const link = document.getElementById("link");
  const problem = document.getElementById("problem");
  const shown = new Map(); // part -> its HTML
  const listeners = [];
  let figures = [];
  let values = {};
  let source = null;
  let skew = 0; // this clock minus the server's, in seconds

  const token = new URLSearchParams(location.hash.slice(1)).get("token");
  if (token) {
    sessionStorage.setItem("raymix-token", token);
    history.replaceState(null, "", location.pathname + location.search);
  }

  function put(name, html) {
    const element = document.querySelector(`[data-part="${CSS.escape(name)}"]`);
    if (!element || shown.get(element) === html) return;
    const isOpen = element.querySelector("details")?.open;
    element.innerHTML = html;
    shown.set(element, html);
    const details = element.querySelector("details");
    if (details && isOpen !== undefined) details.open = isOpen;
  }

  function patched(old, patch) {
    return "from" in patch ? old.slice(0, patch.from).concat(patch.values) : patch.value;
  }

  function patch(figure, change) {
    if (change.figure) return Object.assign(figure, change.figure);
    if (change.layout) figure.layout = change.layout;
    for (const [index, keys] of Object.entries(change.traces)) {
      const trace = figure.data[index];
      for (const [key, value] of Object.entries(keys)) trace[key] = patched(trace[key], value);
    }
    return figure;
  }

  function receive(message) {
    skew = Date.now() / 1000 - message.clock;
    problem.hidden = !message.problem;
    problem.textContent = message.problem ?? "";
    const names = Object.keys(message.parts ?? {});
    names.sort((a, b) => (b === "sections") - (a === "sections")); // it contains the placeholders of others
    for (const name of names) put(name, message.parts[name]);
    if (message.values && Object.keys(message.values).length) values = message.values;
    if (message.figures) {
      figures = message.figures;
      if (figures.length) raymixPlots.show(figures);
    }
    const changes = Object.entries(message.patches ?? {});
    if (changes.length) raymixPlots.refresh(new Set(changes.map(([index, change]) => patch(figures[index], change))));
    tick();
    for (const listener of listeners) listener(values);
  }

  function ago(since) {
    const seconds = Math.max(0, Date.now() / 1000 - skew - since);
    if (seconds < 1.5) return "now";
    if (seconds < 90) return `${Math.round(seconds)} s ago`;
    if (seconds < 5400) return `${Math.round(seconds / 60)} min ago`;
    if (seconds < 129600) return `${Math.round(seconds / 3600)} h ago`;
    return `${Math.round(seconds / 86400)} d ago`;
  }

  function tick() {
    for (const element of document.querySelectorAll(".ago")) {
      const since = element.dataset.since ?? values.written_at;
      const text = since ? ago(Number(since)) : "";
      if (element.textContent !== text) element.textContent = text;
    }
  }

  function say(text, kind) {
    link.textContent = text;
    link.className = `link ${kind}`;
  }

  function follow() {
    if (source || document.hidden) return;
    source = new EventSource(address);
    source.onopen = () => say("live", "good");
    source.onmessage = (event) => receive(JSON.parse(event.data));
    source.onerror = () => {
      say("no connection", "bad");
      if (source.readyState === EventSource.CLOSED) { // refused: the browser does not retry automatically
        rest();
        setTimeout(follow, 5000);
      }
    };
  }

  function rest() {
    source?.close();
    source = null;
  }

  document.addEventListener("visibilitychange", () => (document.hidden ? rest() : follow()));
  addEventListener("pagehide", rest);
  addEventListener("pageshow", follow);
  setInterval(tick, 1000);
  // Other scripts of the page load after this one.
  addEventListener("DOMContentLoaded", follow);
  return { onUpdate: (listener) => listeners.push(listener) };
})();
