// node dashboard.mjs URL FOLDER: what a person does who opens only MLflow: the table of defenses, its charts, two runs
// compared, one run, the campaign's report, the pictures of an attack. Prints JSON.
import { open, picture, SCHEMES, WIDTHS, withBrowser } from "./browser.mjs";

const [url, folder] = process.argv.slice(2);
const PATIENCE = { timeout: 150_000, polling: 300 };

const shows = (page, text) => page.waitForFunction((wanted) => document.body.innerText.includes(wanted), PATIENCE, text);
const words = (page) => page.evaluate(() => document.body.innerText);
const settled = () => new Promise((done) => setTimeout(done, 1500)); // charts move into their places

// The first element of a kind whose text begins so; clicked as soon as it is there.
async function press(page, selector, text) {
  const handle = await page.waitForFunction(
    (kind, begins) => [...document.querySelectorAll(kind)].find((element) => element.innerText.trim().startsWith(begins)),
    PATIENCE, selector, text,
  );
  await handle.click();
}

const runs = (page) =>
  page.$$eval(".ag-center-cols-container .ag-row, .ag-pinned-left-cols-container .ag-row", (rows) => [
    ...new Set(rows.map((row) => row.innerText.match(/.+ · .+ · seed \d+/)?.[0]).filter(Boolean)),
  ]);

async function table(page) {
  await page.goto("about:blank"); // an address that differs behind the # alone loads nothing
  await page.goto(url);
  await shows(page, "· worst case · seed");
  const assistant = await page.$('button[aria-label="Close"]'); // covers a quarter of a first visit
  if (assistant) await assistant.evaluate((button) => button.click());
  await settled();
}

const seen = await withBrowser(async (browser) => {
  const told = {};
  const page = await open(browser, "about:blank");
  await table(page);
  await picture(page, folder, "mlflow-1-defenses", false);
  told.table = await words(page);
  told.runs = await runs(page);
  told.columns = await page.$$eval("[data-testid^='sort-header-']", (heads) =>
    heads.map((head) => [head.getBoundingClientRect().left, head.innerText.trim()]).sort(([a], [b]) => a - b).map(([, name]) => name));

  await page.$eval('input[name="runs-view-mode"][value="CHART"]', (button) => button.click());
  await page.waitForSelector(".js-plotly-plot", PATIENCE);
  await settled();
  await picture(page, folder, "mlflow-2-charts", false);
  told.charts = await words(page);
  told.plots = await page.$$eval(".js-plotly-plot", (plots) => plots.length);

  await table(page);
  for (const row of [0, 1]) {
    await page.$eval(`.ag-row[row-index="${row}"] input.ag-checkbox-input`, (box) => box.click());
  }
  await press(page, "button", "Compare");
  await shows(page, "Comparing 2 Runs");
  await settled();
  await picture(page, folder, "mlflow-3-compare", false);
  told.compare = await words(page);

  await table(page);
  await press(page, "a", told.runs[0]);
  await press(page, "[role=tab]", "Overview");
  await shows(page, "robust_accuracy");
  await settled();
  await picture(page, folder, "mlflow-4-run", false);
  told.run = await words(page);
  await press(page, "[role=tab]", "Model metrics");
  await page.waitForSelector(".js-plotly-plot", PATIENCE);
  await settled();
  await picture(page, folder, "mlflow-5-training", false);
  told.kinds = await page.$$eval(".js-plotly-plot", (plots) => plots.flatMap((plot) => (plot.data ?? []).map((trace) => trace.type)));

  await press(page, "[role=tab]", "Overview");
  await press(page, "a", told.campaign = (await words(page)).match(/Parent run\s+(.+)/)[1]);
  await page.waitForFunction((name) => document.querySelector("h1, h2")?.innerText.includes(name), PATIENCE, told.campaign);
  await shows(page, "Description");
  await settled();
  await picture(page, folder, "mlflow-6-campaign", false);
  told.note = await words(page);
  const campaign = page.url();
  await press(page, "[role=tab]", "Artifacts");
  await page.locator("::-p-text(report.html)").setTimeout(PATIENCE.timeout).click();
  const frame = await (await page.waitForSelector("iframe", PATIENCE)).contentFrame();
  await frame.waitForFunction(() => document.body.innerText.includes("Does this defense hold?"), PATIENCE);
  await settled();
  await picture(page, folder, "mlflow-7-report", false);
  told.report = await frame.evaluate(() => document.querySelector("#found")?.textContent);

  // The same on a phone and by night, to be looked at.
  for (const width of WIDTHS) {
    for (const scheme of SCHEMES) {
      for (const [name, place, text] of [["table", url, "· worst case · seed"], ["campaign", campaign, "Description"]]) {
        const other = await open(browser, "about:blank", { width, scheme });
        // MLflow goes by a choice of its own, not by the system's.
        await other.evaluateOnNewDocument((dark) => localStorage.setItem("_mlflow_dark_mode_toggle_enabled", String(dark)), scheme === "dark");
        await other.goto(place);
        await shows(other, text);
        const assistant = await other.$('button[aria-label="Close"]');
        if (assistant) await assistant.evaluate((button) => button.click());
        await settled();
        await picture(other, folder, `mlflow-${name}-${width}-${scheme}`, false);
        await other.close();
      }
    }
  }

  // An address without a workflow, as MLflow's own links are, in a browser that was never here; then with the other choice made.
  const stranger = await (await browser.createBrowserContext()).newPage();
  const plain = campaign.replace(/[?&]workflowType=[^&]*/, "").replace(/[?].*$/, "");
  await stranger.goto(plain);
  await shows(stranger, "Model registry");
  await settled();
  told.linked = { address: stranger.url(), words: await words(stranger) };
  await stranger.evaluate(() => localStorage.setItem("mlflow.workflowType_v1", '"genai"'));
  await stranger.goto("about:blank");
  await stranger.goto(plain);
  await shows(stranger, "Evaluation runs");
  told.chosen = await words(stranger);

  told.errors = page.complaints;
  return told;
});
console.log(JSON.stringify(seen));
