"use strict";

// j and k, or the arrows, go to the next and the previous page; a page of a running campaign renews itself.
addEventListener("keydown", event => {
  if (event.altKey || event.ctrlKey || event.metaKey || event.target.closest("input, select, textarea, .scroll")) return;
  const where = { j: "next", ArrowRight: "next", k: "prev", ArrowLeft: "prev", u: "up" }[event.key];
  const link = where && document.querySelector(`a[rel="${where}"]`);
  if (link) link.click();
});

const renew = async () => {
  const live = document.querySelector("#live[data-live]");
  if (!live) return;
  try {
    const answer = await fetch(location.href);
    const page = new DOMParser().parseFromString(await answer.text(), "text/html");
    const now = page.querySelector("#live");
    if (!now || !now.hasAttribute("data-live")) return location.reload();
    if (!live.contains(document.activeElement)) live.replaceWith(document.adoptNode(now));
  } catch { /* the server is gone for now */ }
  setTimeout(renew, 1000 * (Number(live.dataset.live) || 3));
};
const first = document.querySelector("#live[data-live]");
if (first) setTimeout(renew, 1000 * Number(first.dataset.live));
