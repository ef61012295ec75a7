"use strict";
// What a model or a server says is text: it reaches the page through textContent and attributes alone, never as HTML.

const TOO_LARGE = 16 * 2 ** 20; // bytes, as in uploads.py
const at = (id) => document.getElementById(id);
const percent = (p) => `${(100 * p).toFixed(1)} %`;
let models = [];
let picture = null; // the file that the answers are about

function make(tag, text = "", name = "") {
  const element = document.createElement(tag);
  element.textContent = text;
  if (name) element.className = name;
  return element;
}

// The answer to a request, or an Error with the server's reason.
async function ask(path, options = {}) {
  let answer;
  try {
    answer = await fetch(path, options);
  } catch {
    throw new Error("The server does not answer. Is it still running?");
  }
  if (answer.ok) return answer;
  const reason = await answer.json().then((body) => body.error, () => answer.statusText);
  throw new Error(reason.charAt(0).toUpperCase() + reason.slice(1));
}

function form(file) {
  const body = new FormData();
  body.append("file", file, "picture");
  return { method: "POST", body };
}

// ---- a picture and its predictions ----------------------------------------------------------------------------------
function complain(text) {
  at("problem").textContent = text;
  at("problem").hidden = !text;
}

async function classify(file) {
  picture = file;
  complain("");
  URL.revokeObjectURL(at("preview").src);
  at("preview").src = URL.createObjectURL(file);
  at("preview").hidden = false;
  at("drop").classList.add("filled");
  at("answers").classList.add("busy");
  at("answers").setAttribute("aria-busy", "true");
  try {
    if (file.size > TOO_LARGE) throw new Error("The picture is larger than 16 MiB. Choose a smaller one.");
    const answers = models.map((model) => ask(`predict?run=${encodeURIComponent(model.run)}`, form(file)));
    const found = await Promise.all(answers.map(async (answer) => (await answer).json()));
    if (picture === file) at("answers").replaceChildren(...found.map((one) => show(one, file)));
  } catch (error) {
    if (picture === file) {
      at("answers").replaceChildren();
      complain(error.message);
    }
  }
  if (picture === file) {
    at("answers").classList.remove("busy");
    at("answers").removeAttribute("aria-busy");
  }
}

function show(answer, file) {
  const article = at("answer").content.cloneNode(true).firstElementChild;
  const [prediction] = answer.predictions;
  article.querySelector("h2").textContent = answer.run;
  article.querySelector(".first b").textContent = prediction.class;
  article.querySelector(".first span").textContent = percent(prediction.probability);
  article.querySelector("ol").append(...prediction.top.map(bar));
  const look = article.querySelector(".look");
  look.addEventListener("click", () => toggleHeat(article, look, answer, file));
  return article;
}

function bar({ class: name, probability }) {
  const line = make("li");
  const track = make("span", "", "track");
  const fill = make("span", "", "fill");
  fill.style.width = percent(probability).replace(" ", "");
  track.append(fill);
  line.dataset.probability = probability;
  line.append(make("span", name, "name"), make("span", percent(probability), "value"), track);
  return line;
}

async function toggleHeat(article, look, answer, file) {
  const heat = article.querySelector(".heat");
  const note = article.querySelector(".note");
  const shown = look.getAttribute("aria-pressed") === "true";
  if (!shown && !heat.src) {
    look.disabled = true;
    try {
      const [{ class: name }] = answer.predictions;
      const query = new URLSearchParams({ run: answer.run, class: name });
      const found = await (await ask(`explain?${query}`, form(file))).json();
      heat.src = found.image;
      heat.alt = `The picture as the model sees it, with the places that speak for ${name} in yellow`;
      note.textContent = `Yellow speaks for ${name}. ${found.method}`;
    } catch (error) {
      note.textContent = error.message;
    }
    look.disabled = false;
  }
  look.setAttribute("aria-pressed", String(!shown));
  heat.hidden = shown || !heat.src;
  note.hidden = shown;
}

// ---- ways to give a picture -----------------------------------------------------------------------------------------
for (const input of [at("file"), at("camera")]) {
  input.addEventListener("change", () => {
    if (input.files.length) classify(input.files[0]);
    input.value = ""; // the same file again is a change too
  });
}
document.addEventListener("paste", (event) => {
  const [file] = event.clipboardData.files;
  if (file) classify(file);
});
for (const type of ["dragenter", "dragover", "dragleave", "drop"]) {
  document.addEventListener(type, (event) => {
    event.preventDefault(); // else the browser would leave the page for the file
    at("drop").classList.toggle("over", type === "dragenter" || type === "dragover");
    if (type !== "drop") return;
    const [file] = event.dataTransfer.files;
    if (file) classify(file);
    else complain("That is no file. Save the picture first, then drop the file.");
  });
}
at("preview").addEventListener("error", () => { at("preview").hidden = true; });

// ---- examples and model cards ---------------------------------------------------------------------------------------
async function showExamples() {
  const { examples } = await (await ask(`examples?run=${encodeURIComponent(models[0].run)}`)).json();
  at("gallery").replaceChildren(...examples.map((example) => {
    const wrong = example.true !== example.predicted;
    const button = make("button", "", wrong ? "wrong" : "");
    const image = make("img");
    button.type = "button";
    image.src = example.image;
    image.alt = "";
    image.loading = "lazy";
    const caption = make("span", example.true);
    if (wrong) caption.append(make("em", `, not ${example.predicted}`));
    button.append(image, caption);
    button.addEventListener("click", async () => {
      try {
        await classify(await (await ask(example.image)).blob());
      } catch (error) {
        complain(error.message);
      }
      at("drop").scrollIntoView({ block: "nearest" });
    });
    const item = make("li");
    item.append(button);
    return item;
  }));
  at("examples-note").textContent = `${models[0].run} was not trained on these. It gets the framed ones wrong.`;
  at("examples").hidden = !examples.length;
}

// Headings, tables, code and paragraphs of a model card; other Markdown stays as it is.
function card(text) {
  const found = make("div", "", "card");
  const cells = (line) => line.split(/(?<!\\)\|/).slice(1, -1);
  const plain = (part) => part.replace(/\\(.)/g, "$1").replace(/`/g, "").trim();
  for (const block of text.split(/^(```[^]*?^```)$|\n{2,}/m).filter((part) => part && part.trim())) {
    const lines = block.trim().split("\n");
    if (block.startsWith("```")) found.append(make("pre", lines.slice(1, -1).join("\n")));
    else if (/^#+ /.test(lines[0])) found.append(make("h3", plain(lines[0].replace(/^#+/, ""))));
    else if (lines[0].startsWith("|")) found.append(table(lines.map((line) => cells(line).map(plain))));
    else if (!/^<\/?(details|summary)/.test(lines[0])) found.append(make("p", plain(lines.join(" "))));
  }
  return found;
}

function table([header, , ...rows]) {
  const found = make("table");
  for (const [tag, cells] of [["th", header], ...rows.map((row) => ["td", row])]) {
    found.insertRow().append(...cells.map((cell) => make(tag, cell)));
  }
  return found;
}

function showCard(model) {
  const details = make("details");
  const side = model.preprocess.crop;
  details.append(make("summary", `About ${model.run}`));
  if (model.card) details.append(card(model.card));
  else details.append(make("p", `${model.model}, ${side} × ${side} pixels. It has no model card.`));
  details.append(make("p", `Weights ${model.version}`, "quiet"));
  return details;
}

function facts(model) {
  const score = model.score.val_accuracy;
  const parts = [model.model, `${model.classes.length} classes`];
  if (models.length > 1 && model.run !== model.model) parts.unshift(model.run);
  if (typeof score === "number") parts.push(`${percent(score)} of the validation images right`);
  return parts.join(" · ");
}

async function start() {
  ({ models } = await (await ask("model")).json());
  document.title = at("title").textContent = models.map((model) => model.run).join(" and ");
  document.querySelector("main").classList.toggle("several", models.length > 1);
  at("facts").replaceChildren(...models.flatMap((model, k) => (k ? [make("br"), facts(model)] : [facts(model)])));
  at("cards").replaceChildren(...models.map(showCard));
  at("answers").replaceChildren(make("p", "The predictions appear here.", "empty"));
  await showExamples();
}

start().catch((error) => complain(error.message));
