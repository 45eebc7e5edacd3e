"use strict";
// Shows the alternatives of a token while it is hovered, focused (arrow keys move between tokens) or tapped.
const data = JSON.parse(document.getElementById("token-data").textContent);
const tip = document.getElementById("tip");
let current = null;

const put = (parent, tag, text, kind) => {
  const made = document.createElement(tag);
  made.textContent = text;
  if (kind) made.className = kind;
  return parent.appendChild(made);
};
const visible = (text) => text.replaceAll("\n", "↵").replaceAll("\t", "⇥").replaceAll(" ", "␣") || "⟨⟩";

function fill(token) {
  const [text, probability, entropy, alternatives, others] = data[token.dataset.s][token.dataset.t];
  tip.replaceChildren();
  const head = put(tip, "p", "", "head");
  put(head, "b", visible(text));
  put(head, "span", (probability === null ? "" : probability + " · ") + "entropy " + entropy + " nats");
  const list = put(tip, "ol", "");
  for (const [other, percent, share, chosen] of alternatives) {
    const item = put(list, "li", "", chosen ? "chosen" : "");
    put(item, "span", visible(other), "what");
    const bar = put(item, "span", "", "share");
    put(bar, "i", "").style.width = Math.max(100 * share, 0.5) + "%";
    put(item, "span", percent, "number");
  }
  const rest = put(list, "li", "", "rest");
  put(rest, "span", "all others", "what");
  put(rest, "span", "");
  put(rest, "span", others, "number");
}

function show(token) {
  if (token === current) return;
  hide();
  current = token;
  fill(token);
  token.classList.add("open");
  token.setAttribute("aria-describedby", "tip");
  tip.hidden = false;
  if (atBottom()) {
    tip.style.left = tip.style.top = "";  // the style sheet puts it at the bottom of the screen
    const hidden = token.getClientRects()[0].bottom + 12 - tip.getBoundingClientRect().top;
    if (hidden > 0) scrollBy({ top: hidden });
  } else {
    placeNear(token);
  }
}

const atBottom = () => matchMedia("(max-width: 600px)").matches;

function placeNear(token) {
  const place = token.getClientRects()[0], box = tip.getBoundingClientRect();
  const left = Math.max(8, Math.min(place.left, innerWidth - box.width - 8));
  const below = place.bottom + 8, above = place.top - box.height - 8;
  tip.style.left = left + "px";
  tip.style.top = (below + box.height <= innerHeight || above < 0 ? below : above) + "px";
}

function hide() {
  if (!current) return;
  current.classList.remove("open");
  current.removeAttribute("aria-describedby");
  current = null;
  tip.hidden = true;
}

const tokenAt = (event) => event.target instanceof Element ? event.target.closest(".t") : null;

document.addEventListener("mouseover", (event) => {
  const token = tokenAt(event);
  if (token) show(token);
  else if (!tip.contains(event.target)) document.activeElement.matches(".t") ? show(document.activeElement) : hide();
});
document.addEventListener("focusin", (event) => { const token = tokenAt(event); token ? show(token) : hide(); });
document.addEventListener("focusout", hide);
document.addEventListener("click", (event) => {
  const token = tokenAt(event);
  if (token) { move(token); show(token); } else if (!tip.contains(event.target)) hide();
});
document.addEventListener("scroll", () => {
  if (!current || atBottom()) return;
  if (current === document.activeElement) placeNear(current);  // Tab itself may have scrolled
  else hide();
}, { passive: true, capture: true });

function move(token) {
  for (const one of token.parentElement.querySelectorAll('.t[tabindex="0"]')) one.tabIndex = -1;
  token.tabIndex = 0;
  token.focus({ preventScroll: true });
  if (token.getClientRects()[0].bottom > innerHeight || token.getClientRects()[0].top < 0) {
    token.scrollIntoView({ block: "center" });
  }
}

document.addEventListener("keydown", (event) => {
  const token = tokenAt(event);
  if (event.key === "Escape") { hide(); return; }
  if (!token || event.ctrlKey || event.metaKey || event.altKey) return;
  const all = [...token.parentElement.querySelectorAll(".t")], place = all.indexOf(token);
  const next = { ArrowRight: place + 1, ArrowLeft: place - 1, Home: 0, End: all.length - 1 }[event.key];
  if (next === undefined || !all[next]) return;
  event.preventDefault();
  move(all[next]);
  show(all[next]);
});
