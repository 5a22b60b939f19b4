"use strict";
// The page holds no truth: what it shows comes by server-sent events from the derived topics, and what is clicked
// goes to the log. A click changes the page only when it has come back through the log.
const shownRows = 20;
const shownMessages = 50;
const byId = (id) => document.getElementById(id);
const users = new Map();
let chosen = "";
let inbox = null;

function element(tag, className, text) {
  const e = document.createElement(tag);
  if (className) e.className = className;
  if (text !== undefined) e.textContent = text;
  return e;
}

function number(n) { return n.toLocaleString("en-US"); }

function showRows() {
  const all = [...users.values()].sort((a, b) => b.unread - a.unread || (a.user < b.user ? -1 : 1));
  const unread = all.reduce((n, r) => n + r.unread, 0);
  byId("sum").textContent = `${number(all.length)} users, ${number(unread)} unread messages` +
    (all.length > shownRows ? `; the top ${shownRows}:` : "");
  const focused = document.activeElement?.dataset?.user;
  const rows = all.slice(0, shownRows).map((r) => {
    const tr = element("tr", r.user === chosen ? "chosen" : "");
    const name = element("button", "", r.user);
    name.dataset.user = r.user;
    name.setAttribute("aria-pressed", String(r.user === chosen));
    const user = element("td");
    user.append(name);
    const count = element("td", "num");
    count.append(element("span", r.unread ? "badge" : "badge zero", number(r.unread)));
    const newest = r.newest ? `${r.newest.from}: ${r.newest.subject ?? ""}` : "";
    tr.append(user, count, element("td", "num", number(r.total)), element("td", "", newest));
    tr.addEventListener("click", () => choose(r.user));
    return tr;
  });
  byId("rows").replaceChildren(...rows);
  if (focused) byId("rows").querySelector(`[data-user="${CSS.escape(focused)}"]`)?.focus();
}

function choose(user) {
  chosen = user;
  inbox?.close();
  byId("box-title").textContent = `Inbox of ${user}`;
  byId("compose").elements.to.value = user;
  inbox = new EventSource("/events/" + encodeURIComponent(user));
  inbox.onmessage = (m) => showInbox(JSON.parse(m.data));
  history.replaceState(null, "", "#" + encodeURIComponent(user));
  showRows();
}

function showInbox(box) {
  if (box.user !== chosen) return;
  const more = box.messages.length > shownMessages ? `; the newest ${shownMessages}:` : "";
  byId("box-sum").textContent = `${number(box.unread)} unread of ${number(box.messages.length)}${more}`;
  byId("messages").replaceChildren(...box.messages.slice(0, shownMessages).map((m) => {
    const li = element("li", m.read ? "" : "unread");
    const what = element("div", "what", m.subject || "(no subject)");
    what.append(element("br"), element("small", "", `${m.from}, ${new Date(m.at).toLocaleTimeString()}`));
    const acts = element("div", "acts");
    const act = (label, kind) => {
      const b = element("button", "", label);
      b.setAttribute("aria-label", `${label}: ${m.subject || "(no subject)"}`);
      b.addEventListener("click", () => post({ kind, actor: box.user, message: m.message }));
      acts.append(b);
    };
    if (m.read) act("Mark unread", "unread"); else act("Mark read", "read");
    act("Delete", "deleted");
    li.append(what, acts);
    return li;
  }));
}

async function post(event) {
  const answer = byId("answer");
  try {
    const r = await fetch("/events", {
      method: "POST", headers: { "Content-Type": "application/json" }, body: JSON.stringify(event),
    });
    const body = await r.json();
    answer.className = r.ok ? "" : "bad";
    answer.textContent = r.ok
      ? `in the log: ${body.topic}, partition ${body.partition}, offset ${body.offset}` : body.error;
  } catch (e) {
    answer.className = "bad";
    answer.textContent = `not sent: ${e.message}`;
  }
}

byId("compose").addEventListener("submit", (submitted) => {
  submitted.preventDefault();
  const f = submitted.target.elements;
  const to = f.to.value.split(/[\s,]+/).filter(Boolean);
  post({ kind: "sent", actor: f.from.value, to, subject: f.subject.value });
});

const live = new EventSource("/live");
live.onopen = () => { byId("lamp").className = "on"; byId("state").textContent = "live"; };
live.onerror = () => { byId("lamp").className = ""; byId("state").textContent = "reconnecting…"; };
live.onmessage = (m) => {
  for (const r of JSON.parse(m.data)) users.set(r.user, r);
  showRows();
};
if (location.hash.length > 1) choose(decodeURIComponent(location.hash.slice(1)));
