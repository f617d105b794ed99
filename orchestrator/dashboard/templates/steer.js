"use strict";
// The controls. They need the token, which is kept in this tab and sent in a header, never in an address.
(() => {
  const panel = document.getElementById("steer");
  const form = panel.querySelector("form");
  const outcome = panel.querySelector(".outcome");
  const field = panel.querySelector(".token");
  const token = () => form.elements.token.value.trim() || sessionStorage.getItem("raymix-token") || "";
  const shareInputs = () => [...form.querySelectorAll("input[name=share]")];
  const domainBoxes = () => [...form.querySelectorAll("input[name=domain]")];

  field.hidden = Boolean(token());
  form.elements.by.value = localStorage.getItem("raymix-by") ?? "";

  function tell(text, isGood) {
    outcome.hidden = false;
    outcome.textContent = text;
    outcome.className = `outcome ${isGood ? "better" : "worse"}`;
  }

  function asked(kind) {
    const request = { kind, by: form.elements.by.value.trim(), why: form.elements.why.value.trim() };
    const written = shareInputs().filter((input) => input.value !== "");
    const shares = Object.fromEntries(written.map((input) => [input.dataset.domain, Number(input.value) / 100]));
    const ticked = domainBoxes().filter((box) => box.checked).map((box) => box.value);
    if (kind === "set" || kind === "pin") request.shares = shares;
    if (kind === "pin") request.domains = ticked.filter((domain) => !(domain in shares));
    if (kind === "release") request.domains = ticked;
    return request;
  }

  async function send(kind) {
    const request = asked(kind);
    localStorage.setItem("raymix-by", request.by);
    const headers = { "Content-Type": "application/json", Authorization: `Bearer ${token()}` };
    const response = await fetch(panel.dataset.control, { method: "POST", headers, body: JSON.stringify(request) });
    const answer = await response.json();
    if (response.status === 401) {
      sessionStorage.removeItem("raymix-token");
      field.hidden = false;
    }
    if (!response.ok) return tell(answer.error, false);
    if (form.elements.token.value) sessionStorage.setItem("raymix-token", token());
    form.elements.token.value = "";
    field.hidden = true;
    for (const input of shareInputs()) input.value = "";
    for (const box of domainBoxes()) box.checked = false;
    form.elements.why.value = "";
    return tell(`${kind}: requested; takes effect at the next step, or when the run resumes`, true);
  }

  form.addEventListener("submit", (event) => {
    event.preventDefault();
    send(event.submitter.dataset.kind).catch((error) => tell(`not sent: ${error.message}`, false));
  });

  raymixLive.onUpdate(({ shares = {}, pinned = [], is_over: isOver = false }) => {
    for (const input of shareInputs()) {
      const share = shares[input.dataset.domain];
      input.placeholder = share === undefined ? "" : (100 * share).toFixed(1);
      input.closest(".row").classList.toggle("pinned", pinned.includes(input.dataset.domain));
    }
    for (const button of form.querySelectorAll("button")) button.disabled = isOver;
  });
})();
