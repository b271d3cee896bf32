// node tour.mjs FILE FOLDER: a picture of the top of each page of FILE, {name: address}. Prints {name: {words, images, loaded, complaints}}.
import { readFileSync } from "node:fs";
import { open, picture, withBrowser } from "./browser.mjs";

const [file, folder] = process.argv.slice(2);

const told = await withBrowser(async (browser) => {
  const seen = {};
  for (const [name, url] of Object.entries(JSON.parse(readFileSync(file, "utf8")))) {
    const page = await open(browser, url);
    await page.$$eval("img", (images) => { for (const image of images) image.loading = "eager"; });
    await page.waitForFunction(() => [...document.images].every((image) => image.complete));
    await picture(page, folder, `tour-${name}`, false);
    const images = await page.$$eval("img", (found) => found.map((image) => image.naturalWidth));
    const words = await page.evaluate(() => document.body.innerText);
    seen[name] = { words, images: images.length, loaded: images.filter(Boolean).length, complaints: page.complaints };
    await page.close();
  }
  return seen;
});
console.log(JSON.stringify(told));
