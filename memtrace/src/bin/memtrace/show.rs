//! What a run shows, wherever its stalls come from: the running kernel or a recording.

use anyhow::Result;
use jiff::Timestamp;
use memtrace::{
    coverage::Coverage,
    histogram::Tallied,
    live::Event,
    names::Names,
    view::{Certificate, Folded, Summary, View},
};

use crate::{
    config::{Config, Verbosity},
    episodes::{Shown, StateSource, say_coverage},
    flame::FlameFile,
    output::{Output, Reader, say},
};

/// A run's view with what it takes to get there.
pub struct Show<'a> {
    config: &'a Config,
    pub names: Names,
    view: View,
    flame: Option<Flame>,
    pub output: Output,
    /// Where rounds make episodes.
    pub episodes: Option<Shown>,
    /// How many stalls were shown or counted.
    pub stalls: u64,
}

/// A flame graph in the making.
pub struct Flame {
    file: FlameFile,
    /// Nothing where the view has the same.
    folded: Option<Folded>,
}

impl Flame {
    /// Finds out whether it can be written, if one was asked for.
    pub fn prepare(config: &Config) -> Result<Option<Self>> {
        let flame = config.flame.as_ref().map(|(path, options)| {
            let file = FlameFile::prepare(path, format!("Time held up in {}", config.what))?;
            let folded = config.view.folded.is_none().then(|| Folded::new(*options));
            anyhow::Ok(Self { file, folded })
        });
        flame.transpose()
    }
}

impl<'a> Show<'a> {
    /// Nothing is shown yet. Rounds come in `scopes`, if they do. Takes the memory that it is going to need.
    pub fn new(
        config: &'a Config,
        names: Names,
        flame: Option<Flame>,
        scopes: bool,
        states: StateSource,
    ) -> Self {
        let shown = |options| Shown::new(options, &config.request, scopes, states);
        Self {
            config,
            names,
            view: View::new(config.view.clone()),
            flame,
            output: Output::new(),
            episodes: config.episodes.as_ref().map(shown),
            stalls: 0,
        }
    }

    /// The flame graph that is going to be written.
    pub fn flame_file(&self) -> Option<&FlameFile> {
        self.flame.as_ref().map(|flame| &flame.file)
    }

    /// Starts at `at`.
    pub fn begin(&mut self, at: Timestamp) {
        self.view.begin(at, &mut self.output.lines);
    }

    /// Takes an event.
    pub fn take(&mut self, event: Event) {
        let Self { view, names, output, episodes, stalls, flame, .. } = self;
        match (event, episodes) {
            (Event::Stall(stall), None) => {
                *stalls += 1;
                view.stall(&stall, names, &mut output.lines);
                if let Some(Flame { folded: Some(folded), .. }) = flame {
                    folded.stall(&stall, names);
                }
            }
            (Event::Stall(stall), Some(shown)) => shown.episodes.round(stall),
            (Event::Scope(scope), Some(shown)) => shown.episodes.scope(scope, &mut names.symbols),
            (Event::Oom(oom), Some(shown)) => {
                *stalls += shown.oom(&oom, view, names, &mut output.lines);
            }
            // Nobody asked for them.
            (Event::Scope(_) | Event::Oom(_), None) => {}
        }
        self.show_episodes();
    }

    /// Takes what the probes have counted.
    pub fn tallied(&mut self, tallied: &Tallied) {
        self.stalls += tallied.tally.count;
        self.view.tallied(tallied, &mut self.names);
    }

    /// Whether anything is going to come of time alone.
    pub fn waits(&self, now_ns: u64) -> bool {
        self.episodes.as_ref().is_some_and(|shown| shown.waits(now_ns))
    }

    /// Ends the episodes to which nothing was added up to `now_ns`.
    pub fn expire(&mut self, now_ns: u64, begun_ns: impl Fn(u32) -> Option<u64>) {
        if let Some(shown) = &mut self.episodes {
            shown.episodes.expire(now_ns, begun_ns);
        }
        self.show_episodes();
        let Self { view, names, output, episodes, .. } = self;
        if let Some(shown) = episodes {
            shown.show_verdicts(now_ns, view, names, &mut output.lines);
        }
    }

    fn show_episodes(&mut self) {
        let Self { view, names, output, episodes, stalls, flame, .. } = self;
        let mut folded = flame.as_mut().and_then(|flame| flame.folded.as_mut());
        if let Some(shown) = episodes {
            *stalls += shown.show(view, names, &mut output.lines, |episode, names| {
                if let Some(folded) = &mut folded {
                    folded.episode(episode, names);
                }
            });
        }
    }

    /// Shows the histograms of the interval that ends at `at`, as far as there is room.
    pub fn interval(&mut self, at: Timestamp) {
        self.view.interval(&mut self.names, at, &mut self.output);
    }

    /// Shows those of the last one.
    pub fn last_interval(&mut self, at: Timestamp) {
        self.view.last_interval(&mut self.names, at, &mut self.output);
    }

    /// Shows the rest of an interval's histograms, as far as there is room.
    pub fn show_more(&mut self) {
        self.view.show_more(&mut self.names, &mut self.output);
    }

    /// Whether no histogram waits for room.
    pub fn is_shown(&self) -> bool {
        self.view.is_shown()
    }

    /// Whether stalls can be taken: they are counted, or there is room for their lines.
    pub fn has_room(&self) -> bool {
        self.view.counts() || self.output.has_room()
    }

    /// Forgets the histograms that are not shown: how many stalls there are in them.
    pub fn give_up(&mut self) -> u64 {
        self.view.give_up()
    }

    /// Writes what waits once that is much, and the histograms of an interval that has ended. Waits for the reader to
    /// take it.
    pub fn deliver(&mut self) -> Result<Reader> {
        loop {
            let reader = self.output.deliver()?;
            if reader == Reader::Gone || self.is_shown() {
                return Ok(reader);
            }
            self.show_more();
        }
    }

    /// Nothing comes any more: ends all episodes.
    pub fn finish(&mut self) {
        if let Some(shown) = &mut self.episodes {
            shown.episodes.end();
            self.show_episodes();
        }
    }

    /// Ends at `at` with what was seen and what was not.
    pub fn end(&mut self, at: Timestamp, end: &Ended<'_>) {
        let Self { view, output, .. } = self;
        view.coverage(end.coverage, &end.certificates, at, &mut output.lines);
        view.end(at, &end.summary, output);
    }

    /// Says the same on standard error, once the view is delivered.
    pub fn say_end(&self, end: &Ended<'_>) {
        let verbosity = self.config.verbosity;
        if verbosity != Verbosity::Quiet || !end.summary.is_complete() {
            say(&end.summary);
        }
        if self.episodes.is_some() && verbosity != Verbosity::Quiet {
            say_coverage(end.coverage);
            end.certificates.iter().for_each(say);
        }
    }

    /// Writes the flame graph, if one was asked for and there is anything in it.
    pub fn write_flame(&self) -> Result<()> {
        let Some(Flame { file, folded }) = &self.flame else { return Ok(()) };
        let of_view = if let View::Folded(folded) = &self.view { Some(folded) } else { None };
        folded.as_ref().or(of_view).map_or(Ok(()), |folded| file.write(folded))
    }
}

/// How a run ended.
pub struct Ended<'a> {
    pub summary: Summary,
    pub coverage: &'a Coverage,
    pub certificates: Vec<Certificate>,
}
