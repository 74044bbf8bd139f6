// Tabs as the ARIA practices describe them: one stop in the tab order, arrows move and select.

/** Make the buttons of a tablist work. `choose(id)` is told which tab is shown, at the start too. */
export function installTabs(list, choose, first) {
  const tabs = [...list.querySelectorAll('[role="tab"]')];
  const select = (tab, { focus = false } = {}) => {
    for (const each of tabs) {
      each.setAttribute("aria-selected", String(each === tab));
      each.tabIndex = each === tab ? 0 : -1;
    }
    if (focus) tab.focus();
    choose(tab.dataset.tab);
  };
  list.addEventListener("click", (event) => {
    const tab = event.target.closest('[role="tab"]');
    if (tab) select(tab);
  });
  list.addEventListener("keydown", (event) => {
    const at = tabs.indexOf(document.activeElement);
    const to = { ArrowRight: at + 1, ArrowLeft: at - 1, Home: 0, End: tabs.length - 1 }[event.key];
    if (at < 0 || to === undefined) return;
    event.preventDefault();
    select(tabs[(to + tabs.length) % tabs.length], { focus: true });
  });
  select(tabs.find((tab) => tab.dataset.tab === first) ?? tabs[0]);
}
