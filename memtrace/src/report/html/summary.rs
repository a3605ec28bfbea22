//! What a page says in words, also where no script runs: of which recordings it is, what came of them, and what is not
//! in them.

use std::fmt::{self, Display, Formatter};
use std::time::Duration;

use super::data::{Data, Row};
use super::words::{html, short};
use crate::recording::meta::timestamp;
use crate::recording::{Counts, End, Meta, Missing, Recording};
use crate::report::findings::Findings;
use crate::report::rows::Recorded;
use crate::report::totals::Totals;
use crate::view::words::Span;

/// Most recordings that are told one by one.
const MOST: usize = 20;
/// How many kinds and threads are named.
const NAMED: usize = 5;
const DAMAGED: &str = "damaged blocks, left out";

/// What is known of one recording besides its stalls.
#[derive(Debug)]
pub struct Facts {
    rows: Vec<(&'static str, String)>,
}

impl Facts {
    /// Of all recordings, and what was left out of them.
    pub fn of_all(
        findings: &Findings,
        totals: &Totals,
        recordings: &[Recording],
        left_out: &[u64],
    ) -> Vec<Self> {
        let known = recordings.iter().zip(left_out).zip(&totals.seen).zip(&findings.recordings);
        let each = known.take(MOST).map(|(((recording, damaged), seen), recorded)| {
            let end = seen.end.as_ref();
            let counts = end.map(|end| end.counts).or(seen.counts).unwrap_or_default();
            let missing = missing(recording.missing, *damaged, end, counts);
            Self::of(recording, recorded, end, missing)
        });
        let mut all: Vec<_> = each.collect();
        if recordings.len() > MOST {
            let more = format!("{} recordings that are not listed", recordings.len() - MOST);
            let more = match left_out.iter().skip(MOST).sum::<u64>() {
                0 => more,
                damaged => format!("{more}; {damaged} {DAMAGED} in them"),
            };
            all.push(Self { rows: vec![("And", more)] });
        }
        all
    }

    fn of(recording: &Recording, recorded: &Recorded, end: Option<&End>, missing: String) -> Self {
        let Meta { memtrace, host, kernel, cpus, what, trigger, .. } = &recording.meta;
        let Recorded { file, since: from_ns, time: to_ns, .. } = recorded;
        let text = |text: &str| short(text.as_bytes());
        let long = Duration::from_nanos(to_ns.abs_diff(*from_ns));
        let mut rows = vec![
            ("File", short(file)),
            ("Host", text(host)),
            ("Kernel", format!("{}, {cpus} CPUs", text(kernel))),
            ("From", When(*from_ns).to_string()),
            ("To", format!("{}, {} later", When(*to_ns), Long(long))),
            ("Traced", text(what)),
        ];
        let filters = recording.meta.all_filters();
        if !filters.is_empty() {
            rows.push(("Only", text(&filters)));
        }
        if let Some(fired) = trigger {
            let (trigger, cause) = (text(&fired.trigger), text(&fired.cause));
            rows.push(("Trigger", format!("{trigger}: {cause}, {}", When(fired.at_ns))));
        }
        rows.extend(coverage(&recording.meta));
        rows.push(("Not in it", missing));
        if let Some(end) = end.filter(|end| !end.unavailable.is_empty()) {
            let lacking: Vec<_> = end.unavailable.iter().map(|lacking| text(lacking)).collect();
            rows.push(("Not available", lacking.join("; ")));
        }
        rows.push(("Made by", format!("memtrace {}", text(memtrace))));
        Self { rows }
    }
}

/// Which kinds were watched, and which were not.
fn coverage(meta: &Meta) -> Vec<(&'static str, String)> {
    let coverage = meta.coverage();
    let watched: Vec<_> = coverage.watched().map(crate::kind::Kind::name).collect();
    let missing = coverage.missing();
    let missing: Vec<_> =
        missing.map(|(kind, why)| format!("{} ({})", kind.name(), short(why.as_bytes()))).collect();
    let mut rows = Vec::new();
    if !watched.is_empty() {
        rows.push(("Watched", watched.join(", ")));
    }
    if !missing.is_empty() {
        rows.push(("Not watched", missing.join("; ")));
    }
    rows
}

/// What of the stalls is not in a recording.
fn missing(missing: Missing, damaged: u64, end: Option<&End>, counts: Counts) -> String {
    let Missing { dropped, lost: lost_blocks, stray } = missing;
    let Counts { lost, missed_begin, table_full, skipped, unfinished } = counts;
    let all = [
        (lost, "stalls lost (ring buffer full)"),
        (missed_begin, "stalls that began before tracing"),
        (table_full, "stalls too many at once (table full)"),
        (skipped, "runs of probes that the kernel skipped"),
        (unfinished, "stalls that had not ended"),
        (dropped, "oldest blocks, given up for the size of the file"),
        (lost_blocks, "blocks in between"),
        (damaged, DAMAGED),
        (stray, "bytes that belong to no block"),
    ];
    let all = all.into_iter().filter(|(count, _)| *count != 0);
    let mut parts: Vec<_> = all.map(|(count, what)| format!("{count} {what}")).collect();
    if end.is_none() {
        parts.push("its end: what was lost is known until the last look only".to_owned());
    }
    if parts.is_empty() { "nothing: every stall was seen".to_owned() } else { parts.join("; ") }
}

/// The page's title.
pub fn title(findings: &Findings) -> String {
    match &*findings.recordings {
        [] => "memtrace report".to_owned(),
        [one] => {
            format!("memtrace report: {}, {}", short(one.host.host.as_bytes()), When(one.since))
        }
        [one, rest @ ..] => {
            format!("memtrace report: {} and {} more", short(one.host.host.as_bytes()), rest.len())
        }
    }
}

/// The whole summary in HTML.
pub fn summary(data: &Data, facts: &[Facts]) -> String {
    let (count, total_ns, _) = data.total();
    let mut text = String::from("<p class=\"lead\">");
    if count == 0 {
        text += "No stall is in the recording.";
    } else {
        let threads = data.threads.rows.len() + data.threads.others;
        text += &html(&format!(
            "{count} stalls held {threads} threads up for {} all together.",
            Long(Duration::from_nanos(total_ns))
        ));
        if let Some(long) = data.longest() {
            text += &html(&format!(
                " The longest lasted {}: {}, thread {} of process {}, in {}, {}.",
                Span(long.ns.into()),
                long.name,
                long.tid,
                long.pid,
                long.kind,
                When(long.at_ns)
            ));
        }
    }
    if data.killed != 0 {
        text += &html(&format!(" Processes killed for lack of memory: {}.", data.killed));
    }
    text += "</p>";
    if count != 0 {
        text += "<div class=\"both\">";
        text += &list("By kind", &data.kinds, total_ns, |kind| (*kind).to_owned());
        text +=
            &list("Threads held up longest", &data.threads.rows, total_ns, |(name, tid, ..)| {
                format!("{name} ({tid})")
            });
        text += "</div>";
    }
    for Facts { rows } in facts {
        text += "<dl class=\"facts\">";
        for (term, fact) in rows {
            text.extend(["<dt>", &html(term), "</dt><dd>", &html(fact), "</dd>"]);
        }
        text += "</dl>";
    }
    text
}

fn list<K>(title: &str, rows: &[Row<K>], total_ns: u64, name: impl Fn(&K) -> String) -> String {
    let row = |Row { key, stat: [count, ns, _, p99_ns, max_ns] }: &Row<K>| {
        let per_cent = *ns as f64 * 100.0 / total_ns.max(1) as f64;
        let [ns, p99, max] = [ns, p99_ns, max_ns].map(|ns| Span((*ns).into()));
        let text = format!(": {ns} ({per_cent:.1} %) in {count} stalls, p99 {p99}, longest {max}");
        format!("<li><b>{}</b>{}</li>", html(&name(key)), html(&text))
    };
    let rows: String = rows.iter().take(NAMED).map(row).collect();
    format!("<section><h3>{title}</h3><ol>{rows}</ol></section>")
}

/// A time of day, in nanoseconds since 1970, to the second.
struct When(i64);

impl Display for When {
    fn fmt(&self, f: &mut Formatter<'_>) -> fmt::Result {
        write!(f, "{}", timestamp(self.0).strftime("%Y-%m-%d %H:%M:%S UTC"))
    }
}

/// A span as hours, minutes and seconds.
struct Long(Duration);

impl Display for Long {
    fn fmt(&self, f: &mut Formatter<'_>) -> fmt::Result {
        let seconds = self.0.as_secs();
        match (seconds / 3600, seconds / 60 % 60, seconds % 60) {
            (0, 0, _) => Span(self.0.as_nanos()).fmt(f),
            (0, minutes, seconds) => write!(f, "{minutes} min {seconds} s"),
            (hours, minutes, seconds) => write!(f, "{hours} h {minutes} min {seconds} s"),
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn what_is_missing_is_said() {
        let end = End::default();
        assert_eq!(
            missing(Missing::default(), 0, Some(&end), Counts::default()),
            "nothing: every stall was seen"
        );
        let lossy = Counts { lost: 3, unfinished: 1, ..Counts::default() };
        let dropped = Missing { dropped: 7, ..Missing::default() };
        assert_eq!(
            missing(dropped, 0, None, lossy),
            "3 stalls lost (ring buffer full); 1 stalls that had not ended; 7 oldest blocks, given up for the \
             size of the file; its end: what was lost is known until the last look only"
        );
        let damaged = Missing { lost: 1, stray: 48, ..Missing::default() };
        assert_eq!(
            missing(damaged, 2, Some(&end), Counts::default()),
            "1 blocks in between; 2 damaged blocks, left out; 48 bytes that belong to no block"
        );
    }

    #[test]
    fn spans_read_well() {
        for (seconds, text) in
            [(0, "0.0 us"), (5, "5.00 s"), (65, "1 min 5 s"), (7384, "2 h 3 min 4 s")]
        {
            assert_eq!(Long(Duration::from_secs(seconds)).to_string(), text);
        }
        assert_eq!(When(0).to_string(), "1970-01-01 00:00:00 UTC");
    }
}
