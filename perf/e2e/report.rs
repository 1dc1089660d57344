//! What was measured: for people on the terminal and in Markdown, for programs as JSON.

use std::fmt::{self, Write as _};
use std::fs;
use std::path::{Path, PathBuf};

use hdrhistogram::Histogram;
use serde::{Serialize, Serializer};
use uvs::demo::cluster::Error;

use crate::plot;
use crate::rig::wrong;

/// A row of the table, with all that was measured for it.
#[derive(Clone, Debug, Serialize)]
pub struct Row {
    /// As `--only` takes it.
    pub name: &'static str,
    pub title: &'static str,
    pub unit: &'static str,
    /// A line a peer.
    pub series: Vec<Series>,
    pub verdicts: Vec<Verdict>,
    /// What a reader should know of this run.
    pub notes: Vec<Note>,
    /// Distributions, for latency.
    pub distributions: Vec<Distribution>,
    /// Why runs are missing.
    pub failed: Vec<String>,
}

impl Row {
    pub fn new(name: &'static str, title: &'static str, unit: &'static str) -> Row {
        Row {
            name,
            title,
            unit,
            series: Vec::new(),
            verdicts: Vec::new(),
            notes: Vec::new(),
            distributions: Vec::new(),
            failed: Vec::new(),
        }
    }

    /// Of a run that could not be made.
    pub fn not_measured(name: &'static str, title: &'static str, why: String) -> Row {
        Row {
            failed: vec![why],
            ..Row::new(name, title, "")
        }
    }

    /// Adds what a reader should know.
    pub fn note(&mut self, text: impl Into<String>) {
        self.notes.push(Note {
            text: text.into(),
            worst: None,
        });
    }

    /// The same with a number at `{}`: of several runs' the one that `worse` takes.
    pub fn note_worst(&mut self, text: impl Into<String>, value: f64, worse: Choice) {
        self.notes.push(Note {
            text: text.into(),
            worst: Some((value, worse)),
        });
    }

    /// Adds later runs of the same row.
    pub fn add_runs(&mut self, later: Row) -> Result<(), Error> {
        if self.series.is_empty() {
            // None was measured until now.
            (self.title, self.unit) = (later.title, later.unit);
        }
        self.failed.extend(later.failed);
        for series in later.series {
            match self.series.iter_mut().find(|own| own.peer == series.peer) {
                Some(own) => own.values.extend(series.values),
                None => self.series.push(series),
            }
        }
        for verdict in later.verdicts {
            match self.verdicts.iter_mut().find(|own| own.what == verdict.what) {
                Some(own) => own.add_runs(verdict.values),
                None => self.verdicts.push(verdict),
            }
        }
        for note in later.notes {
            match self.notes.iter_mut().find(|own| own.text == note.text) {
                Some(own) => own.add_runs(&note),
                None => self.notes.push(note),
            }
        }
        for distribution in later.distributions {
            match self.distributions.iter_mut().find(|own| own.peer == distribution.peer) {
                Some(own) => own.all_ns.add(&distribution.all_ns).map_err(wrong)?,
                None => self.distributions.push(distribution),
            }
        }
        Ok(())
    }

    /// The values of a peer, if it ran.
    pub fn values(&self, peer: &str) -> Option<&[f64]> {
        let series = self.series.iter().find(|series| series.peer == peer);
        series
            .map(|series| series.values.as_slice())
            .filter(|values| !values.is_empty())
    }

    /// A goal on one peer's values.
    pub fn judge(&mut self, peer: &str, goal: Goal) {
        let measured = self.values(peer).map(<[f64]>::to_vec);
        self.verdicts.push(Verdict::of(peer.to_owned(), measured, goal));
    }

    /// A goal on a ratio, run by run.
    pub fn judge_ratio(&mut self, peer: &str, over: &str, goal: Goal) {
        self.judge_pairs(format!("{peer} / {over}"), peer, over, goal, |a, b| a / b);
    }

    /// The same ratio of a peer that is not judged: what can be reached here at all.
    pub fn compare_ratio(&mut self, peer: &str, over: &str, goal: Goal, word: &'static str) {
        self.judge_ratio(peer, over, goal);
        if let Some(verdict) = self.verdicts.last_mut() {
            verdict.word = word;
            verdict.is_judged = false;
        }
    }

    /// A goal on a difference, run by run.
    pub fn judge_difference(&mut self, peer: &str, over: &str, goal: Goal) {
        self.judge_pairs(format!("{peer} − {over}"), peer, over, goal, |a, b| a - b);
    }

    fn judge_pairs(&mut self, what: String, peer: &str, over: &str, goal: Goal, combine: fn(f64, f64) -> f64) {
        let measured = match (self.values(peer), self.values(over)) {
            (Some(ours), Some(theirs)) => Some(ours.iter().zip(theirs).map(|(a, b)| combine(*a, *b)).collect()),
            _ => None,
        };
        self.verdicts.push(Verdict::of(what, measured, goal));
    }
}

/// Takes one of two values.
type Choice = fn(f64, f64) -> f64;

/// A sentence.
#[derive(Clone, Debug)]
pub struct Note {
    text: String,
    /// What stands at `{}` in it, and which of two is the worse.
    worst: Option<(f64, Choice)>,
}

impl Note {
    fn add_runs(&mut self, later: &Note) {
        if let (Some((own, worse)), Some((later, _))) = (&mut self.worst, later.worst) {
            *own = worse(*own, later);
        }
    }
}

impl fmt::Display for Note {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self.worst {
            Some((value, _)) => f.write_str(&self.text.replace("{}", &format!("{value:.1}"))),
            None => f.write_str(&self.text),
        }
    }
}

impl Serialize for Note {
    fn serialize<S: Serializer>(&self, serializer: S) -> Result<S::Ok, S::Error> {
        serializer.collect_str(self)
    }
}

/// One peer's runs.
#[derive(Clone, Debug, Serialize)]
pub struct Series {
    pub peer: String,
    pub values: Vec<f64>,
    /// Why there are none.
    pub missing: Option<String>,
}

/// What a row is to reach.
#[derive(Clone, Copy, Debug, Serialize)]
pub struct Goal {
    pub at_most: bool,
    pub must: f64,
    pub aim: Option<f64>,
    pub unit: &'static str,
}

impl Goal {
    pub fn at_most(must: f64, aim: Option<f64>, unit: &'static str) -> Goal {
        Goal {
            at_most: true,
            must,
            aim,
            unit,
        }
    }

    pub fn at_least(must: f64, aim: Option<f64>, unit: &'static str) -> Goal {
        Goal {
            at_most: false,
            ..Goal::at_most(must, aim, unit)
        }
    }

    fn reached(&self, value: f64, limit: f64) -> bool {
        if self.at_most { value <= limit } else { value >= limit }
    }
}

/// A goal and what came of it.
#[derive(Clone, Debug, Serialize)]
pub struct Verdict {
    pub what: String,
    pub goal: Goal,
    /// One of each run.
    pub values: Vec<f64>,
    pub measured: Option<Spread>,
    pub word: &'static str,
    #[serde(skip)]
    is_judged: bool,
}

impl Verdict {
    fn of(what: String, values: Option<Vec<f64>>, goal: Goal) -> Verdict {
        let mut verdict = Verdict {
            what,
            goal,
            values: Vec::new(),
            measured: None,
            word: "not run",
            is_judged: true,
        };
        verdict.add_runs(values.unwrap_or_default());
        verdict
    }

    fn add_runs(&mut self, values: Vec<f64>) {
        self.values.extend(values);
        self.measured = Spread::of(&self.values);
        if let Some(Spread { median, .. }) = self.measured
            && self.is_judged
        {
            self.word = match self.goal {
                goal if goal.aim.is_some_and(|aim| goal.reached(median, aim)) => "PASS (aim)",
                goal if goal.reached(median, goal.must) => "PASS",
                _ => "MISS",
            };
        }
    }
}

/// Of several runs.
#[derive(Clone, Copy, Debug, Serialize)]
pub struct Spread {
    pub min: f64,
    pub median: f64,
    pub max: f64,
}

impl Spread {
    pub fn of(values: &[f64]) -> Option<Spread> {
        let mut sorted: Vec<f64> = values.iter().copied().filter(|value| value.is_finite()).collect();
        sorted.sort_by(f64::total_cmp);
        Some(Spread {
            min: *sorted.first()?,
            median: sorted[sorted.len() / 2],
            max: *sorted.last()?,
        })
    }
}

/// Of how long frames were on their way.
#[derive(Clone, Debug, Serialize)]
#[serde(into = "Percentiles")]
pub struct Distribution {
    pub peer: String,
    /// Nanoseconds.
    pub all_ns: Histogram<u64>,
}

impl Distribution {
    /// Percentiles, and their values in microseconds.
    pub fn percentiles(&self) -> Vec<(f64, f64)> {
        let value = |percentile| self.all_ns.value_at_percentile(percentile) as f64 / 1000.0;
        [1.0, 10.0, 25.0, 50.0, 75.0, 90.0, 95.0, 99.0, 99.5, 99.9, 99.99]
            .map(|percentile| (percentile, value(percentile)))
            .to_vec()
    }
}

/// A distribution as it is written.
#[derive(Serialize)]
struct Percentiles {
    peer: String,
    percentiles: Vec<(f64, f64)>,
}

impl From<Distribution> for Percentiles {
    fn from(distribution: Distribution) -> Percentiles {
        Percentiles {
            percentiles: distribution.percentiles(),
            peer: distribution.peer,
        }
    }
}

/// Where it was measured, and of what.
#[derive(Clone, Debug, Serialize)]
pub struct Machine {
    pub date: String,
    pub commit: String,
    pub machine: String,
    pub kernel: String,
    pub runs: usize,
    /// Processes that wanted a CPU when it began: more than one, and the figures are noise.
    pub load_before: String,
    pub load_after: String,
}

#[derive(Serialize)]
struct Whole<'a> {
    machine: &'a Machine,
    rows: &'a [Row],
}

/// With as many digits as mean something.
pub fn number(value: f64) -> String {
    match value.abs() {
        v if v >= 1000.0 => format!("{value:.0}"),
        v if v >= 100.0 => format!("{value:.1}"),
        v if v >= 1.0 => format!("{value:.2}"),
        _ => format!("{value:.3}"),
    }
}

/// A row as Markdown, which reads well on a terminal too.
pub fn markdown(row: &Row) -> String {
    let mut text = format!(
        "## {}: {}\n\n| {} | min | median | max |\n|---|---|---|---|\n",
        row.name, row.title, row.unit
    );
    // Writing to a String does not fail.
    for series in &row.series {
        let _ = match (Spread::of(&series.values), &series.missing) {
            (Some(s), _) => writeln!(
                text,
                "| {} | {} | {} | {} |",
                series.peer,
                number(s.min),
                number(s.median),
                number(s.max)
            ),
            (None, why) => writeln!(
                text,
                "| {} | – | {} | – |",
                series.peer,
                why.as_deref().unwrap_or("not run")
            ),
        };
    }
    if !row.verdicts.is_empty() {
        text += "\n| goal | must | aim | measured (min, median, max) | |\n|---|---|---|---|---|\n";
    }
    for verdict in &row.verdicts {
        let Goal {
            at_most,
            must,
            aim,
            unit,
        } = verdict.goal;
        let sign = if at_most { "≤" } else { "≥" };
        let aim = aim.map_or("–".to_owned(), |aim| format!("{sign} {aim} {unit}"));
        let measured = verdict.measured.map_or("–".to_owned(), |s| {
            format!("{} {} {}", number(s.min), number(s.median), number(s.max))
        });
        let _ = writeln!(
            text,
            "| {} | {sign} {must} {unit} | {aim} | {measured} | **{}** |",
            verdict.what, verdict.word
        );
    }
    for distribution in &row.distributions {
        let all: Vec<String> = distribution
            .percentiles()
            .iter()
            .map(|(percentile, value)| format!("p{percentile} {}", number(*value)))
            .collect();
        let _ = writeln!(text, "\n{}, all runs: {}", distribution.peer, all.join(", "));
    }
    let notes = row.notes.iter().map(Note::to_string);
    for note in notes.chain(row.failed.iter().cloned()) {
        let _ = writeln!(text, "\n{note}");
    }
    text
}

/// Writes Markdown, JSON and a plot a row, in files of names that are not taken.
pub fn write(folder: &Path, machine: &Machine, rows: &[Row]) -> Result<PathBuf, Error> {
    fs::create_dir_all(folder).map_err(Error::io(format!("create {}", folder.display())))?;
    let stem = free_stem(folder, machine);
    let path = |suffix: &str| folder.join(format!("{stem}{suffix}"));
    let mut text = format!(
        "# perf/endtoend, {}, commit {}\n\n{}, Linux {}. {} passes through all rows, peers by turns. Load average before {}, after {}.\n\n",
        machine.date,
        machine.commit,
        machine.machine,
        machine.kernel,
        machine.runs,
        machine.load_before,
        machine.load_after
    );
    for row in rows {
        text += &markdown(row);
        if let Some(plot) = plot::bars(row) {
            let name = format!("-{}.svg", row.name);
            put(&path(&name), &plot)?;
            let _ = write!(text, "\n![{}]({stem}{name})\n", row.title);
        }
        if let Some(plot) = plot::distributions(row) {
            let name = format!("-{}-percentiles.svg", row.name);
            put(&path(&name), &plot)?;
            let _ = write!(text, "\n![{}]({stem}{name})\n", row.title);
        }
        text.push('\n');
    }
    let json = serde_json::to_string_pretty(&Whole { machine, rows }).map_err(wrong)?;
    put(&path(".json"), &json)?;
    let file = path(".md");
    put(&file, &text)?;
    Ok(file)
}

fn put(file: &Path, text: &str) -> Result<(), Error> {
    fs::write(file, text).map_err(Error::io(format!("write {}", file.display())))
}

fn free_stem(folder: &Path, machine: &Machine) -> String {
    let day = machine.date.split(' ').next().unwrap_or_default();
    let stem = format!("{day}-{}-endtoend", machine.commit);
    let numbered = (2..).map(|n| format!("{stem}-{n}"));
    let mut names = std::iter::once(stem.clone()).chain(numbered);
    names
        .find(|name| !folder.join(format!("{name}.md")).exists())
        .unwrap_or(stem)
}
