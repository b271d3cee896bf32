// node questions.mjs URL FILE: what a reader clicks to find an answer. FILE holds {question: {steps, shown}}: a step is {click: text},
// {click: text, near: heading of the row}, {open: summary's text} or {find: [label, text]}, each one click; `shown` are texts that
// must be visible at the end. Prints {question: {clicks, missing, url, complaints}}.
import { readFileSync } from "node:fs";
import { open, withBrowser } from "./browser.mjs";

const [url, file] = process.argv.slice(2);
const questions = JSON.parse(readFileSync(file, "utf8"));

const plain = (text) => text.replace(/\s+/gu, " ").trim();

// The first visible link, button or summary with this text, inside the table's row or the section with that heading if one is named.
const find = (page, text, near) =>
  page.evaluateHandle((wanted, heading) => {
    const same = (element) => element.innerText.replace(/\s+/gu, " ").trim();
    const places = heading
      ? [...document.querySelectorAll("tr, article, section")].filter((place) => {
          const head = place.querySelector("th[scope=row], h2, h3");
          return head && same(head).startsWith(heading);
        })
      : [document];
    for (const place of places) {
      const found = [...place.querySelectorAll("a, button, summary")].filter((element) => element.checkVisibility());
      const exact = found.find((element) => same(element) === wanted) ?? found.find((element) => same(element).startsWith(wanted));
      if (exact) return exact;
    }
    return null;
  }, text, near);

async function step(page, { click, near, find: field }) {
  if (field) {
    const [label, text] = field;
    const input = await page.$(`::-p-aria(${label})`);
    if (!input) throw new Error(`no field ${label} at ${page.url()}`);
    await input.type(text);
    await Promise.all([page.waitForNavigation({ waitUntil: "load" }), input.press("Enter")]);
    return;
  }
  const element = (await find(page, click, near)).asElement();
  if (!element) throw new Error(`nothing to click: ${click}${near ? ` near ${near}` : ""} at ${page.url()}`);
  const leads = await element.evaluate((found) => found.tagName === "A" && new URL(found.href).hash === "");
  await Promise.all([leads ? page.waitForNavigation({ waitUntil: "load" }) : undefined, element.click()]);
}

const told = await withBrowser(async (browser) => {
  const answers = {};
  for (const [question, { steps, shown }] of Object.entries(questions)) {
    const page = await open(browser, url);
    let problem = "";
    try {
      for (const one of steps) await step(page, one);
    } catch (error) {
      problem = String(error);
    }
    const visible = plain(await page.evaluate(() => document.body.innerText));
    const missing = shown.filter((text) => !visible.includes(plain(text)));
    answers[question] = { clicks: steps.length, missing, problem, url: page.url(), complaints: page.complaints };
    await page.close();
  }
  return answers;
});
console.log(JSON.stringify(told));
