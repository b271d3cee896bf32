// node accessibility.mjs URL FOLDER NAME: axe at each width and in each colour scheme, everything unfolded. Prints JSON.
import { readFileSync } from "node:fs";
import { createRequire } from "node:module";
import { open, picture, SCHEMES, WIDTHS, withBrowser } from "./browser.mjs";

const BETWEEN = [1100, 950, 780, 600]; // a window beside another one, a frame of MLflow's, a tablet
const [url, folder, name] = process.argv.slice(2);
const axe = readFileSync(createRequire(import.meta.url).resolve("axe-core/axe.min.js"), "utf8");

const results = await withBrowser(async (browser) => {
  const found = [];
  for (const width of WIDTHS) {
    for (const scheme of SCHEMES) {
      const page = await open(browser, url, { width, scheme });
      await picture(page, folder, `${name}-${width}-${scheme}`);
      await page.evaluate(() => { for (const fold of document.querySelectorAll("details")) fold.open = true; });
      // The shadow at the edge of what scrolls is a gradient, on which axe judges no contrast; beneath it is the page's own colour.
      await page.addStyleTag({ content: ".scroll { background: none !important; }" });
      await page.evaluate(axe); // through the protocol: the page's own policy lets no other script in
      const { violations, incomplete, passes } = await page.evaluate(() => axe.run(document));
      const overflow = () => page.evaluate(() => document.documentElement.scrollWidth - window.innerWidth);
      let wide = await overflow();
      if (await page.$(".harmful")) await picture(page, folder, `${name}-unfolded-${width}-${scheme}`);
      for (const between of width === WIDTHS[0] && scheme === SCHEMES[0] ? BETWEEN : []) {
        await page.setViewport({ width: between, height: 900 });
        wide = Math.max(wide, await overflow());
      }
      const brief = (findings) =>
        findings.map(({ id, impact, nodes }) => ({ id, impact, nodes: nodes.length, first: nodes[0].html.slice(0, 200), why: nodes[0].failureSummary }));
      found.push({
        width, scheme, wide, complaints: page.complaints, passes: passes.length, violations: brief(violations), incomplete: brief(incomplete),
      });
      await page.close();
    }
  }
  return found;
});
console.log(JSON.stringify(results));
