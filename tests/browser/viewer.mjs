// node viewer.mjs URL FOLDER: what a reader does: find the samples that broke a defense, walk, compare, share the address.
import { open, picture, withBrowser } from "./browser.mjs";

const [url, folder] = process.argv.slice(2);

const told = await withBrowser(async (browser) => {
  const page = await open(browser, url);
  const follow = async (selector) => {
    await Promise.all([page.waitForNavigation({ waitUntil: "load" }), page.click(selector)]);
    return page.url();
  };
  const press = async (key) => {
    await Promise.all([page.waitForNavigation({ waitUntil: "load" }), page.keyboard.press(key)]);
    return page.$eval("h1", (title) => title.textContent);
  };
  const title = () => page.$eval("h1", (found) => found.textContent);
  const colours = await page.$$eval(".board tbody tr", (rows) => rows.map((row) =>
    [".headline b", "[data-label=Holds] b"].map((part) => getComputedStyle(row.querySelector(part)).color)));
  await page.type("#q", "pictures");
  await Promise.all([page.waitForNavigation({ waitUntil: "load" }), page.keyboard.press("Enter")]);
  const searched = page.url();
  await follow("table.board tbody th a"); // one click: the defense
  const list = await follow('.filters a[href*="show=broken"]'); // two
  const first = await follow("table.rows tbody th a"); // three: a sample
  const opened = await title();
  await picture(page, folder, "viewer-sample");
  const next = await press("j");
  const back = await press("k");
  const up = (await press("u"), page.url());
  const other = await browser.newPage(); // the address alone shows the same
  await other.goto(first, { waitUntil: "load" });
  const shared = await other.$eval("h1", (found) => found.textContent);
  await other.close();
  await page.bringToFront();
  await page.goto(first, { waitUntil: "load" });
  await page.$$eval(".attacked img", (images) => { for (const image of images) image.loading = "eager"; });
  await page.waitForFunction(() => [...document.querySelectorAll(".attacked img")].every((image) => image.complete));
  const loaded = await page.$$eval(".attacked img", (images) => images.map((image) => image.naturalWidth));
  await follow('a[href^="/compare?"]');
  const sides = await page.$$eval(".sides h2", (found) => found.length);
  await picture(page, folder, "viewer-compare");
  const outside = page.requests.filter((address) => !address.startsWith(url) && !address.startsWith("data:"));
  return { colours, searched, list, first, opened, next, back, up, shared, loaded, sides, outside, complaints: page.complaints };
});
console.log(JSON.stringify(told));
