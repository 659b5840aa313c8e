
"use strict";
/* The page of `cocoon proxy --ui`. Whatever came over the network enters the document as text, never as markup. The
   token of the URL's fragment is taken out of the address bar and kept for this tab and this port only. */

const byId = (id) => document.getElementById(id);
const REFRESH_MS = 5000;
const TOKEN_KEY = "cocoon-token";

const holdsToken = () => /^#[0-9a-f]{32}$/.test(location.hash);
const token = (() => {
  if (holdsToken()) {
    sessionStorage.setItem(TOKEN_KEY, location.hash.slice(1));
    history.replaceState(null, "", location.pathname);
  }
  return sessionStorage.getItem(TOKEN_KEY) ?? "";
})();

/* Asking the proxy. */

class Refused extends Error {}

async function ask(path, options = {}) {
  const headers = { "x-cocoon-token": token, ...options.headers };
  let response;
  try {
    response = await fetch(path, { ...options, headers, cache: "no-store", credentials: "omit", redirect: "error" });
  } catch (error) {
    if (error.name === "AbortError") throw error;
    throw new Refused("The proxy does not answer. Is cocoon proxy still running?");
  }
  if (response.ok) return response;
  const body = await response.json().catch(() => null);
  throw new Refused(body?.error?.message ?? `The proxy answered ${response.status}.`);
}

const askJson = async (path) => (await ask(path)).json();

/* Text of others: control characters and those that reorder text are shown as what they are, strangers. */
const STRANGERS = /[\u0000-\u0008\u000b-\u001f\u007f-\u009f\u202a-\u202e\u2066-\u2069]/g;
const plain = (text) => String(text).replace(/\r\n/g, "\n").replace(STRANGERS, "\ufffd");

function make(tag, className, ...children) {
  const node = document.createElement(tag);
  node.className = className;
  node.append(...children.map((child) => (child instanceof Node ? child : plain(child))));
  return node;
}

const GROUPED = new Intl.NumberFormat("en");

/* Exact: amounts are whole nanoTON. */
function ton(nano) {
  const text = BigInt(nano).toString().padStart(10, "0");
  const fraction = text.slice(-9).replace(/0+$/, "");
  return GROUPED.format(BigInt(text.slice(0, -9))) + (fraction ? `.${fraction}` : "");
}

const date = (seconds) => `${new Date(seconds * 1000).toISOString().slice(0, 16).replace("T", " ")} UTC`;

function span(seconds) {
  if (seconds < 90) return `${Math.max(0, seconds)} s`;
  if (seconds < 5400) return `${Math.round(seconds / 60)} min`;
  if (seconds < 172800) return `${Math.round(seconds / 3600)} h`;
  return `${Math.round(seconds / 86400)} days`;
}

/* Verification. */

const GROUPS = [
  ["Registers", /^(MR|RTMR|HOST_DATA|snp measurement)/i],
  ["Connection and key", /^(report data|snp report data)/i],
  ["Platform and TCB", /^(TD attributes|XFAM|TCB|quote|endorsement|collateral|snp)/i],
  ["GPU", /^(GPU|event gpu-evidence)/i],
  ["Events", /^event/],
  ["Policy", /^policy/],
  ["More", /^/],
];
const TONE = { PASS: "pass", SIMULATED: "warn", FAIL: "fail", SKIP: "warn" };
const STATES = {
  PASS: ["Verified", "The guest meets your policy on this connection."],
  SIMULATED: ["Simulated", "The guest meets your policy, but its platform is simulated: whoever runs the host can read everything. Send nothing private."],
  FAIL: ["Refused", "The guest is refused. No prompt was sent."],
};

const pill = (text, tone) => make("span", `pill ${tone ?? ""}`, text);

/* The rows of the certificate's evidence, then those that this connection adds. */
function rows(report) {
  const certificate = report.certificate.checks.map((check) => ({ check, where: "in the certificate" }));
  const known = new Set(report.certificate.checks.map((check) => JSON.stringify(check)));
  const fresh = (report.fresh?.checks ?? []).filter((check) => !known.has(JSON.stringify(check)));
  return [...certificate, ...fresh.map((check) => ({ check, where: "for this connection" }))];
}

function field(name, value, className = "") {
  return make("div", className, make("dt", "", name), make("dd", className && "hash", value));
}

function summary(node, report) {
  const { facts, certificate } = report;
  const find = (name) => rows(report).find(({ check }) => check.name === name)?.check;
  const age = make("span", "age", "");
  age.dataset.at = node.fault ? node.fault.at_s : node.verified_at_s;
  const fields = [
    field(node.fault ? "Failed" : "Proven fresh", age),
    field("Policy number", `${certificate.policy_number}, until ${date(facts.policy_expires_s)}`),
    field("TCB", find("TCB status")?.actual ?? "not reported"),
    field("GPUs", `${facts.gpus}`),
    field("Certificate", `until ${date(facts.not_after_s)}`),
    field("Policy signed by", certificate.policy_signer ?? "nobody: it is your own file"),
    field("Certificate, SHA-256", facts.certificate_sha256, "wide"),
    field("Platform", facts.platform ?? "not proven", "wide"),
  ];
  return make("dl", "summary", ...fields);
}

function row({ check, where }, about) {
  const mine = make("div", "check", make("h4", "", check.name), pill(check.verdict, TONE[check.verdict]));
  mine.dataset.name = check.name;
  mine.dataset.where = where;
  const told = about[check.name] ?? "";
  mine.append(make("p", "quiet", /^report data/.test(check.name) ? `${told} (${where})` : told));
  mine.append(make("dl", "",
    make("dt", "", "expected"), make("dd", "value expected", check.expected),
    make("dt", "", "actual"), make("dd", "value actual", check.actual)));
  if (check.verdict === "FAIL") mine.append(make("p", "quiet", `look at: ${check.fault}`));
  return mine;
}

function group(title, members, about) {
  const failed = members.filter(({ check }) => check.verdict === "FAIL" || check.verdict === "SKIP").length;
  const count = failed ? `${failed} of ${members.length} do not hold` : `all ${members.length} hold`;
  const details = make("details", "", make("summary", "", title, make("span", "quiet", count)));
  details.append(...members.map((member) => row(member, about)));
  details.open = failed > 0;
  return details;
}

/* Those open that have something to say: what does not hold stands first. */
function groups(report, about) {
  const left = rows(report);
  const all = GROUPS.flatMap(([title, pattern]) => {
    const members = left.filter(({ check }) => pattern.test(check.name));
    members.forEach((member) => left.splice(left.indexOf(member), 1));
    return members.length ? [group(title, members, about)] : [];
  });
  const failed = all.filter((details) => details.open);
  if (failed.length === 0 && all.length > 0) all[0].open = true;
  return [...failed, ...all.filter((details) => !failed.includes(details))];
}

function eventLog(events) {
  const items = events.map((event, index) => {
    const item = make("li", "", make("h4", "", `${index + 1}. ${event.name}, ${event.bytes} bytes`));
    if (event.bytes > 0) item.append(make("div", "payload value", event.payload));
    item.append(make("p", "quiet", "digest"), make("p", "value", event.digest));
    item.append(make("p", "quiet", "RTMR3 after it"), make("p", "value", event.register));
    return item;
  });
  const title = make("summary", "", "Event log", make("span", "quiet", `${events.length} events`));
  return make("details", "", title, make("ol", "events", ...items));
}

function verdictOf(node) {
  if (node.state === "verified") return node.report.verdict;
  return node.state === "unknown" ? "UNKNOWN" : "FAIL";
}

function card(node, about) {
  const verdict = verdictOf(node);
  const report = node.fault?.report ?? node.report;
  const [word, sentence] = STATES[verdict] ?? ["Not verified yet", "No connection was made."];
  const name = verdict === "FAIL" ? node.state : word;
  const title = make("div", "title", make("h3", "", node.node), pill(name, TONE[verdict]));
  const said = node.fault ? `${node.fault.error} (exit code ${node.fault.exit_code})` : sentence;
  const mine = make("article", "node", make("div", "", title, make("p", "sentence quiet", said)));
  mine.dataset.verdict = verdict;
  if (report) {
    const parts = make("div", "parts", ...groups(report, about), eventLog(report.facts.events));
    mine.append(summary(node, report), ...parts.children);
  }
  return mine;
}

/* A prompt may go to any usable node, so the weakest of them counts. */
function overall(nodes) {
  const verdicts = nodes.map(verdictOf);
  return ["SIMULATED", "PASS"].find((verdict) => verdicts.includes(verdict)) ?? "FAIL";
}

let shown = "";
function showVerification({ nodes, about, now_s }) {
  const content = JSON.stringify([nodes.map((node) => ({ ...node, outstanding: 0 })), about]);
  if (content !== shown) {
    shown = content;
    byId("nodes").replaceChildren(...nodes.map((node) => card(node, about)));
    const verdict = overall(nodes);
    byId("verdict").className = `pill ${TONE[verdict]}`;
    byId("verdict").textContent = verdict === "FAIL" ? "Not verified" : STATES[verdict][0];
  }
  for (const age of document.querySelectorAll(".age")) age.textContent = `${span(now_s - Number(age.dataset.at))} ago`;
}

/* Receipts. */

/* The proxy keeps the last receipts only; its sums are of all. */
function showReceipts({ answers, paid_nano, receipts }) {
  byId("paid").textContent = `${ton(paid_nano)} TON`;
  byId("answers").textContent = answers === 1 ? "paid for 1 answer" : `paid for ${answers} answers`;
  byId("no-receipts").hidden = receipts.length > 0;
  byId("receipts-table").hidden = receipts.length === 0;
  const lines = receipts.toReversed().map((kept) => {
    const { tokens } = kept.receipt.receipt;
    const cells = [date(kept.received_s), kept.node, `${tokens.input}`, `${tokens.output}`, ton(kept.amount_nano)];
    return make("tr", "", ...cells.map((cell) => make("td", "", cell)));
  });
  byId("receipts").replaceChildren(...lines);
}

function showModels({ data }) {
  const select = byId("model");
  const names = data.map((model) => plain(model.id));
  if (names.join("\n") === [...select.options].map((option) => option.value).join("\n")) return;
  select.replaceChildren(...names.map((name) => new Option(name, name)));
  byId("model-field").hidden = names.length === 0;
}

function notice(text) {
  byId("notice").hidden = !text;
  if (byId("notice").textContent !== text) byId("notice").textContent = text;
}

async function refresh() {
  try {
    const [verification, receipts, models] = await Promise.all(["/verification", "/receipts", "/v1/models"].map(askJson));
    showVerification(verification);
    showReceipts(receipts);
    showModels(models);
    notice("");
  } catch (error) {
    shown = "";
    byId("verdict").className = "pill fail";
    byId("verdict").textContent = "Not verified";
    byId("nodes").replaceChildren();
    notice(error instanceof Refused ? plain(error.message) : "The proxy's answer is not understood.");
  }
}

async function keepFresh() {
  if (!document.hidden) await refresh();
  setTimeout(keepFresh, REFRESH_MS);
}

/* Chat. The whole conversation goes along with each message, and nothing of it is stored. */

let messages = [];
let running = null;

function say(who, text, className) {
  byId("empty").hidden = true;
  const body = make("p", "text", text);
  const entry = make("div", `said ${className}`, make("span", who === "You" ? "unseen" : "who", who), body);
  const log = byId("log");
  log.append(entry);
  log.scrollTop = log.scrollHeight;
  return { entry, body };
}

/* The payloads of a stream's events, as they come. */
async function* payloads(body) {
  const reader = body.pipeThrough(new TextDecoderStream()).getReader();
  let rest = "";
  for (let piece = await reader.read(); !piece.done; piece = await reader.read()) {
    const lines = (rest + piece.value).split("\n");
    rest = lines.pop();
    for (const line of lines) if (line.startsWith("data:")) yield line.slice(5).trim();
  }
}

async function stream(model, asked, signal, take) {
  const body = JSON.stringify({ model, messages: asked, stream: true });
  const response = await ask("/v1/chat/completions", { method: "POST", headers: { "content-type": "application/json" }, body, signal });
  let id = "";
  for await (const payload of payloads(response.body)) {
    if (payload === "[DONE]") return id;
    const event = JSON.parse(payload);
    if (event.error) throw new Refused(event.error.message);
    id ||= event.id;
    take(event.choices?.[0]?.delta?.content ?? "");
  }
  throw new Refused("The answer broke off.");
}

async function showProof(id, entry) {
  const kept = await askJson(`/receipts/${encodeURIComponent(id)}`);
  const { tokens } = kept.receipt.receipt;
  entry.append(make("p", "proof", `Receipt checked: ${tokens.input} + ${tokens.output} tokens, ${ton(kept.amount_nano)} TON, ${kept.node}`));
  byId("log").scrollTop = byId("log").scrollHeight;
}

function setRunning(controller) {
  running = controller;
  byId("send").hidden = Boolean(controller);
  byId("stop").hidden = !controller;
}

function whatWentWrong(error) {
  if (error.name === "AbortError") return "Stopped. What was generated may be charged; this turn is not part of the conversation.";
  return error instanceof Refused ? error.message : "The proxy's answer is not understood.";
}

async function send() {
  const text = byId("prompt").value;
  if (running || !text.trim()) return;
  setRunning(new AbortController());
  byId("prompt").value = "";
  say("You", text, "mine");
  const { entry, body } = say("Guest", "", "busy");
  const asked = [...messages, { role: "user", content: text }];
  byId("status").textContent = "Answering";
  let answer = "";
  try {
    const id = await stream(byId("model").value, asked, running.signal, (piece) => {
      const log = byId("log");
      const follows = log.scrollHeight - log.scrollTop - log.clientHeight < 60;
      answer += piece;
      body.textContent = plain(answer);
      if (follows) log.scrollTop = log.scrollHeight;
    });
    messages = [...asked, { role: "assistant", content: answer }];
    byId("status").textContent = `Answer: ${plain(answer)}`;
    await showProof(id, entry);
  } catch (error) {
    const reason = whatWentWrong(error);
    entry.append(make("p", "broken", reason));
    byId("status").textContent = plain(reason);
    if (!answer && !byId("prompt").value) byId("prompt").value = text;
  } finally {
    entry.classList.remove("busy");
    setRunning(null);
    await refresh();
  }
}

byId("form").addEventListener("submit", (event) => {
  event.preventDefault();
  send();
});
byId("prompt").addEventListener("keydown", (event) => {
  if (event.key !== "Enter" || event.shiftKey || event.isComposing) return;
  event.preventDefault();
  send();
});
byId("stop").addEventListener("click", () => running?.abort());
byId("new").addEventListener("click", () => {
  running?.abort();
  messages = [];
  byId("log").replaceChildren(byId("empty"));
  byId("empty").hidden = false;
  byId("prompt").focus();
});
/* The URL of another process, opened in this tab. */
addEventListener("hashchange", () => holdsToken() && location.reload());
keepFresh();
byId("prompt").focus({ preventScroll: true });
