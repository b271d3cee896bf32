// What the scripts here share: Debian's Chromium, pages at a width and in a colour scheme, pictures.
import { mkdirSync } from "node:fs";
import { join } from "node:path";
import puppeteer from "puppeteer-core";

export const WIDTHS = [1280, 390];
export const SCHEMES = ["light", "dark"];

export async function withBrowser(work) {
  const browser = await puppeteer.launch({
    executablePath: process.env.CHROMIUM ?? "/usr/bin/chromium",
    args: ["--no-sandbox", "--disable-gpu", "--no-first-run", "--disable-background-networking"],
    protocolTimeout: 120_000,
  });
  try {
    return await work(browser);
  } finally {
    await browser.close();
  }
}

// A page that keeps what it complains about, and what it asks of the network.
export async function open(browser, url, { width = 1280, scheme = "light", scripts = true } = {}) {
  const page = await browser.newPage();
  page.complaints = [];
  page.requests = [];
  page.on("console", (message) => { if (message.type() === "error") page.complaints.push(message.text()); });
  page.on("pageerror", (error) => page.complaints.push(String(error)));
  page.on("request", (request) => page.requests.push(request.url()));
  await page.setJavaScriptEnabled(scripts);
  await page.setViewport({ width, height: 900 });
  await page.emulateMediaFeatures([{ name: "prefers-color-scheme", value: scheme }]);
  const start = performance.now();
  await page.goto(url, { waitUntil: "load" });
  if (scripts) await page.evaluate(() => new Promise((drawn) => requestAnimationFrame(() => requestAnimationFrame(drawn))));
  page.seconds = (performance.now() - start) / 1000;
  return page;
}

export async function picture(page, folder, name, fullPage = true) {
  mkdirSync(folder, { recursive: true });
  // What is below the window is loaded when it is scrolled to; a picture of the whole page has it as well.
  await page.$$eval("img", (images) => { for (const image of images) image.loading = "eager"; }).catch(() => undefined);
  await page.waitForFunction(() => [...document.images].every((image) => image.complete)).catch(() => undefined);
  await page.screenshot({ path: join(folder, `${name}.png`), fullPage });
}
