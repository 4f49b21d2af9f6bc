// What scrolls sideways can be reached by the keyboard: code and tables wider than the page.
function reach() {
  for (const part of document.querySelectorAll("pre > code, .md-typeset__scrollwrap")) {
    if (part.scrollWidth > part.clientWidth) part.tabIndex = 0
    else part.removeAttribute("tabindex")
  }
}
addEventListener("load", () => { reach(); setTimeout(reach, 100) })
addEventListener("resize", reach)
