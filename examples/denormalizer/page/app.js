"use strict";

const $ = (id) => document.getElementById(id);
const articles = new Map(); // by id: {id, title, version, at}
const maxListed = 200;
const maxFeed = 60;
let chosen = decodeURIComponent(location.hash.slice(1));
let drawing = false;
const fresh = new Set(); // ids that changed since the last drawing

// el makes an element. Text is always set as text: nothing that comes from the log is taken for markup.
function el(tag, props, ...children) {
  const e = Object.assign(document.createElement(tag), props);
  e.append(...children.filter((c) => c !== null));
  return e;
}

const slug = (id) => id.slice(id.indexOf("/") + 1);

// draw shows the list, at most once a frame.
function draw() {
  if (drawing) return;
  drawing = true;
  requestAnimationFrame(() => {
    drawing = false;
    const newest = [...articles.values()].sort((a, b) => (a.at < b.at ? 1 : a.at > b.at ? -1 : a.id < b.id ? -1 : 1));
    $("count").textContent = newest.length;
    $("more").textContent = newest.length > maxListed ? `and ${newest.length - maxListed} more` : "";
    const focused = document.activeElement?.dataset?.id;
    $("list").replaceChildren(...newest.slice(0, maxListed).map((a) => {
      const b = el("button", { type: "button", textContent: a.title });
      b.dataset.id = a.id;
      if (a.id === chosen) b.setAttribute("aria-current", "true");
      return el("li", { className: fresh.has(a.id) ? "changed" : "" }, b);
    }));
    if (focused) document.querySelector(`#list button[data-id="${CSS.escape(focused)}"]`)?.focus();
    fresh.clear();
    setTimeout(() => { for (const li of document.querySelectorAll("#list li.changed")) li.className = ""; }, 900);
    if (!chosen && newest.length > 0) choose(newest[0].id);
  });
}

$("list").addEventListener("click", (e) => {
  const id = e.target.closest("button")?.dataset.id;
  if (id) choose(id);
});

function choose(id) {
  chosen = id;
  history.replaceState(null, "", "#" + encodeURIComponent(id));
  draw();
  show();
}

// show fetches the chosen article. That is one request: the document has everything.
async function show() {
  const id = chosen;
  let doc = null;
  try {
    const r = await fetch("articles/" + encodeURIComponent(slug(id)));
    if (r.ok) doc = await r.json();
  } catch { /* the stream tells that the server is gone */ }
  if (id !== chosen) return;
  const changed = $("article").dataset.shown === id;
  $("article").replaceChildren(...(doc ? page(doc) : [el("p", { className: "stub", textContent: `${id} is not published.` })]));
  $("article").dataset.shown = id;
  if (changed) {
    $("article").classList.add("changed");
    setTimeout(() => $("article").classList.remove("changed"), 1200);
  }
}

const parts = (doc, role) => (doc.parts ?? []).filter((p) => p.role === role);

function page(doc) {
  const by = parts(doc, "byline").flatMap((b, i) => [i ? " and " : "By ", name(b)]);
  return [
    el("h2", {}, doc.title, edit(doc)),
    el("p", { className: "byline" }, ...by),
    ...parts(doc, "lead").map(photo),
    el("p", { className: "text", textContent: doc.text ?? "" }),
    el("ul", { className: "tags", ariaLabel: "Tags" }, ...parts(doc, "tag").map((t) => el("li", {}, name(t)))),
    ...parts(doc, "related").map((r) => el("div", { className: "box" }, "Related: ", el("b", {}, name(r)))),
    ...parts(doc, "list").map((l) => el("div", { className: "box" }, el("b", {}, name(l)),
      el("ul", {}, ...parts(l, "item").map((i) => el("li", {}, name(i)))))),
    el("footer", {}, `${doc.id}, version ${doc.version}; ${size(doc)} assets in this document`),
  ];
}

const size = (doc) => 1 + (doc.parts ?? []).reduce((n, p) => n + size(p), 0);

const why = {
  missing: "not in the log, or not yet", unpublished: "not published", cycle: "shown above", size: "left out, too large",
};

function name(doc) {
  if (doc.stub) return el("span", { className: "stub", textContent: `${doc.id} (${why[doc.stub] ?? doc.stub})` });
  return el("span", {}, doc.title, edit(doc));
}

function photo(doc) {
  if (doc.stub) return el("p", {}, name(doc));
  let hue = 0;
  for (const c of doc.id) hue = (hue * 31 + c.charCodeAt(0)) % 360;
  const pixels = el("div", { className: "pixels", role: "img", ariaLabel: doc.title });
  pixels.style.background = `linear-gradient(160deg, hsl(${hue} 45% 62%), hsl(${(hue + 70) % 360} 50% 34%))`;
  const by = parts(doc, "byline").flatMap((b) => [" Photograph: ", name(b)]);
  return el("figure", { className: "photo" }, pixels,
    el("figcaption", {}, doc.title, edit(doc), ". ", doc.text ?? "", ...by));
}

// edit offers to change an asset. Only a document part that is whole can be sent back.
function edit(doc) {
  if (doc.stub || doc.omitted) return null;
  const b = el("button", { type: "button", className: "edit", textContent: "change", ariaLabel: `change ${doc.title}` });
  b.addEventListener("click", () => {
    $("what").textContent = `${doc.id}, version ${doc.version}`;
    $("title").value = doc.title;
    $("answer").textContent = "";
    $("form").onsubmit = (e) => { e.preventDefault(); save(doc, $("title").value); };
    $("dialog").showModal();
  });
  return b;
}

$("cancel").addEventListener("click", () => $("dialog").close());

async function save(doc, title) {
  const asset = {
    id: doc.id, version: doc.version + 1, title, text: doc.text, url: doc.url,
    published: doc.id.startsWith("article/"), refs: (doc.parts ?? []).map((p) => ({ role: p.role, id: p.id })),
  };
  try {
    const r = await fetch("assets", {
      method: "POST", headers: { "Content-Type": "application/json" }, body: JSON.stringify(asset),
    });
    if (r.ok) return $("dialog").close();
    $("answer").textContent = (await r.json()).error;
  } catch (e) {
    $("answer").textContent = String(e);
  }
}

function line(item) {
  const path = item.path.flatMap((id, i) => [i ? " › " : "", i ? id : el("b", { textContent: item.cause })]);
  return el("li", {},
    el("span", { className: "event " + item.event, textContent: item.event }), " ", item.title || item.id,
    item.path.length > 1 ? el("div", { className: "path" }, "because of ", ...path) : null);
}

function take({ all, items }) {
  if (all) {
    articles.clear();
    for (const a of all) articles.set(a.id, a);
    $("feed").replaceChildren();
  }
  for (const item of items) {
    if (!all) {
      if (item.event === "withdrawn") articles.delete(item.id);
      else articles.set(item.id, item);
      fresh.add(item.id);
    }
  }
  $("feed").prepend(...items.slice(-maxFeed).reverse().map(line));
  while ($("feed").childElementCount > maxFeed) $("feed").lastElementChild.remove();
  draw();
  if (chosen && (all || items.some((i) => i.id === chosen))) show();
}

const live = new EventSource("live"); // comes back by itself, with the id of the last event
live.onopen = () => { $("lamp").className = "on"; $("state").textContent = "live"; };
live.onerror = () => { $("lamp").className = ""; $("state").textContent = "no connection, trying again"; };
live.onmessage = (e) => take(JSON.parse(e.data));
