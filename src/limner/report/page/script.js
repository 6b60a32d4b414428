// Works without: then pairs stay side by side and the opening picture stays half and half.
const slide = (box) => {
  const input = box.querySelector("input");
  const move = () => box.style.setProperty("--at", input.value + "%");
  input.addEventListener("input", move);
  move();
};
document.querySelectorAll(".compare").forEach(slide);

const dialog = document.querySelector("dialog");
const pairs = [...document.querySelectorAll(".pair")];
const choices = [...dialog.querySelectorAll(".choice button")];
let current = 0, arm = 1;
const show = (index) => {
  current = (index + pairs.length) % pairs.length;
  const images = pairs[current].querySelectorAll("img");
  const [under, over] = dialog.querySelectorAll("img");
  under.src = images[0].src; under.alt = images[0].alt;
  over.src = images[arm].src; over.alt = images[arm].alt;
  choices.forEach((choice, i) => choice.setAttribute("aria-pressed", i + 1 === arm));
  if (choices.length) {
    dialog.querySelector(".tag.right").textContent = choices[arm - 1].textContent;
    dialog.setAttribute("style", choices[arm - 1].getAttribute("style"));
  }
  dialog.querySelector(".words").innerHTML = pairs[current].querySelector("figcaption").innerHTML;
};
pairs.forEach((pair, index) => pair.querySelector("button").addEventListener("click", (event) => {
  const hit = [...pair.querySelectorAll("img")].indexOf(event.target);
  arm = hit > 0 ? hit : arm;
  show(index);
  dialog.showModal();
  dialog.querySelector("input").focus();
}));
choices.forEach((choice, i) => choice.addEventListener("click", () => { arm = i + 1; show(current); }));
dialog.querySelector(".before").addEventListener("click", () => show(current - 1));
dialog.querySelector(".after").addEventListener("click", () => show(current + 1));
dialog.querySelector(".close").addEventListener("click", () => dialog.close());
dialog.addEventListener("click", (event) => event.target === dialog && dialog.close());
dialog.addEventListener("keydown", (event) => {
  if (event.key !== "ArrowUp" && event.key !== "ArrowDown") return;
  show(current + (event.key === "ArrowDown" ? 1 : -1));
  event.preventDefault();
});

// A link to a picture inside a closed fold opens the fold.
const reveal = () => {
  const target = location.hash && document.getElementById(decodeURIComponent(location.hash.slice(1)));
  for (let node = target; node; node = node.parentElement) if (node.tagName === "DETAILS") node.open = true;
  if (target) target.scrollIntoView({ block: "center" });
};
addEventListener("hashchange", reveal);
reveal();
