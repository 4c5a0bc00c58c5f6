// Fold the parts of the book in the side bar, all but the one that is being read.
document.addEventListener("DOMContentLoaded", () => {
  for (const caption of document.querySelectorAll(".bd-links p.caption")) {
    const list = caption.nextElementSibling;
    const part = document.createElement("details");
    const name = document.createElement("summary");
    name.className = caption.className;
    name.textContent = caption.textContent;
    part.open = list.classList.contains("current");
    caption.replaceWith(part);
    part.append(name, list);
  }
  const bar = document.querySelector(".bd-sidebar-primary");
  const here = bar && bar.querySelector(".bd-links .active > a");
  if (here) bar.scrollTop += here.getBoundingClientRect().top - bar.clientHeight / 3;
});
