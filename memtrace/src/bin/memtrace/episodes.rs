//! Which episodes are shown, and what is said of them at the end.

use std::collections::BTreeMap;

use memtrace::{
    cgroup::Cgroups,
    coverage::Coverage,
    episode::{Episode, Episodes},
    filter::Filter,
    kind::Kind,
    live::Request,
    names::Names,
    scope::Oom,
    verdict::{self, State, States, Verdict, Verdicts},
    view::{Certificate, Judged, Summary, View},
};

use crate::{config::EpisodeOptions, output::say};

/// How often to look whether a target is judged otherwise.
const LOOK_EVERY_NS: u64 = 1_000_000_000;

/// The episodes of one run.
#[derive(Debug)]
pub struct Shown {
    pub episodes: Episodes,
    kinds: Vec<Kind>,
    min_ns: u64,
    verdicts: Verdicts,
    /// What was last said of each target.
    said: BTreeMap<u64, Verdict>,
    /// When it was last looked whether there is anything to say, in nanoseconds of `CLOCK_MONOTONIC`.
    looked_ns: u64,
    /// The longest of each process that was asked for, in nanoseconds.
    longest: BTreeMap<u32, u64>,
    /// Whether some of these processes' stalls are left out.
    has_more_filters: bool,
    pub states: StateSource,
}

/// Where the states of what is reclaimed from come from.
#[derive(Debug)]
pub enum StateSource {
    /// The running kernel.
    Live,
    /// The same, and what it said is kept for a recording.
    Kept(Vec<(u64, Option<State>)>),
    /// A recording: what it said last.
    Recorded(BTreeMap<u64, Option<State>>),
}

/// The same with what it takes to ask.
struct Asked<'a> {
    source: &'a mut StateSource,
    cgroups: &'a mut Cgroups,
}

impl States for Asked<'_> {
    fn read(&mut self, cgroup: u64) -> Option<State> {
        let mut live = || verdict::live::Live { cgroups: self.cgroups }.read(cgroup);
        match self.source {
            StateSource::Live => live(),
            StateSource::Kept(said) => {
                let state = live();
                said.push((cgroup, state));
                state
            }
            StateSource::Recorded(said) => said.get(&cgroup).copied().flatten(),
        }
    }
}

impl Shown {
    pub fn new(
        options: &EpisodeOptions,
        request: &Request,
        scopes: bool,
        states: StateSource,
    ) -> Self {
        let EpisodeOptions { kinds, gap_ns, min_ns, .. } = options;
        let Filter { processes, threads, uid, comm, cgroup, .. } = &request.filter;
        Self {
            episodes: Episodes::new(*gap_ns, scopes),
            kinds: kinds.clone(),
            min_ns: *min_ns,
            verdicts: Verdicts::new(),
            said: BTreeMap::new(),
            looked_ns: 0,
            longest: processes.iter().map(|pid| (*pid, 0)).collect(),
            has_more_filters: !threads.is_empty()
                || uid.is_some()
                || comm.is_some()
                || cgroup.is_some(),
            states,
        }
    }

    /// Whether anything is going to come of time alone.
    pub fn waits(&self, now_ns: u64) -> bool {
        !self.episodes.is_idle()
            || !self.said.is_empty()
            || self.verdicts.targets(now_ns).next().is_some()
    }

    /// Shows the episodes that have ended; how many they were.
    /// Each is passed on to `also`.
    pub fn show(
        &mut self,
        view: &mut View,
        names: &mut Names,
        out: &mut Vec<u8>,
        mut also: impl FnMut(&Episode, &mut Names),
    ) -> u64 {
        while let Some((target, round)) = self.episodes.next_evidence() {
            self.verdicts.round(target, &round);
            // Whatever is shown: what was read back is known from one look to the next.
            let mut states = Asked { source: &mut self.states, cgroups: &mut names.cgroups };
            self.verdicts.look(target, round.end_ns, &mut states);
        }
        let mut count = 0;
        while let Some(mut episode) = self.episodes.next_finished() {
            if !episode.is_of_any(&self.kinds) {
                continue;
            }
            if let Some(longest) = self.longest.get_mut(&episode.pid) {
                *longest = episode.duration_ns.max(*longest);
            }
            if episode.duration_ns >= self.min_ns {
                count += 1;
                self.judge(&mut episode, names);
                view.episode(&episode, names, out);
                also(&episode, names);
            }
        }
        count
    }

    fn judge(&mut self, episode: &mut Episode, names: &mut Names) {
        let Some(target) = episode.target() else { return };
        let mut states = Asked { source: &mut self.states, cgroups: &mut names.cgroups };
        episode.target_verdict = self.verdicts.judge(target, episode.end_ns, &mut states);
        episode.verdict = self.verdicts.judge_one(target, &episode.evidence(), &mut states);
    }

    /// Shows which targets are judged otherwise than before, looking once a second.
    pub fn show_verdicts(
        &mut self,
        now_ns: u64,
        view: &mut View,
        names: &mut Names,
        out: &mut Vec<u8>,
    ) {
        if now_ns.saturating_sub(self.looked_ns) < LOOK_EVERY_NS {
            return;
        }
        self.looked_ns = now_ns;
        let targets: Vec<_> = self.verdicts.targets(now_ns).collect();
        // Of those without a stall in the window nothing is known any more.
        self.said.retain(|target, _| targets.contains(target));
        for target in targets {
            let mut states = Asked { source: &mut self.states, cgroups: &mut names.cgroups };
            let verdict = self.verdicts.judge(target, now_ns, &mut states);
            let before = match verdict {
                Some(verdict) => self.said.insert(target, verdict),
                None => self.said.remove(&target),
            };
            if verdict != before {
                let evidence = self.verdicts.evidence(target, now_ns);
                view.verdict(&Judged { target, at_ns: now_ns, verdict, evidence }, names, out);
            }
        }
    }

    /// Shows an OOM kill; 1 if it is one of those wanted.
    pub fn oom(&self, oom: &Oom, view: &mut View, names: &mut Names, out: &mut Vec<u8>) -> u64 {
        if !self.kinds.contains(&Kind::Oom) {
            return 0;
        }
        view.oom(oom, names, out);
        1
    }

    /// How long each process that was asked for was held up at most, where nobody took `given_up` stalls.
    pub fn certificates(
        &self,
        coverage: &Coverage,
        summary: &Summary,
        given_up: u64,
        has_ended: impl Fn(u32) -> bool,
    ) -> Vec<Certificate> {
        let certificate = |(pid, longest_ns): (&u32, &u64)| Certificate {
            longest_ns: *longest_ns,
            filtered: self.has_more_filters,
            has_ended: has_ended(*pid),
            ..Certificate::of(*pid, coverage, summary, given_up)
        };
        self.longest.iter().map(certificate).collect()
    }
}

/// Says what was watched.
pub fn say_coverage(coverage: &Coverage) {
    let watched: Vec<_> = coverage.watched().map(Kind::name).collect();
    let mut reasons: Vec<(&str, Vec<&str>)> = Vec::new();
    for (kind, reason) in coverage.missing() {
        match reasons.iter_mut().find(|(known, _)| *known == reason) {
            Some((_, kinds)) => kinds.push(kind.name()),
            None => reasons.push((reason, vec![kind.name()])),
        }
    }
    let all = watched.len() + coverage.missing().count();
    let names = if watched.is_empty() { "none".to_owned() } else { watched.join(", ") };
    let told = [format!("{} of {all} kinds watched: {names}", watched.len())];
    let missing = reasons.iter().map(|(why, kinds)| format!("not {} ({why})", kinds.join(", ")));
    let told: Vec<_> = told.into_iter().chain(missing).collect();
    say(format_args!("memtrace: {}", told.join("; ")));
}
