// What scripts add to the pages: a button that copies what is shown once, and progress that moves
// without the page being loaded anew. All else works without.

for (const button of document.querySelectorAll("[data-copies]")) {
  const field = document.getElementById(button.dataset.copies);
  field.addEventListener("focus", () => field.select());
  if (navigator.clipboard) {
    button.hidden = false;
    button.addEventListener("click", async () => {
      await navigator.clipboard.writeText(field.value);
      button.textContent = "Copied";
    });
  }
}

async function follow(part) {
  const address = part.dataset.follow;
  while (true) {
    await new Promise((resolve) => setTimeout(resolve, 1000));
    const page = new DOMParser().parseFromString(await (await fetch(address)).text(), "text/html");
    const next = page.getElementById(part.id);
    if (!next?.hasAttribute("data-follow")) return location.replace(address); // all is different
    part.replaceChildren(...next.childNodes);
  }
}

for (const part of document.querySelectorAll("[data-follow]")) follow(part);
