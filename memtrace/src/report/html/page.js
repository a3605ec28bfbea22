"use strict";
// Makes charts and tables of the data in the page. Names in it may be any text: they go into the page by `textContent`
// only, never as HTML.
(() => {
  const nonce = document.currentScript.nonce;
  const byId = (id) => document.getElementById(id);
  const data = JSON.parse(byId("data").textContent);
  const root = document.documentElement;

  // An element with what is in it: texts and other elements.
  function make(tag, attributes, ...content) {
    const element = document.createElement(tag);
    for (const [name, value] of Object.entries(attributes ?? {})) {
      if (name.startsWith("on")) element.addEventListener(name.slice(2), value);
      else if (value === true) element.setAttribute(name, "");
      else if (value !== false && value != null) element.setAttribute(name, value);
    }
    element.append(...content.filter((it) => it != null));
    return element;
  }

  // ---- How values read ----

  const grouped = new Intl.NumberFormat("en");
  const seconds = new Intl.NumberFormat("en", { minimumFractionDigits: 2, maximumFractionDigits: 2 });
  const count = (value) => grouped.format(value);
  function span(ns) {
    if (ns < 999_950) return `${(ns / 1e3).toFixed(1)} us`;
    if (ns < 999_995_000) return `${(ns / 1e6).toFixed(2)} ms`;
    return `${seconds.format(ns / 1e9)} s`;
  }
  function bytes(value) {
    let unit = 0;
    while (value >= 1024 && unit < 5) [value, unit] = [value / 1024, unit + 1];
    return `${Number(value.toPrecision(3))} ${["B", "KiB", "MiB", "GiB", "TiB", "PiB"][unit]}`;
  }
  const perCent = (value) => `${value.toFixed(1)} %`;
  const local = () => byId("zone").value === "local";
  const two = (value, digits = 2) => String(value).padStart(digits, "0");
  function clock(ms, digits) {
    const time = new Date(ms);
    const [h, m, s, milli] = local()
      ? [time.getHours(), time.getMinutes(), time.getSeconds(), time.getMilliseconds()]
      : [time.getUTCHours(), time.getUTCMinutes(), time.getUTCSeconds(), time.getUTCMilliseconds()];
    return `${two(h)}:${two(m)}:${two(s)}${digits ? `.${two(milli, 3).slice(0, digits)}` : ""}`;
  }
  function day(ms) {
    const time = new Date(ms);
    return local()
      ? `${time.getFullYear()}-${two(time.getMonth() + 1)}-${two(time.getDate())}`
      : `${time.getUTCFullYear()}-${two(time.getUTCMonth() + 1)}-${two(time.getUTCDate())}`;
  }
  const digits = data.step_ms < 10 ? 3 : data.step_ms < 100 ? 2 : data.step_ms < 1000 ? 1 : 0;
  const begin = (column) => data.begin_ms + column * data.step_ms;
  const isLong = data.columns * data.step_ms > 86_400_000;
  const columnTime = (column) => `${isLong ? `${day(begin(column))} ` : ""}${clock(begin(column), digits)}`;

  // ---- Tables ----

  const FIRST = 25;

  // A table that is sorted by its heads' buttons and filtered by a text. A column is
  // `{ name, of, show?, number?, share?, long? }`; `detail` makes what is beneath a row.
  function table({ id, title, note, columns, rows, sort, detail, filter = true }) {
    const state = { by: sort ?? 0, down: true, text: "", most: FIRST };
    const text = (column, row) => (column.show ?? String)(column.of(row), row);
    const total = columns.findIndex((column) => column.share);
    const [sum, most] = total < 0 ? [0, 0] : rows.reduce(([all, most], row) =>
      [all + columns[total].of(row), Math.max(most, columns[total].of(row))], [0, 0]);
    const body = make("tbody");
    const said = make("span", { class: "count", role: "status" });
    const more = make("button", { type: "button", class: "more", onclick: () => { state.most += 100; show(); } });
    const heads = columns.map((column, at) =>
      make("th", { scope: "col", class: column.number ? "number" : null },
        make("button", {
          type: "button",
          onclick: () => {
            state.down = state.by === at ? !state.down : !!column.number;
            state.by = at;
            show();
          },
        }, column.name)));
    function compare(a, b) {
      const [x, y] = [columns[state.by].of(a), columns[state.by].of(b)];
      const order = x == null || y == null ? (x == null) - (y == null) || 0
        : typeof x === "string" ? x.localeCompare(y) : x - y;
      return x != null && y != null && state.down ? -order : order;
    }
    function cell(column, row) {
      const value = column.of(row);
      const shown = value == null ? "-" : text(column, row);
      const td = make("td", { class: column.number ? (column.share ? "number share" : "number") : column.long ? "name long" : "name" }, shown);
      if (column.share && sum > 0) {
        td.style.setProperty("--share", `${(value * 100 / most).toFixed(1)}%`);
        td.title = `${perCent(value * 100 / sum)} of all in the table`;
      }
      return td;
    }
    function line(row) {
      const tr = make("tr", null, ...columns.map((column) => cell(column, row)));
      if (!detail) return [tr];
      let beneath;
      const button = make("button", {
        type: "button",
        "aria-expanded": "false",
        onclick: () => {
          if (beneath) beneath.remove();
          beneath = beneath ? null : make("tr", { class: "detail" }, make("td", { colspan: columns.length + 1 }, detail(row)));
          if (beneath) tr.after(beneath);
          button.setAttribute("aria-expanded", String(!!beneath));
        },
      }, "Details");
      tr.prepend(make("td", null, button));
      return [tr];
    }
    function show() {
      heads.forEach((head, at) => {
        if (at === state.by) head.setAttribute("aria-sort", state.down ? "descending" : "ascending");
        else head.removeAttribute("aria-sort");
        const mark = at === state.by ? (state.down ? " ▼" : " ▲") : "";
        head.firstChild.replaceChildren(columns[at].name, make("span", { "aria-hidden": "true" }, mark));
      });
      const wanted = state.text.toLowerCase();
      const found = rows.filter((row) => !wanted || columns.some((column) =>
        column.of(row) != null && !column.share && text(column, row).toLowerCase().includes(wanted)));
      found.sort(compare);
      body.replaceChildren(...found.slice(0, state.most).flatMap(line));
      const shown = Math.min(found.length, state.most);
      said.textContent = `${count(shown)} of ${count(found.length)} rows`;
      more.hidden = shown === found.length;
      more.textContent = "Show more";
    }
    const field = make("input", { type: "search", id: `${id}-filter`, oninput: () => { state.text = field.value; show(); } });
    const section = make("section", { id, "aria-labelledby": `${id}-title`, tabindex: "-1" },
      make("h2", { id: `${id}-title` }, title),
      note ? make("p", { class: "hint" }, note) : null,
      make("div", { class: "tools" },
        filter ? make("label", null, "Filter ", field) : null, said),
      make("div", { class: "scroll", role: "region", "aria-labelledby": `${id}-title`, tabindex: "0" },
        make("table", { "aria-labelledby": `${id}-title` },
          make("thead", null, make("tr", null, detail ? make("th", { scope: "col" }, "Details") : null, ...heads)), body)),
      more);
    show();
    return section;
  }

  const stats = [
    { name: "Stalls", of: (row) => row.stat[0], show: count, number: true },
    { name: "Stalled", of: (row) => row.stat[1], show: span, number: true, share: true },
    { name: "p50", of: (row) => row.stat[2], show: span, number: true },
    { name: "p99", of: (row) => row.stat[3], show: span, number: true },
    { name: "Longest", of: (row) => row.stat[4], show: span, number: true },
  ];
  const many = data.hosts.length > 1;
  const onHost = (of) => (many ? [{ name: "Host", of: (row) => data.hosts[of(row)] ?? "" }] : []);
  const others = (it) => it.others > 0
    ? `The ${count(it.rows.length)} that were held up longest. Others: ${count(it.others)}, held up for ${span(it.others_ns)}.`
    : null;

  function detail(row) {
    const list = (title, items, tag) =>
      items.length ? make("section", null, make("h3", null, title), make(tag, null, ...items.map((it) => make("li", null, it)))) : null;
    const facts = [
      ["CPU", count(row.cpu)], ["User", String(row.uid)], ["Reclaimed", `${count(row.reclaimed)} pages`],
      ["Order", row.order], ["Zone", row.zone], ["Reclaimed from", row.target], ["Cgroup", row.cgroup],
    ].filter(([, value]) => value != null).map(([name, value]) => `${name}: ${value}`);
    const frames = (numbers) => numbers.map((number) => data.frames[number]);
    const parts = row.parts.map(([name, ns]) => `${name}: ${span(ns)} (${perCent(ns * 100 / Math.max(row.ns, 1))})`);
    return make("div", { class: "both" },
      list("What is known", facts, "ul"), list("How the time was spent", parts, "ul"),
      list("Kernel stack, innermost first", frames(row.kernel_frames), "ol"),
      list("Program stack, innermost first", frames(row.user_frames), "ol"));
  }

  function tables() {
    const at = (ms) => `${day(ms)} ${clock(ms, 3)}`;
    const whole = data.parts.reduce((sum, [, ns]) => sum + ns, 0);
    const all = [
      { id: "parts", title: "Where the time went", rows: data.parts, columns: [
        { name: "Part", of: (row) => row[0] },
        { name: "Per cent", of: (row) => row[1] * 100 / Math.max(whole, 1), show: perCent, number: true },
        { name: "Time", of: (row) => row[1], show: span, number: true, share: true }], sort: "Time", filter: false },
      { id: "threads", title: "Threads", note: others(data.threads), rows: data.threads.rows, columns: [
        { name: "Thread", of: (row) => row.key[0] },
        { name: "TID", of: (row) => row.key[1], number: true },
        { name: "PID", of: (row) => row.key[2], number: true },
        ...onHost((row) => row.key[3]), ...stats,
        { name: "Cgroup", of: (row) => row.key[4], long: true }], sort: "Stalled" },
      { id: "processes", title: "Processes", note: others(data.processes), rows: data.processes.rows, columns: [
        { name: "Process", of: (row) => row.key[0] },
        { name: "PID", of: (row) => row.key[1], number: true },
        ...onHost((row) => row.key[2]), ...stats,
        { name: "Cgroup", of: (row) => row.key[3], long: true }], sort: "Stalled" },
      { id: "cgroups", title: "Cgroups", note: others(data.cgroups), rows: data.cgroups.rows, columns: [
        { name: "Cgroup", of: (row) => row.key[0], long: true },
        ...onHost((row) => row.key[1]), ...stats], sort: "Stalled" },
      { id: "targets", title: "Reclaimed from", note: others(data.targets), rows: data.targets.rows, columns: [
        { name: "Cgroup, or the host", of: (row) => row.key[0], long: true },
        ...onHost((row) => row.key[1]), ...stats], sort: "Stalled" },
      { id: "kinds", title: "Kinds", rows: data.kinds, columns: [{ name: "Kind", of: (row) => row.key }, ...stats],
        sort: "Stalled", filter: false },
      { id: "orders", title: "Orders", note: "Allocations are of 2^order pages. A dash is where the kernel does not tell.",
        rows: data.orders, columns: [{ name: "Order", of: (row) => row.key, number: true }, ...stats], sort: "Stalled", filter: false },
      { id: "zones", title: "Zones", note: "Zones that were compacted, as node/name.", rows: data.zones, columns: [
        { name: "Zone", of: (row) => row.key }, ...stats], sort: "Stalled", filter: false },
      { id: "longest", title: "Longest stalls", rows: data.longest, detail, columns: [
        { name: "Began", of: (row) => row.at_ms, show: at, number: true },
        { name: "Lasted", of: (row) => row.ns, show: span, number: true },
        { name: "Kind", of: (row) => row.kind },
        { name: "Thread", of: (row) => row.name },
        { name: "TID", of: (row) => row.tid, number: true },
        { name: "PID", of: (row) => row.pid, number: true },
        ...onHost((row) => row.host),
        { name: "Mostly", of: (row) => row.parts[0]?.[0] },
        { name: "Cgroup", of: (row) => row.cgroup, long: true }], sort: "Lasted" },
      { id: "kills", title: "OOM kills", rows: data.kills,
        note: data.killed > data.kills.length ? `The first ${data.kills.length} of ${count(data.killed)}.` : null, columns: [
        { name: "When", of: (row) => row.at_ms, show: at, number: true },
        { name: "Lacked memory", of: (row) => row.name }, { name: "PID", of: (row) => row.pid, number: true },
        ...onHost((row) => row.host),
        { name: "Killed", of: (row) => row.victim }, { name: "Killed PID", of: (row) => row.victim_pid, number: true }],
        sort: "When" },
    ];
    return all.filter((it) => it.rows.length).map((it) =>
      table({ ...it, sort: it.columns.findIndex((column) => column.name === it.sort) }));
  }

  // ---- The worst second ----

  function worst() {
    const { at_ms, host, lost, then } = data.worst;
    const section = make("section", { id: "worst", "aria-labelledby": "worst-title", tabindex: "-1" },
      make("h2", { id: "worst-title" }, "Worst second"),
      make("p", null, `${day(at_ms)} ${clock(at_ms, 0)}: ${lost}${many ? ` on ${data.hosts[host]}` : ""}.`),
      make("p", null, then ? `The system ${then.apart}:` : "What the system was like then was not recorded."));
    if (!then) return section;
    if (then.facts.length) {
      section.append(make("dl", { class: "facts" },
        ...then.facts.flatMap(([term, fact]) => [make("dt", null, term), make("dd", null, fact)])));
    }
    if (then.zones.length) section.append(zonesThen(then.zones));
    if (then.cgroups.length) {
      section.append(make("h3", null, "Cgroups that stalled"), make("ul", { class: "names" },
        ...then.cgroups.map(([name, fact]) => make("li", null, fact ? `${name ?? "-"}: ${fact}` : name))));
    }
    return section;
  }
  function zonesThen(zones) {
    const pages = (value) => make("td", { class: "number" }, value == null ? "-" : count(value));
    const heads = ["Free", "Min", "Low", "High", "Most order"].map((name) => make("th", { scope: "col", class: "number" }, name));
    return make("div", { class: "scroll", role: "region", tabindex: "0", "aria-label": "Zones then" },
      make("table", null, make("caption", null, "Zones, in pages; of free blocks the largest order"),
        make("thead", null, make("tr", null, make("th", { scope: "col" }, "Zone"), ...heads, make("th", { scope: "col" }, "State"))),
        make("tbody", null, ...zones.map((zone) => make("tr", null, make("th", { scope: "row" }, zone.name),
          ...[zone.free, zone.min, zone.low, zone.high, zone.most_order].map(pages), make("td", null, zone.below))))));
  }

  // ---- Stacks ----

  function stacks() {
    const section = make("section", { id: "stacks", "aria-labelledby": "stacks-title", tabindex: "-1" },
      make("h2", { id: "stacks-title" }, "Stacks"), data.flame_note ? make("p", null, data.flame_note) : null);
    if (data.flame) section.append(...flame(data.flame));
    if (data.stacks.length) {
      const listed = table({ id: "stack-table", title: "Stacks held up longest", rows: data.stacks, sort: 1, columns: [
        { name: "Stack, outermost first", of: (row) => row[0].replaceAll(";", " › "), long: true },
        { name: "Stalled", of: (row) => row[1] * 1000, show: span, number: true, share: true }] });
      section.append(listed);
    }
    return section;
  }

  // The flame graph, in a tree of its own as its style and ids are its own.
  function flame(text) {
    const parsed = new DOMParser().parseFromString(text, "image/svg+xml").documentElement;
    if (parsed.nodeName !== "svg") return [];
    const svg = document.importNode(parsed, true);
    for (const id of ["search", "unzoom", "matched"]) svg.querySelector(`#${id}`)?.remove();
    svg.id = "flame";
    svg.setAttribute("role", "img");
    svg.setAttribute("aria-label", "Flame graph of stalled time by stack; the table beneath has the longest ones");
    const said = make("output", { class: "hint", "aria-live": "polite" });
    const reset = make("button", { type: "button", disabled: true, onclick: () => zoom(0, 100) }, "Whole graph");
    const number = (element, name) => Number.parseFloat(element?.getAttribute(name) ?? "0");
    const frames = [...svg.querySelectorAll("g")].flatMap((g) => {
      const [rect, label, title] = ["rect", "text", "title"].map((tag) => g.querySelector(`:scope > ${tag}`));
      if (!rect || !title) return [];
      g.style.cursor = "pointer";
      const frame = { g, rect, label, title: title.textContent, x: number(rect, "x"), width: number(rect, "width") };
      g.addEventListener("click", () => zoom(frame.x, frame.width));
      g.addEventListener("mouseenter", () => { said.textContent = frame.title; });
      return [frame];
    });
    function zoom(x, width) {
      const scale = 100 / Math.max(width, 1e-9);
      for (const frame of frames) {
        const [from, to] = [Math.max(frame.x, x), Math.min(frame.x + frame.width, x + width)];
        const shown = to - from > 1e-6;
        frame.g.style.display = shown ? "" : "none";
        if (!shown) continue;
        const wide = (to - from) * scale;
        frame.rect.setAttribute("x", `${(from - x) * scale}%`);
        frame.rect.setAttribute("width", `${wide}%`);
        if (!frame.label) continue;
        const fits = Math.floor(wide * 11.8 / 7.1);
        const name = frame.title.replace(/ \([^()]*\)$/, "");
        frame.label.setAttribute("x", `${(from - x) * scale + 0.25}%`);
        frame.label.textContent = fits < 3 ? "" : name.length <= fits ? name : `${name.slice(0, fits - 2)}..`;
      }
      reset.disabled = width >= 100;
    }
    const host = make("div", { class: "flame", tabindex: "0", role: "region", "aria-label": "Flame graph" });
    const style = make("style", null, "#flame { display: block; width: 100%; height: auto } @media screen { #flame { min-width: 60rem } }");
    host.attachShadow({ mode: "open" }).append(style, svg);
    return [make("p", { class: "hint" }, "Click on a frame to see it and what is on it alone."),
      make("div", { class: "tools" }, reset, said), host];
  }

  // ---- Charts ----

  // Of colours that are told apart by those who see few of them as well, in the order of the kinds' names.
  const COLOURS = {
    direct: "#d55e00", "memcg-max": "#0072b2", "memcg-high": "#56b4e9", compaction: "#009e73", swapin: "#cc79a7",
    refault: "#e69f00", throttled: "#7f6bd6", penalty: "#8c564b", pfmemalloc: "#b22222", softlimit: "#5f9ea0",
    node: "#b8a000", proactive: "#6b8e23", background: "#8a9099", oom: "#e0115f", memstall: "#a0a0c0",
  };
  // From few to many, light and dark.
  const HEAT = {
    light: ["#c3d9ee", "#94c0e2", "#5ba3cf", "#2f74b5", "#274b93", "#2a1a5e"],
    dark: ["#39407f", "#3f55a5", "#3d6fb5", "#3fa0b8", "#86cf9a", "#f6f3a2"],
  };
  let printing = false;
  const isDark = () => !printing && (root.dataset.theme
    ? root.dataset.theme === "dark" : matchMedia("(prefers-color-scheme: dark)").matches);

  const shown = { from: 0, to: data.columns - 1 };
  const zones = data.looks?.zones ?? [];
  const filled = (changes) => {
    const values = new Array(data.columns).fill(null);
    changes.forEach(([from, value], at) => values.fill(value, from, changes[at + 1]?.[0] ?? data.columns));
    return values;
  };
  function unpacked(zone) {
    return Array.isArray(zone.min[0]) ? { ...zone, min: filled(zone.min), low: filled(zone.low), high: filled(zone.high) } : zone;
  }
  function sumOf(list) {
    const all = list.map((zone) => unpacked(zone));
    const sum = (name) => all[0][name].map((_, at) =>
      all.some((zone) => zone[name][at] == null) ? null : all.reduce((sum, zone) => sum + zone[name][at], 0));
    return { free: sum("free"), min: sum("min"), low: sum("low"), high: sum("high") };
  }

  // Of each chart: what it shows, `option` for ECharts, and `table` for those who would rather read it.
  const charts = [
    {
      id: "heat", title: "Latency of stalls", height: 320,
      text: "How many stalls began at each time, by how long they lasted. Darker, on dark more glaring, is more.",
      option: heatOption, columns: heatColumns,
    },
    {
      id: "held", title: "Stalled time per second, by kind", height: 280,
      text: "How many seconds threads were held up in each second: 2 means two threads all of the time, or four half of it.",
      option: heldOption, columns: heldColumns,
    },
    {
      id: "pressure", title: "Pressure of memory (PSI, avg10)", height: 220, needs: () => data.looks?.some.some((it) => it != null),
      text: "Part of the last 10 s in which some, or all, tasks waited for memory, as the kernel says; the greatest of each column.",
      lacks: "There are no samples of /proc/pressure/memory in the recording.",
      option: () => linesOption(pressureLines(), { max: (range) => (range.max < 5 ? 5 : null) }, (value) => `${Number(value.toPrecision(3))} %`),
      columns: () => pressureLines().map((line) => ({ name: line.name, value: greatest(line.data), show: (value) => perCent(value) })),
    },
    {
      id: "memory", title: "Free memory and watermarks", height: 260, needs: () => data.looks && (zones.length || data.looks.free.some((it) => it != null)),
      text: "The fewest free pages of each column. Below low kswapd is woken up, below min threads reclaim by themselves. The scale is logarithmic.",
      lacks: "There are no samples of /proc/zoneinfo and /proc/meminfo in the recording.",
      option: () => linesOption(memoryLines(), { type: "log", logBase: 2, min: (range) => 2 ** Math.floor(Math.log2(Math.max(4096, range.min))) }, bytes),
      columns: () => memoryLines().map((line) => ({ name: line.name, value: least(line.data), show: bytes })),
    },
  ];

  const inRange = (values, from, to) => values.slice(from, to + 1).filter((it) => it != null);
  const greatest = (values) => (from, to) => inRange(values, from, to).reduce((a, b) => (a == null || b > a ? b : a), null);
  const least = (values) => (from, to) => inRange(values, from, to).reduce((a, b) => (a == null || b < a ? b : a), null);

  function palette() {
    return isDark()
      ? { text: "#e6e9ed", dim: "#a2abb6", line: "#3a424d", back: "#1f242c", heat: HEAT.dark }
      : { text: "#1b1f24", dim: "#57606a", line: "#d0d7de", back: "#ffffff", heat: HEAT.light };
  }
  // The same room on both sides, so that a time is at the same place in all charts.
  const narrow = () => !printing && innerWidth < 600;
  function common(title) {
    const { text, dim, line, back } = palette();
    const categories = Array.from({ length: data.columns }, (_, at) => at);
    return {
      animation: false,
      backgroundColor: "transparent",
      textStyle: { color: text, fontFamily: "system-ui, 'DejaVu Sans', sans-serif" },
      grid: { left: margins()[0], right: margins()[1], top: 56, bottom: 28, outerBoundsMode: "none" },
      xAxis: {
        type: "category", data: categories, boundaryGap: true,
        axisLabel: { color: dim, ...timeTicks() },
        axisLine: { lineStyle: { color: line } }, axisTick: { show: false },
      },
      yAxis: {
        type: "value", axisLabel: { color: dim }, splitLine: { lineStyle: { color: line, opacity: .6 } },
      },
      tooltip: {
        confine: true, backgroundColor: back, borderColor: line, textStyle: { color: text }, extraCssText: "box-shadow:none",
        axisPointer: { type: "line", lineStyle: { color: dim } },
      },
      legend: {
        type: "scroll", top: 0, left: "left", textStyle: { color: text }, inactiveColor: dim, pageIconColor: text, pageTextStyle: { color: text },
        itemWidth: 14, itemHeight: 10, icon: "roundRect",
      },
      dataZoom: [{
        type: "inside", startValue: shown.from, endValue: shown.to, zoomOnMouseWheel: "ctrl", moveOnMouseWheel: false,
        preventDefaultMouseMove: false, minValueSpan: Math.min(10, data.columns - 1),
      }],
    };
  }
  function tip(column, rows) {
    return make("div", { class: "tip" }, make("b", null, columnTime(column)),
      make("table", null, ...rows.map(([name, value, colour]) => {
        const square = colour ? make("i") : null;
        if (square) square.style.background = colour;
        return make("tr", null, make("td", null, square, name), make("td", { class: "number" }, value));
      })));
  }
  // Labels of times, of the part that is shown: they are round, where it is shown, and do not touch.
  const TICKS = [1, 2, 5, 10, 20, 50, 100, 200, 500, ...[1, 2, 5, 10, 15, 30, 60, 120, 300, 600, 900, 1800, 3600, 7200, 10_800,
    21_600, 43_200].map((s) => s * 1000), ...[1, 2, 5, 10, 20, 50, 100, 200, 500, 1000].map((days) => days * 86_400_000)];
  function timeTicks() {
    const length = (shown.to - shown.from + 1) * data.step_ms;
    const text = (tick) => (column) => {
      const at = begin(Number(column));
      if (tick >= 86_400_000) return day(at);
      const time = clock(at, tick >= 1000 ? 0 : tick >= 100 ? 1 : tick >= 10 ? 2 : 3);
      return isLong ? `${day(at)} ${time}` : time;
    };
    const fits = (tick) => tick % data.step_ms === 0 && length / tick * (widthOf(text(tick)(shown.to), 12) + 16) <= plotWidth();
    const tick = [...TICKS, ...[1, 2, 5, 10, 20, 50, 100, 200, 500, 1000].map((steps) => steps * data.step_ms)].find(fits)
      ?? 2000 * data.step_ms;
    const since = (column) => begin(column) - (local() ? new Date(begin(column)).getTimezoneOffset() * 60_000 : 0);
    return { formatter: text(tick), interval: (column) => since(column) % tick === 0 };
  }
  const pen = document.createElement("canvas").getContext("2d");
  function widthOf(text, size) {
    pen.font = `${size}px system-ui, 'DejaVu Sans', sans-serif`;
    return pen.measureText(text).width;
  }
  const margins = () => (narrow() ? [62, 30] : [76, 44]);
  const plotWidth = () => placed()[0].drawn.getWidth() - margins()[0] - margins()[1];

  // Marks of the part that is shown. Where their labels would lie over each other there is one for all of them.
  function markLine() {
    const { text } = palette();
    const marks = data.marks.map((mark) => ({ ...mark, column: Math.floor((mark.at_ms - data.begin_ms) / data.step_ms) }))
      .filter((mark) => mark.column >= shown.from && mark.column <= shown.to).sort((a, b) => a.column - b.column);
    const width = plotWidth();
    const groups = [];
    for (const { text, column } of marks) {
      let group = { columns: [column], names: new Map([[text, 1]]), at: (column - shown.from + .5) * width / (shown.to - shown.from + 1) };
      while (groups.length && box(groups.at(-1))[1] + 6 > box(group)[0]) {
        const before = groups.pop();
        for (const [name, many] of group.names) before.names.set(name, (before.names.get(name) ?? 0) + many);
        group = { ...before, columns: [...before.columns, ...group.columns] };
      }
      groups.push(group);
    }
    function label({ names }) {
      return [...names].map(([name, many]) => (many > 1 ? `${many} ${name}s` : name)).sort().join(", ");
    }
    // From where to where a label is, which keeps out of what is beyond the chart.
    function box(group) {
      const wide = widthOf(label(group), 11);
      const from = group.at + wide / 2 > width + margins()[1] ? group.at - wide : group.at - wide / 2;
      return [from, from + wide, from < group.at - wide / 2 ? "right" : "center"];
    }
    return {
      silent: true, symbol: "none", lineStyle: { color: "#d6336c", type: "dashed" },
      label: { color: text, formatter: ({ name }) => name, position: "end", distance: 4, fontSize: 11 },
      data: groups.flatMap((group) => [...new Set(group.columns)].map((column, at) =>
        ({ name: at === 0 ? label(group) : "", xAxis: column, label: { align: box(group)[2] } }))),
    };
  }

  // Rows of the heat map between the shortest and the longest latency that there is.
  const used = (() => {
    const rows = new Set(data.heat.flatMap((cells) => cells.filter((_, at) => at % 2 === 0)));
    const [low, high] = rows.size ? [Math.min(...rows), Math.max(...rows)] : [0, 0];
    return Array.from({ length: high - low + 1 }, (_, at) => low + at);
  })();
  const last = data.rows_ns.length - 1;
  const rowName = (row) => row === 0 ? `below ${span(data.rows_ns[1])}`
    : row === last ? `${span(data.rows_ns[row])} and more` : `${span(data.rows_ns[row])} to ${span(data.rows_ns[row + 1])}`;
  const short = (ns) => ns < 1e6 ? `${Number((ns / 1e3).toPrecision(2))} us` : ns < 1e9 ? `${Number((ns / 1e6).toPrecision(2))} ms` : `${Number((ns / 1e9).toPrecision(2))} s`;
  // Round latencies, each with its place among these rows: as few as tell the scale.
  const latencies = (() => {
    const [low, high] = [used[0], used.at(-1)];
    const ends = used.map((row) => data.rows_ns[row + 1] ?? data.rows_ns[row] * 1.5);
    const place = (ns) => {
      const at = Math.max(0, ends.findIndex((end) => ns < end));
      const begin = data.rows_ns[low + at];
      return at + Math.max(0, (ns - begin) / (ends[at] - begin));
    };
    const [from, to] = [data.rows_ns[low] * .97, ends[high - low]];
    const all = (steps) => Array.from({ length: 9 }, (_, power) => steps.map((step) => step * 10 ** (power + 3))).flat()
      .filter((ns) => ns >= from && ns < to).map((ns) => [place(ns), ns]);
    return [[1], [1, 2, 5], [1, 1.5, 2, 2.5, 3, 4, 5, 6, 7, 8, 9]].map(all).find((found, at) => found.length > 2 || at === 2);
  })();
  function heatOption() {
    const option = common();
    const { text, heat, back } = palette();
    let most = 1;
    const cells = data.heat.flatMap((cells, column) => {
      const all = [];
      for (let at = 0; at < cells.length; at += 2) {
        most = Math.max(most, cells[at + 1]);
        all.push([column, cells[at] - used[0], Math.log10(cells[at + 1]), cells[at + 1]]);
      }
      return all;
    });
    return {
      ...option,
      yAxis: [
        { type: "category", data: used, axisLine: { show: false }, axisTick: { show: false }, splitLine: { show: false }, axisLabel: { show: false } },
        {
          type: "value", position: "left", min: 0, max: used.length, axisLine: { show: false }, splitLine: { show: false },
          axisTick: { show: true, customValues: latencies.map(([at]) => at), lineStyle: { color: option.yAxis.axisLabel.color } },
          axisLabel: {
            ...option.yAxis.axisLabel, customValues: latencies.map(([at]) => at),
            formatter: (at) => short(latencies.find((it) => it[0] === at)?.[1] ?? 0),
          },
        },
      ],
      legend: undefined,
      visualMap: {
        type: "continuous", dimension: 2, min: 0, max: Math.max(Math.log10(most), 1e-3), orient: "horizontal", left: "left", top: 0,
        calculable: false, itemHeight: 120, itemWidth: 12, textStyle: { color: text }, hoverLink: false,
        text: [`${count(most)} stalls`, "1"], inRange: { color: heat },
      },
      dataZoom: [...option.dataZoom, {
        type: "slider", startValue: shown.from, endValue: shown.to, bottom: 2, height: 22, showDataShadow: false,
        textStyle: { color: text }, labelFormatter: (column) => columnTime(column), minValueSpan: Math.min(10, data.columns - 1),
        backgroundColor: "transparent",
      }],
      grid: { ...option.grid, bottom: 56 },
      tooltip: {
        ...option.tooltip, trigger: "item",
        formatter: ({ value }) => tip(value[0], [[rowName(value[1] + used[0]), `${count(value[3])} stalls`]]),
      },
      series: [{
        type: "heatmap", yAxisIndex: 0, data: cells, progressive: 0, emphasis: { itemStyle: { borderColor: text, borderWidth: 1 } },
        itemStyle: { borderWidth: 0, borderColor: back }, markLine: markLine(),
      }],
    };
  }
  const DECADES = [[0, 1e4], [1e4, 1e5], [1e5, 1e6], [1e6, 1e7], [1e7, 1e8], [1e8, 1e9], [1e9, Infinity]];
  function heatColumns() {
    return DECADES.map(([low, high]) => ({
      name: low === 0 ? "below 10 us" : high === Infinity ? "1 s and more" : `${short(low)} to ${short(high)}`,
      value: (from, to) => {
        let sum = 0;
        for (const cells of data.heat.slice(from, to + 1)) {
          for (let at = 0; at < cells.length; at += 2) {
            // Rows are narrower than decades: each counts by its middle.
            const middle = data.rows_ns[cells[at]] * (cells[at] === 0 ? 1 : 1.2);
            if (middle >= low && middle < high) sum += cells[at + 1];
          }
        }
        return sum;
      },
      show: count,
    }));
  }

  const perSecond = (us) => us / 1e3 / data.step_ms;
  const rate = (value) => Number(value.toPrecision(3));
  function heldOption() {
    const option = common();
    return {
      ...option,
      tooltip: {
        ...option.tooltip, trigger: "axis",
        formatter: (items) => tip(items[0].dataIndex, items.filter((it) => it.value > 0)
          .map((it) => [it.seriesName, `${rate(it.value)} s/s`, it.color])),
      },
      yAxis: { ...option.yAxis, axisLabel: { ...option.yAxis.axisLabel, formatter: (value) => `${value} s/s` } },
      series: data.held.map(([kind, values], at) => ({
        // Areas: bars narrower than a dot would cover those of other times.
        name: kind, type: "line", stack: "all", step: "middle", symbol: "none", data: values.map(perSecond),
        lineStyle: { width: 0 }, areaStyle: { color: COLOURS[kind] ?? "#888", opacity: 1 },
        itemStyle: { color: COLOURS[kind] ?? "#888" }, emphasis: { disabled: true }, markLine: at === 0 ? markLine() : undefined,
      })),
    };
  }
  function heldColumns() {
    return data.held.map(([kind, values]) => ({
      name: kind,
      value: (from, to) => values.slice(from, to + 1).reduce((a, b) => a + b, 0) * 1000,
      show: span,
    }));
  }

  function pressureLines() {
    return [
      { name: "some", data: data.looks.some, color: "#e69f00" },
      { name: "full", data: data.looks.full, color: "#d55e00" },
    ];
  }
  let zone = 0;
  const choices = zones.length > 1 ? [{ name: "all of these zones", ...sumOf(zones) }, ...zones] : zones;
  function memoryLines() {
    const lines = [];
    if (choices.length) {
      const { free, min, low, high } = unpacked(choices[zone]);
      lines.push({ name: "free", data: free, color: "#0072b2" }, { name: "high", data: high, color: "#009e73" },
        { name: "low", data: low, color: "#e69f00" }, { name: "min", data: min, color: "#d55e00" });
    }
    if (zone === 0) {
      if (!lines.length) lines.push({ name: "MemFree", data: data.looks.free, color: "#0072b2" });
      lines.push({ name: "MemAvailable", data: data.looks.available, color: "#7f6bd6", dashed: true });
    }
    return lines.filter((line) => line.data.some((it) => it != null));
  }
  function linesOption(lines, yAxis, show) {
    const option = common();
    return {
      ...option,
      yAxis: { ...option.yAxis, ...yAxis, axisLabel: { ...option.yAxis.axisLabel, formatter: show } },
      tooltip: {
        ...option.tooltip, trigger: "axis",
        formatter: (items) => tip(items[0].dataIndex, items.filter((it) => it.value != null)
          .map((it) => [it.seriesName, show(it.value), it.color])),
      },
      series: lines.map((line, at) => ({
        name: line.name, type: "line", symbol: "none", connectNulls: true, data: line.data,
        lineStyle: { color: line.color, width: 1.6, type: line.dashed ? "dashed" : "solid" }, itemStyle: { color: line.color },
        emphasis: { disabled: true }, markLine: at === 0 ? markLine() : undefined,
      })),
    };
  }

  // The data of a chart in at most so many rows, of the time that is shown.
  const MOST_GROUPS = 100;
  function chartTable(chart) {
    const columns = chart.columns();
    const wide = Math.ceil((shown.to - shown.from + 1) / MOST_GROUPS);
    const rows = [];
    for (let from = shown.from; from <= shown.to; from += wide) {
      const to = Math.min(from + wide - 1, shown.to);
      rows.push(make("tr", null, make("th", { scope: "row" }, columnTime(from)), ...columns.map((column) => {
        const value = column.value(from, to);
        return make("td", { class: "number" }, value == null ? "-" : column.show(value));
      })));
    }
    const each = span(wide * data.step_ms * 1e6);
    return make("div", { class: "scroll", role: "region", tabindex: "0", "aria-label": `${chart.title}, as a table` },
      make("table", null, make("caption", null, `${chart.title}, each row for ${each}`),
        make("thead", null, make("tr", null, make("th", { scope: "col" }, "From"),
          ...columns.map((column) => make("th", { scope: "col", class: "number" }, column.name)))),
        make("tbody", null, ...rows)));
  }

  function figures() {
    for (const chart of charts) {
      const title = make("h3", { id: `${chart.id}-title` }, chart.title);
      if (chart.needs && !chart.needs()) {
        byId("charts").append(make("figure", null, title, make("p", null, chart.lacks)));
        continue;
      }
      chart.place = make("div", { class: "chart", id: `${chart.id}-chart`, role: "img", "aria-label": `${chart.title}: ${chart.text} The table beneath has its data.` });
      chart.place.style.height = `${chart.height}px`;
      const inside = make("div");
      chart.details = make("details", { ontoggle: () => chart.fill() }, make("summary", null, "Its data as a table"), inside);
      chart.fill = () => inside.replaceChildren(...(chart.details.open ? [chartTable(chart)] : []));
      const choose = chart.id === "memory" && choices.length > 1
        ? make("label", null, "Of ", make("select", { id: "memory-zone", onchange: (event) => {
          zone = event.target.selectedIndex;
          draw(chart);
          chart.fill();
        } }, ...choices.map((it) => make("option", null, it.name)))) : null;
      byId("charts").append(make("figure", { "aria-labelledby": `${chart.id}-title` },
        make("figcaption", null, title, make("p", null, chart.text)),
        choose ? make("div", { class: "tools" }, choose) : null, chart.place, chart.details));
    }
  }
  const placed = () => charts.filter((chart) => chart.place);
  function draw(chart) {
    chart.drawn?.setOption(chart.option(), { notMerge: true });
  }

  // Labels anew what depends on the part that is shown.
  function relabel() {
    for (const { drawn } of placed()) {
      drawn?.setOption({ xAxis: { axisLabel: timeTicks() }, series: [{ markLine: markLine() }] }, { lazyUpdate: true });
    }
  }
  function tellRange() {
    byId("range").textContent = `${day(begin(shown.from))} ${columnTime(shown.from)} to ${columnTime(shown.to + 1)}`;
    for (const chart of placed()) if (chart.details.open) chart.fill();
  }
  function zoomTo(from, to) {
    const size = Math.max(1, Math.min(to - from + 1, data.columns));
    shown.from = Math.max(0, Math.min(Math.round(from), data.columns - size));
    shown.to = Math.min(data.columns - 1, Math.round(shown.from + size - 1));
    // The others follow.
    const first = placed().find((chart) => chart.drawn);
    first?.drawn.dispatchAction({ type: "dataZoom", startValue: shown.from, endValue: shown.to });
    tellRange();
    relabel();
  }
  const zooms = {
    in: (size) => zoomTo(shown.from + size / 4, shown.to - size / 4),
    out: (size) => zoomTo(shown.from - size / 2, shown.to + size / 2),
    earlier: (size) => zoomTo(shown.from - size / 2, shown.to - size / 2),
    later: (size) => zoomTo(shown.from + size / 2, shown.to + size / 2),
    all: () => zoomTo(0, data.columns - 1),
  };

  // Inflates the library and runs it, as a part of this page that it was from the start.
  async function load() {
    const packed = Uint8Array.from(atob(byId("echarts").textContent.trim()), (c) => c.charCodeAt(0));
    const stream = new Blob([packed]).stream().pipeThrough(new DecompressionStream("gzip"));
    const script = make("script");
    script.nonce = nonce;
    script.textContent = await new Response(stream).text();
    document.head.append(script);
    script.remove();
    if (!globalThis.echarts) throw new Error("it did not run");
  }
  function start() {
    for (const chart of placed()) {
      chart.drawn = echarts.init(chart.place, null, { renderer: "canvas" });
      chart.drawn.group = "time";
      draw(chart);
      chart.drawn.on("datazoom", () => {
        const { startValue, endValue } = chart.drawn.getOption().dataZoom[0];
        if (startValue === shown.from && endValue === shown.to) return;
        [shown.from, shown.to] = [startValue, endValue];
        tellRange();
        relabel();
      });
    }
    echarts.connect("time");
    const again = () => placed().forEach(draw);
    new ResizeObserver(() => {
      if (!printing) for (const chart of placed()) { chart.drawn.resize(); draw(chart); }
    }).observe(byId("charts"));
    matchMedia("(prefers-color-scheme: dark)").addEventListener("change", again);
    byId("theme").addEventListener("change", again);
    byId("zone").addEventListener("change", again);
    // On paper all is light. A picture of each chart stands in for it, which is whole at once.
    addEventListener("beforeprint", () => {
      printing = true;
      for (const chart of placed()) {
        chart.drawn.resize({ width: 900 });
        draw(chart);
        const picture = chart.drawn.renderToCanvas({ pixelRatio: devicePixelRatio + 1 });
        picture.className = "paper";
        picture.removeAttribute("style");
        chart.place.after(picture);
      }
    });
    addEventListener("afterprint", () => {
      printing = false;
      for (const picture of document.querySelectorAll(".paper")) picture.remove();
      for (const chart of placed()) { chart.drawn.resize({ width: "auto" }); draw(chart); }
    });
  }

  function fillTables() {
    byId("tables").replaceChildren(...(data.worst ? [worst()] : []), ...tables(), stacks());
  }

  fillTables();
  figures();
  const sections = [byId("charts"), ...byId("tables").children];
  document.querySelector("nav").replaceChildren(...sections.map((section) =>
    make("a", { href: `#${section.id}` }, section.querySelector("h2").textContent)));
  for (const hidden of document.querySelectorAll("nav, .switches, #charts, #tables")) hidden.hidden = false;
  byId("theme").addEventListener("change", (event) => {
    if (event.target.value) root.dataset.theme = event.target.value;
    else delete root.dataset.theme;
  });
  byId("zone").addEventListener("change", () => { fillTables(); tellRange(); });
  document.querySelector(".zoom").addEventListener("click", (event) => {
    const zoom = zooms[event.target.dataset?.zoom];
    if (zoom) zoom(shown.to - shown.from + 1);
  });
  tellRange();
  load().then(start).then(() => { root.dataset.charts = "drawn"; }, (error) => {
    root.dataset.charts = "missing";
    byId("charts").prepend(make("p", { class: "note" }, `This browser cannot draw the charts (${error.message}); their data is in the tables.`));
    for (const chart of placed()) { chart.place.remove(); chart.details.open = true; }
  });
})();
