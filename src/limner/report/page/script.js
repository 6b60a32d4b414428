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
let current = 0;
const show = (index) => {
  current = (index + pairs.length) % pairs.length;
  const pair = pairs[current];
  const images = pair.querySelectorAll("img");
  const arm = Math.max(1, [...images].indexOf(document.activeElement?.querySelector?.("img:hover")));
  const [under, over] = dialog.querySelectorAll("img");
  under.src = images[0].src; under.alt = images[0].alt;
  over.src = images[arm].src; over.alt = images[arm].alt;
  dialog.querySelector(".words").textContent = pair.querySelector("figcaption").textContent.replace(/\s+/g, " ").trim();
};
pairs.forEach((pair, index) => pair.querySelector("button").addEventListener("click", () => {
  show(index);
  dialog.showModal();
  dialog.querySelector("input").focus();
}));
dialog.querySelector(".before").addEventListener("click", () => show(current - 1));
dialog.querySelector(".after").addEventListener("click", () => show(current + 1));
dialog.querySelector(".close").addEventListener("click", () => dialog.close());
dialog.addEventListener("click", (event) => event.target === dialog && dialog.close());
dialog.addEventListener("keydown", (event) => {
  if (event.key === "ArrowUp" || event.key === "ArrowDown") {
    show(current + (event.key === "ArrowDown" ? 1 : -1));
    event.preventDefault();
  }
});

// A link to a picture inside a closed fold opens the fold.
const reveal = () => {
  const target = location.hash && document.getElementById(location.hash.slice(1));
  for (let node = target; node; node = node.parentElement) if (node.tagName === "DETAILS") node.open = true;
  if (target) target.scrollIntoView({ block: "center" });
};
addEventListener("hashchange", reveal);
reveal();
