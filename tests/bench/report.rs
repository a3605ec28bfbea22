//! What the bench has to say: a row for each measure, as a table and as JSON.

use std::fmt::{self, Write as _};

use serde::{Deserialize, Serialize};

use crate::stats::Spread;

/// Version of the JSON, which a change of what keys mean raises.
const VERSION: u32 = 1;

/// What a measure must be.
#[derive(Clone, Copy, Debug, PartialEq, Serialize, Deserialize)]
pub enum Budget {
    /// No more than this.
    Most(f64),
    /// No less than this.
    Least(f64),
    /// No more than so many times what it is compared with.
    MostTimes(f64),
    /// No less than so many times what it is compared with.
    LeastTimes(f64),
}

/// Something else measured in the same run.
#[derive(Clone, Debug, Serialize, Deserialize)]
pub struct Against {
    /// What it is.
    pub name: String,
    /// Its median, in the measure's unit.
    pub median: f64,
}

/// A measure. As it is serialized here it goes from one bench to another; [`Report::json`] is for everybody else.
#[derive(Clone, Debug, Serialize, Deserialize)]
pub struct Row {
    /// What was measured.
    pub name: String,
    /// Of all numbers.
    pub unit: String,
    /// One value for each round; none where it was not measured.
    pub values: Vec<f64>,
    /// The peer, or the floor.
    pub against: Option<Against>,
    /// All of them are to be met, by the median unless `judged` says otherwise.
    pub budget: Vec<Budget>,
    /// What is held against the budget instead of the median.
    pub judged: Option<f64>,
    /// What the reader has to know.
    pub note: String,
    /// Whether there should be more values than there are.
    pub failed: bool,
}

impl Row {
    /// A measure with its values.
    pub fn new(name: impl Into<String>, unit: &str, values: Vec<f64>) -> Self {
        let (name, unit, note) = (name.into(), unit.to_owned(), String::new());
        Self {
            name,
            unit,
            values,
            against: None,
            budget: Vec::new(),
            judged: None,
            note,
            failed: false,
        }
    }

    /// A measure that was not made, and why.
    pub fn missing(name: impl Into<String>, unit: &str, why: impl Into<String>) -> Self {
        Self::new(name, unit, Vec::new()).noting(why)
    }

    /// Compares it.
    pub fn against(mut self, name: &str, values: &[f64]) -> Self {
        self.against = Spread::of(values)
            .map(|spread| Against { name: name.to_owned(), median: spread.median });
        self
    }

    /// Adds to what it must be.
    pub fn within(mut self, budget: Budget) -> Self {
        self.budget.push(budget);
        self
    }

    /// Holds this against the budget, not the median.
    pub fn judged(mut self, value: f64) -> Self {
        self.judged = Some(value);
        self
    }

    /// Adds to what the reader has to know.
    pub fn noting(mut self, note: impl Into<String>) -> Self {
        let note = note.into();
        if !self.note.is_empty() && !note.is_empty() {
            self.note.push_str("; ");
        }
        self.note.push_str(&note);
        self
    }

    /// Says that stalls were lost, if any were: those are cheaper.
    pub fn losing(self, lost: u64) -> Self {
        if lost > 0 { self.noting(format!("{lost} stalls found no room")) } else { self }
    }

    /// A measure that could not be made, or not to its end. The values that there are stay.
    pub fn failing(mut self, why: impl fmt::Display) -> Self {
        self.failed = true;
        let note = match self.values.len() {
            0 => format!("failed: {why}"),
            1 => format!("failed after 1 round: {why}"),
            rounds => format!("failed after {rounds} rounds: {why}"),
        };
        self.noting(note)
    }

    /// Its values in short.
    pub fn spread(&self) -> Option<Spread> {
        Spread::of(&self.values)
    }

    /// Whether it is within its budget; `None` where it has none, or there is nothing to tell it by.
    pub fn is_met(&self) -> Option<bool> {
        let value = self.judged.or_else(|| Some(self.spread()?.median))?;
        let is_met = |budget: &Budget| match *budget {
            Budget::Most(most) => Some(value <= most),
            Budget::Least(least) => Some(value >= least),
            Budget::MostTimes(times) => Some(value <= times * self.against.as_ref()?.median),
            Budget::LeastTimes(times) => Some(value >= times * self.against.as_ref()?.median),
        };
        let all: Option<Vec<bool>> = self.budget.iter().map(is_met).collect();
        all.filter(|all| !all.is_empty()).map(|all| all.into_iter().all(|met| met))
    }
}

impl fmt::Display for Budget {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match *self {
            Self::Most(most) => write!(f, "<= {}", number(most)),
            Self::Least(least) => write!(f, ">= {}", number(least)),
            Self::MostTimes(times) => write!(f, "<= {}x", number(times)),
            Self::LeastTimes(times) => write!(f, ">= {}x", number(times)),
        }
    }
}

/// A row as JSON has it.
#[derive(Serialize)]
struct Shown<'a> {
    name: &'a str,
    unit: &'a str,
    rounds: usize,
    min: Option<f64>,
    median: Option<f64>,
    max: Option<f64>,
    values: &'a [f64],
    against: Option<&'a Against>,
    budget: Vec<String>,
    judged: Option<f64>,
    met: Option<bool>,
    note: &'a str,
}

impl<'a> Shown<'a> {
    fn new(row: &'a Row) -> Self {
        let Row { name, unit, values, against, budget, judged, note, failed: _ } = row;
        let spread = row.spread();
        Self {
            name,
            unit,
            rounds: values.len(),
            min: spread.map(|spread| spread.min),
            median: spread.map(|spread| spread.median),
            max: spread.map(|spread| spread.max),
            values,
            against: against.as_ref(),
            budget: budget.iter().map(ToString::to_string).collect(),
            judged: judged.or_else(|| Some(spread?.median)),
            met: row.is_met(),
            note,
        }
    }
}

/// All rows, and where they are from. It is serialized as [`Row`] is.
#[derive(Debug, Serialize, Deserialize)]
pub struct Report {
    /// The running kernel's release.
    pub kernel: String,
    /// The CPUs' model.
    pub cpu: String,
    /// Cores that were used.
    pub cores: usize,
    /// Whether all of them are one physical core.
    pub siblings: bool,
    /// Whether rounds were fewer and shorter.
    pub quick: bool,
    /// Rounds of each measure; some have more values.
    pub rounds: usize,
    /// The measures.
    pub rows: Vec<Row>,
}

impl Report {
    /// One object.
    pub fn json(&self) -> serde_json::Result<String> {
        #[derive(Serialize)]
        struct Whole<'a> {
            r#type: &'static str,
            version: u32,
            kernel: &'a str,
            cpu: &'a str,
            cores: usize,
            quick: bool,
            rounds: usize,
            rows: Vec<Shown<'a>>,
        }
        let Self { kernel, cpu, cores, siblings: _, quick, rounds, rows } = self;
        let rows = rows.iter().map(Shown::new).collect();
        let r#type = "memtrace-bench";
        let whole = Whole {
            r#type,
            version: VERSION,
            kernel,
            cpu,
            cores: *cores,
            quick: *quick,
            rounds: *rounds,
            rows,
        };
        serde_json::to_string_pretty(&whole)
    }

    /// All of it for people.
    pub fn text(&self) -> String {
        let quick = if self.quick { ", quick: a look, not for publication" } else { "" };
        let Self { kernel, cpu, cores, rounds, .. } = self;
        let siblings = if self.siblings {
            " (threads of one physical core: memtrace's reading slows the making of stalls down)"
        } else {
            ""
        };
        let table = self.table();
        format!("Linux {kernel}, {cpu}, {cores} cores{siblings}, {rounds} rounds{quick}\n\n{table}")
    }

    /// The names of measures that could not be made, or not to their ends.
    pub fn failed(&self) -> Vec<&str> {
        self.rows.iter().filter(|row| row.failed).map(|row| row.name.as_str()).collect()
    }

    /// A table for people, with a line of its own for what a number cannot tell.
    fn table(&self) -> String {
        let head =
            ["measure", "unit", "min", "median", "max", "against", "", "times", "budget", "met"];
        let cells: Vec<[String; 10]> = self.rows.iter().map(cells).collect();
        let mut widths = head.map(str::len);
        for row in &cells {
            for (width, cell) in widths.iter_mut().zip(row) {
                *width = (*width).max(cell.chars().count());
            }
        }
        let mut text = String::new();
        line(&mut text, &head.map(str::to_owned), &widths);
        for (row, cells) in self.rows.iter().zip(&cells) {
            line(&mut text, cells, &widths);
            if !row.note.is_empty() {
                let _written: fmt::Result = writeln!(text, "    {}", row.note);
            }
        }
        text
    }
}

fn cells(row: &Row) -> [String; 10] {
    let of_spread = |value: fn(&Spread) -> f64| {
        row.spread().map_or_else(|| "-".to_owned(), |spread| number(value(&spread)))
    };
    let against = row.against.as_ref();
    let times = row.spread().zip(against).filter(|(_, against)| against.median > 0.0);
    let budget: Vec<_> = row.budget.iter().map(ToString::to_string).collect();
    let met = match row.is_met() {
        Some(true) => "yes",
        Some(false) => "NO",
        None if row.budget.is_empty() => "",
        None => "-",
    };
    [
        row.name.clone(),
        row.unit.clone(),
        of_spread(|spread| spread.min),
        of_spread(|spread| spread.median),
        of_spread(|spread| spread.max),
        against.map_or_else(String::new, |against| against.name.clone()),
        against.map_or_else(String::new, |against| number(against.median)),
        times.map_or_else(String::new, |(spread, against)| {
            format!("{:.2}", spread.median / against.median)
        }),
        budget.join(", "),
        met.to_owned(),
    ]
}

/// Columns of words to the left, of numbers to the right.
fn line(text: &mut String, cells: &[String; 10], widths: &[usize; 10]) {
    let mut line = String::new();
    for (column, (cell, &width)) in cells.iter().zip(widths).enumerate() {
        let padded = if [2, 3, 4, 6, 7].contains(&column) {
            format!("{cell:>width$}  ")
        } else {
            format!("{cell:<width$}  ")
        };
        line.push_str(&padded);
    }
    text.push_str(line.trim_end());
    text.push('\n');
}

/// A number as people read it: three or four digits that count, thousands apart.
fn number(value: f64) -> String {
    let decimals = match value.abs() {
        0.0 => 0,
        size if size < 1.0 => 3,
        size if size < 10.0 => 2,
        size if size < 1000.0 && value.fract() != 0.0 => 1,
        _ => 0,
    };
    let text = format!("{value:.decimals$}");
    let (whole, fraction) = text.split_once('.').map_or((&*text, None), |(a, b)| (a, Some(b)));
    let (sign, digits) = whole.strip_prefix('-').map_or(("", whole), |digits| ("-", digits));
    let mut grouped = String::new();
    for (index, digit) in digits.chars().enumerate() {
        if index > 0 && (digits.len() - index).is_multiple_of(3) {
            grouped.push(',');
        }
        grouped.push(digit);
    }
    let fraction = fraction.map(|digits| digits.trim_end_matches('0')).filter(|f| !f.is_empty());
    fraction.map_or_else(|| format!("{sign}{grouped}"), |f| format!("{sign}{grouped}.{f}"))
}

#[cfg(test)]
mod tests {
    use super::*;

    fn row() -> Row {
        Row::new("time", "ns", vec![300.0, 200.0, 400.0]).against("nothing", &[100.0])
    }

    #[test]
    fn the_median_is_held_against_the_budget() {
        assert_eq!(row().is_met(), None);
        assert_eq!(row().within(Budget::Most(300.0)).is_met(), Some(true));
        assert_eq!(row().within(Budget::Most(299.0)).is_met(), Some(false));
        assert_eq!(row().within(Budget::Least(301.0)).is_met(), Some(false));
        assert_eq!(row().within(Budget::MostTimes(3.0)).is_met(), Some(true));
        assert_eq!(row().within(Budget::MostTimes(2.9)).is_met(), Some(false));
    }

    #[test]
    fn all_of_the_budget_is_to_be_met() {
        let both = row().within(Budget::Most(500.0)).within(Budget::MostTimes(2.0));
        assert_eq!(both.is_met(), Some(false));
        assert_eq!(row().within(Budget::Most(300.0)).judged(310.0).is_met(), Some(false));
    }

    #[test]
    fn what_was_not_measured_is_not_met_either() {
        let missing = Row::missing("time", "ns", "no such program").within(Budget::Most(1.0));
        assert_eq!(missing.is_met(), None);
        let alone = Row::new("time", "ns", vec![1.0]).within(Budget::MostTimes(2.0));
        assert_eq!(alone.is_met(), None);
    }

    #[test]
    fn what_fails_keeps_its_values() {
        let failed = row().failing("it broke");
        assert_eq!(failed.values, row().values);
        assert_eq!(failed.note, "failed after 3 rounds: it broke");
        let mut report = report();
        assert!(report.failed().is_empty(), "what is not installed has not failed");
        report.rows.push(failed);
        assert_eq!(report.failed(), ["time"]);
    }

    #[test]
    fn the_head_says_that_there_is_one_physical_core() {
        let mut report = report();
        assert!(report.text().starts_with("Linux 6.1, Some CPU, 2 cores, 3 rounds, quick"));
        report.siblings = true;
        assert!(report.text().contains("2 cores (threads of one physical core"));
    }

    #[test]
    fn numbers_are_short() {
        let shown = [0.0, 0.0123, 0.5, 1.0, 12.345, 300_000.4, -1234.0, 1_000_000.0].map(number);
        let expected = ["0", "0.012", "0.5", "1", "12.3", "300,000", "-1,234", "1,000,000"];
        assert_eq!(shown, expected);
    }

    fn report() -> Report {
        let rows = vec![
            row().within(Budget::Most(500.0)).within(Budget::MostTimes(2.0)),
            Row::missing("peer", "ns", "not installed"),
        ];
        Report {
            kernel: "6.1".into(),
            cpu: "Some CPU".into(),
            cores: 2,
            siblings: false,
            quick: true,
            rounds: 3,
            rows,
        }
    }

    #[test]
    fn the_table() {
        let expected = "\
measure  unit  min  median  max  against       times  budget         met
time     ns    200     300  400  nothing  100   3.00  <= 500, <= 2x  NO
peer     ns      -       -    -
    not installed
";
        assert_eq!(report().table(), expected);
    }

    #[test]
    fn the_json_has_every_row_with_its_verdict() {
        let json: serde_json::Value =
            serde_json::from_str(&report().json().expect("numbers")).expect("JSON");
        assert_eq!(json["version"], 1);
        assert_eq!(json["quick"], true);
        let row = &json["rows"][0];
        assert_eq!((&row["name"], &row["rounds"]), (&"time".into(), &3.into()));
        assert_eq!((&row["median"], &row["max"]), (&300.0.into(), &400.0.into()));
        assert_eq!(row["against"]["median"], 100.0);
        assert_eq!(row["budget"], serde_json::json!(["<= 500", "<= 2x"]));
        assert_eq!(row["met"], false);
        let missing = &json["rows"][1];
        assert_eq!((&missing["median"], &missing["met"]), (&().into(), &().into()));
        assert_eq!(missing["note"], "not installed");
    }
}
