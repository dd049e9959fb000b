// The playground: one request at a time, its text shown as it comes.
"use strict";

const element = (id) => document.getElementById(id);
const form = element("form"), shown = element("text"), prompt = element("prompt");
let model = null, running = null, counts = new Map(), unconverged = 0;

// Shades as in inference/shades.py: eight between the 5th and the 95th percentile of the evaluations so far.
const LEVELS = 8;
let least = 0, most = 0;

function percentile(share) {
  const total = [...counts.values()].reduce((sum, count) => sum + count, 0);
  let left = Math.max(1, Math.ceil(share * total));
  for (const [evaluations, count] of [...counts].sort((one, other) => one[0] - other[0])) {
    left -= count;
    if (left <= 0) return evaluations;
  }
  return 0;
}

function level(evaluations) {
  if (evaluations <= least) return 0;
  if (evaluations >= most) return LEVELS - 1;
  return Math.floor(((evaluations - least) / (most - least)) * (LEVELS - 1) + 0.5);
}

// Sets the ends of the scale; a text that is already shown is shaded anew where they have moved.
function rescale() {
  const ends = [percentile(0.05), percentile(0.95)];
  if (ends[0] === least && ends[1] === most) return;
  [least, most] = ends;
  for (const piece of shown.querySelectorAll("[data-evaluations]")) {
    piece.className = `e${level(Number(piece.dataset.evaluations))}`;
  }
}

function say(message, isError = false) {
  element("status").textContent = message;
  element("status").className = isError ? "error" : "quiet";
}

function span(text, className, title) {
  const piece = document.createElement("span");
  piece.textContent = text;
  piece.className = className;
  if (title) piece.title = title;
  return piece;
}

function showLegend() {
  const entries = [], total = [...counts.values()].reduce((sum, count) => sum + count, 0);
  const levels = new Map();
  for (const [evaluations, count] of [...counts].sort((one, other) => one[0] - other[0])) {
    const entry = levels.get(level(evaluations)) || { least: evaluations, count: 0 };
    levels.set(level(evaluations), { least: entry.least, most: evaluations, count: entry.count + count });
  }
  for (const [shade, inside] of levels) {
    const entry = document.createElement("li"), share = document.createElement("small");
    share.textContent = inside.count / total >= 0.005 ? `${Math.round((100 * inside.count) / total)}%` : "<1%";
    const numbers = inside.least === inside.most ? `${inside.least} ` : `${inside.least} to ${inside.most} `;
    entry.append(span("", `swatch e${shade}`), numbers, share);
    entries.push(entry);
  }
  if (entries.length) {
    const title = document.createElement("li");
    title.textContent = "evaluations:";
    entries.unshift(title);
  }
  element("legend").replaceChildren(...entries);
}

function request() {
  const body = { model: model.id, prompt: prompt.value, stream: true };
  for (const field of form.elements) {
    if (!field.name || field.name === "prompt") continue;
    if (field.type === "checkbox") body[field.name] = field.checked;
    else if (field.value !== "") body[field.name] = field.type === "number" ? Number(field.value) : field.value;
  }
  return body;
}

async function* events(response) {
  const decoder = new TextDecoder(), reader = response.body.getReader();
  let rest = "";
  for (;;) {
    const { value, done } = await reader.read();
    if (done) return;
    const parts = (rest + decoder.decode(value, { stream: true })).split("\n\n");
    rest = parts.pop();
    for (const part of parts) if (part.startsWith("data: ") && part !== "data: [DONE]") yield JSON.parse(part.slice(6));
  }
}

// A span for each piece of text, in the shade of the most evaluations of its tokens.
function add(choice, open) {
  for (const evaluations of choice.evaluations) {
    if (evaluations === null) continue;
    counts.set(evaluations, (counts.get(evaluations) || 0) + 1);
    open.most = Math.max(open.most, evaluations);
  }
  rescale();
  unconverged += choice.converged.filter((converged) => converged === false).length;
  if (!choice.text) return;
  const known = open.most > 0, title = known ? `${open.most} evaluations` : "";
  const atEnd = shown.scrollTop + shown.clientHeight >= shown.scrollHeight - 30;
  const piece = span(choice.text, known ? `e${level(open.most)}` : "", title);
  if (known) piece.dataset.evaluations = open.most;
  shown.append(piece);
  if (atEnd) shown.scrollTop = shown.scrollHeight;
  open.most = 0;
}

function showFigures(tokens, started) {
  const seconds = (performance.now() - started) / 1000;
  let total = 0, known = 0;
  for (const [evaluations, count] of counts) { total += evaluations * count; known += count; }
  const parts = [`${tokens} tokens`, `${(tokens / seconds).toFixed(0)} per second`];
  if (known) parts.push(`${(total / known).toFixed(1)} evaluations per token`);
  if (unconverged) parts.push(`${unconverged} not converged`);
  element("figures").textContent = parts.join(", ");
}

// A server with a key is asked again with the one that its user has.
let key = null;
async function call(path, options = {}) {
  const headers = key === null ? options.headers : { ...options.headers, authorization: `Bearer ${key}` };
  const response = await fetch(path, { ...options, headers });
  if (response.status !== 401) return response;
  key = window.prompt("The server's API key:", "");
  return key === null ? response : call(path, options);
}

async function failure(response) {
  try { return (await response.json()).error.message; } catch { return `the server answered ${response.status}`; }
}

async function write() {
  if (running || !model || !form.reportValidity()) return;
  running = new AbortController();
  counts = new Map();
  least = most = unconverged = 0;
  shown.replaceChildren(span(prompt.value, "prompt"));
  shown.setAttribute("aria-busy", "true");
  showLegend();
  element("figures").textContent = "";
  element("write").disabled = element("onward").disabled = true;
  element("stop").disabled = false;
  say("Writing …");
  const started = performance.now(), open = { most: 0 };
  let tokens = 0, ending = "Connection closed early.", failed = true;
  try {
    const response = await call("v1/completions", {
      method: "POST", headers: { "content-type": "application/json" },
      body: JSON.stringify(request()), signal: running.signal,
    });
    if (!response.ok) throw new Error(await failure(response));
    for await (const event of events(response)) {
      if (event.error) throw new Error(event.error.message);
      const choice = event.choices[0];
      tokens += choice.token_ids.length;
      add(choice, open);
      showLegend();
      showFigures(tokens, started);
      if (choice.finish_reason) {
        failed = false;
        ending = choice.finish_reason === "length" ? "Done: token limit reached."
          : choice.stop_reason ? `Done: stopped before ${JSON.stringify(choice.stop_reason)}.` : "Done: the passage ended.";
      }
    }
    say(ending, failed);
  } catch (problem) {
    const stopped = problem.name === "AbortError";
    say(stopped ? "Stopped." : problem.message, !stopped);
  } finally {
    running = null;
    shown.removeAttribute("aria-busy");
    element("write").disabled = false;
    element("onward").disabled = !shown.textContent;
    element("stop").disabled = true;
  }
}

function stop() {
  if (running) running.abort();
}

// What is wrong must be seen.
form.addEventListener("invalid", (event) => { const more = event.target.closest("details"); if (more) more.open = true; }, true);
form.addEventListener("submit", (event) => { event.preventDefault(); write(); });
element("stop").addEventListener("click", stop);
element("onward").addEventListener("click", () => { prompt.value = shown.textContent; write(); });
document.addEventListener("keydown", (event) => {
  if (event.key === "Enter" && (event.ctrlKey || event.metaKey)) { event.preventDefault(); write(); }
  if (event.key === "Escape") stop();
});

(async () => {
  try {
    const response = await call("v1/models");
    if (!response.ok) throw new Error(await failure(response));
    model = (await response.json()).data[0];
    element("model").textContent = model.id;
    form.elements.max_tokens.max = model.max_tokens;
    form.elements.max_tokens.value = Math.min(120, model.max_tokens);
    for (const field of document.querySelectorAll(".solver")) field.hidden = !model.solves;
    say("Ready.");
  } catch (problem) {
    say(`No model: ${problem.message}`, true);
  }
})();
