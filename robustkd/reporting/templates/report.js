"use strict";

// Light or dark by the reader's choice; without one, by the system's.
{
  const root = document.documentElement, button = document.getElementById("theme");
  const stored = () => { try { return localStorage.getItem("theme"); } catch { return null; } };  // refused in a sandboxed frame
  const store = (value) => { try { localStorage.setItem("theme", value); } catch { /* then it lasts for this visit */ } };
  const system = matchMedia("(prefers-color-scheme: dark)");
  const dark = () => (root.style.colorScheme || (system.matches ? "dark" : "light")) === "dark";
  const tell = () => { button.textContent = dark() ? "Light page" : "Dark page"; };
  if (["light", "dark"].includes(stored())) root.style.colorScheme = stored();
  button.addEventListener("click", () => {
    root.style.colorScheme = dark() ? "light" : "dark";
    store(root.style.colorScheme);
    tell();
  });
  system.addEventListener("change", tell);
  tell();
  button.hidden = false;
}

// The samples: one row per sample and defense, filtered and paged.
if (document.getElementById("sample-data")) {
  const { classes, requests, unfit, others, index, label, defenses } = JSON.parse(document.getElementById("sample-data").textContent);
  const PAGE = 25, NAMED = 6;
  const form = document.getElementById("filter"), found = document.getElementById("found");
  const body = document.getElementById("sample-table").tBodies[0];
  const back = document.getElementById("back"), more = document.getElementById("more");
  const WORDS = { broken: "broken", held: "held", "not judged": "not judged", wrong: unfit[0] };
  let rows = [], start = 0;

  const fill = (name, options) => {
    for (const [value, text] of options) form.elements[name].add(new Option(text, value));
  };
  fill("defense", defenses.map((defense, at) => [at, defense.name]));
  fill("attack", [...new Set(defenses.flatMap((defense) => Object.keys(defense.taken)))].map((name) => [name, name]));
  fill("label", [...new Set(label)].sort((a, b) => a - b).map((k) => [k, classes[k]]));

  const outcome = (defense, sample, attacks) => {
    if (defense.unfit[sample]) return "wrong";
    const counted = attacks.length === 1 ? attacks : attacks.filter((attack) => !others.includes(attack));
    const found = counted.map((attack) => defense.taken[attack][sample]);
    return Math.max(...found) > 0 ? "broken" : found.includes(-1) ? "not judged" : "held";
  };

  const filter = () => {
    const wanted = Object.fromEntries(new FormData(form));
    rows = [];
    for (let sample = 0; sample < label.length; sample++) {
      if (wanted.label !== "" && label[sample] !== Number(wanted.label)) continue;
      for (const [at, defense] of defenses.entries()) {
        if (wanted.defense !== "" && at !== Number(wanted.defense)) continue;
        if (wanted.attack !== "" && !(wanted.attack in defense.taken)) continue;
        const attacks = wanted.attack === "" ? Object.keys(defense.taken) : [wanted.attack];
        const result = outcome(defense, sample, attacks);
        if (wanted.outcome === "" || wanted.outcome === result) rows.push({ sample, defense, attacks, result });
      }
    }
    start = 0;
    show();
  };

  const fell = ({ sample, defense, attacks, result }) => {
    if (result === "wrong") return unfit[1].replace("{}", defense.before ? classes[defense.before[sample]] : "");
    const names = attacks.filter((attack) => defense.taken[attack][sample] > 0);
    const told = names.slice(0, NAMED).map((attack) => {
      const taken = defense.before && classes[defense.taken[attack][sample] - 1];
      return attack + (taken ? ` → ${taken}` : "") + (others.includes(attack) ? " (another threat model)" : "");
    });
    if (names.length > NAMED) told.push(`and ${names.length - NAMED} more`);
    return told.join(", ") || "nothing";
  };

  const show = () => {
    const shown = rows.slice(start, start + PAGE);
    body.replaceChildren(...shown.map((row) => {
      const line = document.createElement("tr");
      line.setAttribute("role", "row");
      const texts = [`#${index[row.sample]}`, classes[label[row.sample]], row.defense.name, WORDS[row.result], fell(row)];
      for (const [at, text] of texts.entries()) {
        const cell = document.createElement(at ? "td" : "th");
        cell.textContent = text;
        cell.setAttribute("role", at ? "cell" : "rowheader");
        if (at === 0) {
          cell.scope = "row";
          if (requests.length) {
            const request = document.createElement("span");
            request.className = "request";
            request.textContent = requests[row.sample];
            cell.append(" ", request);
          }
        }
        line.append(cell);
      }
      return line;
    }));
    found.textContent = rows.length
      ? `${rows.length} of ${label.length * defenses.length} rows; shown are ${start + 1} to ${start + shown.length}.`
      : "No sample is like that.";
    back.disabled = start === 0;
    more.disabled = start + PAGE >= rows.length;
  };

  const turn = (step) => {
    const [pressed, other] = step > 0 ? [more, back] : [back, more];
    start += step;
    show();
    if (pressed.disabled) other.focus();  // a button that is disabled loses the focus, at once or when the page is drawn next
  };
  form.addEventListener("change", filter);
  form.addEventListener("submit", (event) => event.preventDefault());
  back.addEventListener("click", () => turn(-PAGE));
  more.addEventListener("click", () => turn(PAGE));
  form.hidden = document.getElementById("pager").hidden = false;
  filter();
}
