// What scripts/site_check.sh runs: every page of a built site, looked at in a browser.
"use strict";
const fs = require("fs");
const http = require("http");
const path = require("path");
const puppeteer = require("puppeteer-core");

const [site, pattern, profile] = process.argv.slice(2);
const AXE = fs.readFileSync(require.resolve("axe-core/axe.min.js"), "utf8");
const SCHEMES = { light: "default", dark: "slate" };
const WIDTHS = [390, 1200];
const TYPES = {
  ".html": "text/html; charset=utf-8", ".css": "text/css", ".js": "text/javascript",
  ".svg": "image/svg+xml", ".png": "image/png", ".json": "application/json",
};

const problems = new Map(); // text -> where it was seen
function report(text, where) {
  if (!problems.has(text)) problems.set(text, []);
  problems.get(text).push(where);
}

function files(folder) {
  return fs.readdirSync(folder, { withFileTypes: true }).flatMap((entry) => {
    const full = path.join(folder, entry.name);
    return entry.isDirectory() ? files(full) : [full];
  });
}

// The file that an address of the site stands for, or undefined.
function fileOf(pathname) {
  let file = path.join(site, decodeURIComponent(pathname));
  if (fs.existsSync(file) && fs.statSync(file).isDirectory()) file = path.join(file, "index.html");
  return file.startsWith(site) && fs.existsSync(file) ? file : undefined;
}

function serve() {
  const server = http.createServer((request, response) => {
    const file = fileOf(new URL(request.url, "http://site").pathname);
    if (!file) return response.writeHead(404).end();
    response.writeHead(200, { "Content-Type": TYPES[path.extname(file)] || "text/plain" });
    fs.createReadStream(file).pipe(response);
  });
  return new Promise((done) => server.listen(0, "127.0.0.1", () => done(server)));
}

const ids = new Map(); // file -> the ids in it
function hasAnchor(file, anchor) {
  if (!ids.has(file)) {
    const text = fs.readFileSync(file, "utf8");
    ids.set(file, new Set([...text.matchAll(/\s(?:id|name)="?([^"\s>]+)/g)].map((m) => m[1])));
  }
  return ids.get(file).has(anchor);
}

function checkLinks(links, origin, page) {
  for (const link of new Set(links)) {
    const target = new URL(link);
    if (target.origin !== origin) continue; // no network is needed for what this checks
    const file = fileOf(target.pathname);
    const anchor = decodeURIComponent(target.hash.slice(1));
    if (!file) report(`broken link: ${target.pathname}`, page);
    else if (anchor && file.endsWith(".html") && anchor !== "__top" && !hasAnchor(file, anchor)) {
      report(`broken anchor: ${target.pathname}#${anchor}`, page);
    }
  }
}

// Findings of axe-core that are serious or critical: what is wrong, and the element.
async function findings(tab) {
  await tab.evaluate(AXE);
  return tab.evaluate(async () => {
    const found = await axe.run(document, { resultTypes: ["violations"] });
    return found.violations
      .filter((v) => v.impact === "serious" || v.impact === "critical")
      .flatMap((v) => v.nodes.map((n) => {
        const why = (n.any[0] || n.all[0] || n.none[0] || {}).message || v.help;
        return [`${v.id} (${v.impact}): ${why}`, n.target.join(" ")];
      }));
  });
}

async function look(tab, address, scheme, name) {
  await tab.goto(address, { waitUntil: "load" });
  const state = await tab.evaluate(() => ({
    scheme: document.body.getAttribute("data-md-color-scheme"),
    wide: document.documentElement.scrollWidth - window.innerWidth,
    alt: [...document.images].filter((i) => !i.complete || !i.naturalWidth).map((i) => i.src),
    links: [...document.querySelectorAll("a[href], link[href]")].map((a) => a.href),
  }));
  if (state.scheme !== SCHEMES[scheme]) report(`the page is not ${scheme}: ${state.scheme}`, name);
  if (state.wide > 0) report(`wider than the window by ${state.wide} px`, name);
  for (const source of state.alt) report(`a picture is not shown: ${source}`, name);
  for (const [what, where] of await findings(tab)) report(what, `${where} in ${name}`);
  return state.links;
}

// The leaderboard sorts by a column, and leaves out the published models or ours.
async function checkTable(tab, name) {
  const seen = await tab.evaluate(() => {
    const table = document.querySelector(".md-typeset table");
    const shown = () => [...table.tBodies[0].rows].filter((row) => !row.hidden);
    const choose = (control, value) => {
      control.value = value;
      control.dispatchEvent(new Event("input"));
      return shown().map((row) => [row.cells[0].textContent, !!row.cells[0].querySelector("em")]);
    };
    const heads = [...table.tHead.rows[0].cells];
    const clean = heads.findIndex((head) => head.textContent === "clean");
    heads[clean].querySelector("button").click();
    const numbers = shown().map((row) => parseFloat(row.cells[clean].textContent));
    const kind = document.querySelector("select.filter");
    const [ours, published] = [choose(kind, "ours"), choose(kind, "published")];
    choose(kind, "all models");
    const words = choose(document.querySelector("input.filter"), "isometric tiny");
    return { numbers: numbers.filter((n) => !isNaN(n)), ours, published, words };
  });
  const sorted = seen.numbers.every((n, i) => i === 0 || n <= seen.numbers[i - 1]);
  if (seen.numbers.length < 8 || !sorted) report("the leaderboard does not sort", name);
  const kinds = (rows, italic) => rows.length > 0 && rows.every((row) => row[1] === italic);
  if (!kinds(seen.ours, false) || !kinds(seen.published, true)) report("its choice fails", name);
  if (seen.words.length !== 1 || !/isometric_tiny/.test(seen.words[0][0])) {
    report("its filter by words fails", name);
  }
}

async function main() {
  const server = await serve();
  const origin = `http://127.0.0.1:${server.address().port}`;
  const pages = files(site).filter((f) => f.endsWith(".html"))
    .map((f) => path.relative(site, f)).filter((f) => new RegExp(pattern).test(f)).sort();
  const browser = await puppeteer.launch({
    executablePath: process.env.CHROMIUM,
    userDataDir: profile,
    args: ["--no-sandbox", "--disable-gpu", "--disable-background-networking"],
  });
  for (const scheme of Object.keys(SCHEMES)) {
    for (const width of WIDTHS) {
      const context = await browser.createBrowserContext(); // remembers nothing of the last one
      const tab = await context.newPage();
      let name = "";
      tab.on("console", (m) => m.type() === "error" && report(`console: ${m.text()}`, name));
      tab.on("pageerror", (error) => report(`error: ${error.message}`, name));
      tab.on("request", (r) => {
        const url = new URL(r.url());
        if (url.protocol.startsWith("http") && url.origin !== origin) {
          report(`asks another server: ${url.origin}`, name);
        }
      });
      await tab.setViewport({ width, height: 900 });
      await tab.emulateMediaFeatures([{ name: "prefers-color-scheme", value: scheme }]);
      for (const page of pages) {
        name = `${page}, ${scheme}, ${width} px`;
        const links = await look(tab, `${origin}/${page}`, scheme, name);
        if (page === "leaderboard.html") await checkTable(tab, name);
        if (page !== "404.html") checkLinks(links, origin, page);
        if (process.env.PICTURES) {
          const picture = `${page.replace(/\W/g, "_")}_${scheme}_${width}.png`;
          await tab.screenshot({ path: path.join(process.env.PICTURES, picture) });
        }
      }
      await context.close();
      console.log(`${pages.length} pages, ${scheme}, ${width} px: looked at`);
    }
  }
  await browser.close();
  server.close();
  for (const [text, where] of problems) {
    const more = where.length > 3 ? [`and ${where.length - 3} times more`] : [];
    console.log([text, ...where.slice(0, 3), ...more].join("\n    "));
  }
  console.log(`${pages.length} pages, ${problems.size} kinds of problems`);
  process.exit(problems.size || !pages.length ? 1 : 0);
}

main().catch((error) => { console.error(error); process.exit(2); });
