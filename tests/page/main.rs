//! The page of `memtrace report --html` in a browser: what its script makes of the data, of hostile names too.
//!
//! With `MEMTRACE_PAGES` set to a folder, pages and pictures of them stay there to be looked at.

mod browser;
mod incident;

use std::{
    env, fs,
    path::{Path, PathBuf},
    sync::atomic::AtomicU64,
    time::Duration,
};

use anyhow::{Context as _, Result};
use incident::{HOSTILE, Told};
use memtrace::report::html;
use tests::host::TempDir;

/// What the file is said to be called.
const FILE: &[u8] = b"<img src=x>/db1.mtr";

/// A page, and the folder that it is in.
struct Page {
    _folder: Option<TempDir>,
    path: PathBuf,
    told: Told,
}

impl Page {
    fn new(seconds: u64, worst: u64) -> Result<Self> {
        let kept = env::var_os("MEMTRACE_PAGES").map(PathBuf::from);
        let folder = if kept.is_none() { Some(TempDir::new()?) } else { None };
        let place = kept.as_deref().or(folder.as_ref().map(TempDir::path));
        let place = place.unwrap_or(Path::new("/"));
        let name = format!("{seconds}-{worst}");
        let (recording, told) =
            incident::record(&place.join(format!("{name}.mt")), seconds, worst)?;
        let path = place.join(format!("{name}.html"));
        let mut out = Vec::new();
        html::write(&[recording], &[FILE.to_vec()], &AtomicU64::new(0), &mut out)?;
        fs::write(&path, out)?;
        Ok(Self { _folder: folder, path, told })
    }

    /// What the page is once a script has run in it that this one has no part in.
    fn after(&self, window: &str, script: &str) -> Result<String> {
        let page = fs::read_to_string(&self.path)?;
        let (_, rest) = page.split_once("'nonce-").context("no policy")?;
        let (nonce, _) = rest.split_once('\'').context("no policy")?;
        let script = format!(
            "<script nonce=\"{nonce}\">
            // By the id of their places, the charts as they are made.
            const charts = {{}};
            let library;
            Object.defineProperty(globalThis, 'echarts', {{
              get: () => library,
              set: (made) => {{
                library = {{ ...made, init: (place, ...rest) => charts[place.id] = made.init(place, ...rest) }};
              }},
            }});
            (async () => {{
              const root = document.documentElement;
              // Charts leave some updates for their next frame. While the browser's time is virtual, frames do not keep
              // up with it.
              const wait = async () => {{
                await new Promise((go) => setTimeout(go, 50));
                for (const chart of Object.values(charts)) chart.getZr().animation.update();
              }};
              while (!root.dataset.charts) await wait();
              await wait();
              const says = (...words) => {{
                const line = document.createElement('said');
                line.textContent = words.join(' ');
                document.body.append(line);
              }};
              try {{ {script} }} catch (error) {{ console.error(error.stack); }}
            }})();
            </script></body>"
        );
        let path = self.path.with_extension("driven.html");
        fs::write(&path, page.replacen("</body>", &script, 1))?;
        browser::run(&path, "--dump-dom", window)
    }

    /// What `says` has said.
    #[track_caller]
    fn said(&self, script: &str) -> Vec<String> {
        self.said_in("1280,900", script)
    }

    #[track_caller]
    fn said_in(&self, window: &str, script: &str) -> Vec<String> {
        let dom = self.after(window, script).expect("it runs");
        let said = dom.split("<said>").skip(1);
        said.map(|line| line.split("</said>").next().unwrap_or_default().to_owned()).collect()
    }
}

#[test]
fn tables_have_the_sums_of_the_recording() {
    let page = Page::new(120, 20).expect("a page");
    let said = page.said(
        "const rows = (id) => [...document.querySelectorAll(`#${id} tbody tr`)].map((row) => [...row.cells].map((cell) => cell.textContent));
         const data = JSON.parse(document.getElementById('data').textContent);
         for (const row of rows('kinds')) says('kind', row.slice(0, 3).join('|'));
         says('thread', data.threads.rows.reduce((sum, row) => sum + row.stat[1], data.threads.others_ns));
         says('top', rows('threads')[0].join('|'));
         says('longest', rows('longest').length, rows('longest')[0][2]);
         says('title', document.title);",
    );
    let told = &page.told;
    let total: u64 = told.kinds.values().sum();
    assert_eq!(told.threads.values().sum::<u64>(), total);
    let kinds: Vec<_> = said.iter().filter_map(|line| line.strip_prefix("kind ")).collect();
    assert_eq!(kinds.len(), told.kinds.len());
    for (kind, ns) in &told.kinds {
        let shown = format!("|{:.2} s", Duration::from_nanos(*ns).as_secs_f64());
        assert!(
            kinds.iter().any(|row| row.starts_with(kind) && row.ends_with(&shown)),
            "{kind} {shown}: {kinds:?}"
        );
    }
    assert!(said.contains(&format!("thread {total}")), "{said:?}");
    let longest = Duration::from_nanos(told.longest_ns).as_secs_f64();
    assert!(said.contains(&format!("longest 25 {longest:.2} s")), "{longest}: {said:?}");
    assert!(
        said.contains(
            &"title memtrace report: db1.example&lt;i&gt;, 2026-03-01 12:00:00 UTC".to_owned()
        ),
        "{said:?}"
    );
}

#[test]
fn the_worst_second_and_the_parts_of_the_time_are_there() {
    let page = Page::new(120, 20).expect("a page");
    let said = page.said(
        "const worst = document.getElementById('worst');
         const cells = (row) => [...row.cells].map((cell) => cell.textContent).join('|');
         says('nav', [...document.querySelectorAll('nav a')].slice(1, 3).map((it) => it.hash).join(' '));
         says('lost', worst.querySelector('p').textContent);
         for (const fact of worst.querySelectorAll('dd')) says('fact', fact.textContent);
         for (const row of worst.querySelectorAll('tbody tr')) says('zone', cells(row));
         for (const cgroup of worst.querySelectorAll('li')) says('cgroup', cgroup.textContent);
         for (const row of document.querySelectorAll('#parts tbody tr')) says('part', cells(row));
         says('payer', [...document.querySelectorAll('#processes tbody tr')].every((row) => row.cells.length === 8 && row.cells[7].textContent.startsWith('/')));
         says('file', document.querySelector('.facts dd').textContent);",
    );
    let total: u64 = page.told.kinds.values().sum();
    let part = |name: &str, ns: u64| {
        let per_cent = ns as f64 * 100.0 / total as f64;
        format!("part {name}|{per_cent:.1} %|{:.2} s", Duration::from_nanos(ns).as_secs_f64())
    };
    let [throttled, scan, shrink] = page.told.parts_ns;
    let expected = [
        "nav #worst #parts".to_owned(),
        "fact available 4.5 GiB of 7.6 GiB, free 3.6 GiB".to_owned(),
        "fact full 0.50 %, some 0.57 %".to_owned(),
        "zone 0/DMA|3,840|68|85|102|-|".to_owned(),
        "zone 0/Normal|945,157|13,000|16,250|19,500|-|".to_owned(),
        "payer true".to_owned(),
        "file &lt;img src=x&gt;/db1.mtr".to_owned(),
        part("throttled:writeback", throttled),
        part("scan", scan),
        part("shrink:super_cache_scan", shrink),
    ];
    for line in &expected {
        assert!(said.contains(line), "no `{line}`: {said:#?}");
    }
    let has = |start: &str, end: &str| {
        said.iter().any(|line| line.starts_with(start) && line.ends_with(end))
    };
    assert!(has("lost 2026-03-01 12:01:", "began in it."), "{said:#?}");
    assert!(has("cgroup /\"&gt;&lt;img src=x", ": 1.0 MiB, max +10"), "{said:#?}");
}

#[test]
fn charts_are_drawn_and_names_stay_names() {
    let page = Page::new(120, 20).expect("a page");
    let said = page.said(
        "says('charts', root.dataset.charts);
         const colours = (canvas) => {
           const { data } = canvas.getContext('2d').getImageData(0, 0, canvas.width, canvas.height);
           return new Set(new Uint32Array(data.buffer)).size;
         };
         for (const chart of document.querySelectorAll('.chart')) {
           says('painted', Math.max(...[...chart.querySelectorAll('canvas')].map(colours)) > 10);
         }
         says('elements', document.querySelectorAll('img, b b, i:not(.tip i), iframe, object, link').length);
         says('names', [...document.querySelectorAll('td.name')].filter((cell) => cell.textContent.includes('<')).length > 2);
         says('frames', document.querySelector('.flame').shadowRoot.querySelectorAll('rect').length > 20,
           document.querySelector('.flame').shadowRoot.querySelectorAll('script').length);
         says('fetched', performance.getEntriesByType('resource').length);",
    );
    let expected = ["charts drawn", "elements 0", "names true", "frames true 0", "fetched 0"];
    for line in expected {
        assert!(said.iter().any(|it| it == line), "no `{line}`: {said:?}");
    }
    assert_eq!(said.iter().filter(|line| *line == "painted true").count(), 4, "{said:?}");
    assert!(HOSTILE.iter().all(|name| !said.iter().any(|line| line.contains(name))));
}

#[test]
fn labels_of_charts_are_round_and_do_not_touch() {
    let page = Page::new(120, 20).expect("a page");
    let script = "const texts = (id) => charts[`${id}-chart`]
           .getZr().storage.getDisplayList(true)
           .filter((it) => it.type === 'tspan' && !it.ignore && !it.invisible && it.style.text.trim())
           .map((it) => {
             const box = it.getBoundingRect().clone();
             box.applyTransform(it.getComputedTransform());
             return { text: it.style.text, box };
           });
         const tell = (when) => {
           for (const id of ['heat', 'held', 'pressure', 'memory']) {
             const all = texts(id);
             for (const [at, one] of all.entries()) {
               for (const other of all.slice(at + 1)) {
                 if (one.box.intersect(other.box)) says('touching', when, id, one.text, other.text);
               }
             }
             const times = all.filter((it) => /^\\d\\d:\\d\\d:\\d\\d/.test(it.text));
             says('times', when, id, times.length > 1, times.every((it) => /:\\d[05]$/.test(it.text)));
             says('marks', when, id, all.map((it) => it.text).filter((it) => /OOM|trigger/.test(it)).sort().join('; '));
           }
         };
         tell('at first');
         says('latencies', texts('heat').map((it) => it.text).filter((it) => / (us|ms|s)$/.test(it)).join(' '));
         says('powers', texts('memory').map((it) => it.text).filter((it) => /B$/.test(it)).every((it) => Number.isInteger(Math.log2(Number.parseFloat(it)))));
         document.querySelector('[data-zoom=in]').click();
         document.querySelector('[data-zoom=later]').click();
         await wait();
         tell('zoomed');";
    let wide = page.said(script);
    for id in ["heat", "held", "pressure", "memory"] {
        for line in [
            format!("times at first {id} true true"),
            format!("times zoomed {id} true true"),
            format!("marks at first {id} 20 OOM kills, trigger; OOM kill"),
            format!("marks zoomed {id} 20 OOM kills, trigger"),
        ] {
            assert!(wide.contains(&line), "no `{line}`: {wide:#?}");
        }
    }
    for line in ["latencies 100 us 1 ms 10 ms 100 ms 1 s", "powers true"] {
        assert!(wide.iter().any(|it| it == line), "no `{line}`: {wide:#?}");
    }
    let narrow = page.said_in("400,800", script);
    for said in [wide, narrow] {
        assert!(said.len() > 16, "{said:#?}");
        assert!(!said.iter().any(|line| line.starts_with("touching")), "{said:#?}");
    }
}

#[test]
fn it_can_be_sorted_filtered_zoomed_and_unfolded() {
    let page = Page::new(120, 20).expect("a page");
    let said = page.said(
        "const first = (at) => document.querySelector(`#threads tbody tr td:nth-child(${at})`).textContent;
         const head = (name) => [...document.querySelectorAll('#threads th')].find((th) => th.textContent.startsWith(name));
         says('sorted', head('Stalled').getAttribute('aria-sort'));
         head('TID').firstChild.click();
         says('by', head('TID').getAttribute('aria-sort'), head('Stalled').getAttribute('aria-sort'));
         head('TID').firstChild.click();
         says('least', first(2));
         const field = document.getElementById('threads-filter');
         field.value = 'REDIS';
         field.dispatchEvent(new Event('input'));
         says('filtered', new Set([...document.querySelectorAll('#threads tbody tr td:first-child')].map((it) => it.textContent)).size, first(1));
         const before = document.getElementById('range').textContent;
         document.querySelector('[data-zoom=in]').click();
         await wait();
         says('zoomed', before !== document.getElementById('range').textContent);
         const details = document.querySelector('#held-chart + details');
         details.open = true;
         await wait();
         const rows = details.querySelectorAll('tbody tr').length;
         says('rows', rows > 10 && rows <= 100, details.querySelectorAll('thead th').length);
         const button = document.querySelector('#longest tbody button');
         button.click();
         says('detail', button.getAttribute('aria-expanded'), document.querySelector('#longest .detail').textContent.includes('throttled:writeback'));
         document.getElementById('theme').value = 'dark';
         document.getElementById('theme').dispatchEvent(new Event('change'));
         says('dark', getComputedStyle(document.body).backgroundColor);
         const names = [...document.querySelectorAll('button, select, input, summary, [tabindex=\"0\"]')].filter((it) =>
           !(it.textContent.trim() || it.labels?.length || it.getAttribute('aria-label')));
         says('nameless', names.length);",
    );
    let expected = [
        "sorted descending",
        "by descending ",
        &format!("least {}", page.told.threads.keys().min().expect("some")),
        "filtered 1 redis-server",
        "zoomed true",
        "rows true 4",
        "detail true true",
        "dark rgb(20, 23, 28)",
        "nameless 0",
    ];
    for line in expected {
        assert!(said.iter().any(|it| it == line), "no `{line}`: {said:?}");
    }
}

#[test]
fn pictures_can_be_taken_at_any_width() {
    let page = Page::new(900, 60).expect("a page");
    for (name, window) in [("wide", "1280,900"), ("narrow", "360,800")] {
        let picture = page.path.with_extension(format!("{name}.png"));
        let action = format!("--screenshot={}", picture.display());
        browser::run(&page.path, &action, window).expect("it runs");
        assert!(fs::metadata(&picture).expect("a picture").len() > 20_000, "{name}");
    }
}
