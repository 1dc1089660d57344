//! The table, for people and as JSON.

use std::fs;
use std::path::{Path, PathBuf};
use std::process::Command;

use serde::Serialize;

/// What the runs of one row gave.
#[derive(Clone, Copy, Debug, Serialize)]
pub struct Spread {
    pub median: f64,
    pub min: f64,
    pub max: f64,
}

impl Spread {
    /// `None` without runs.
    fn of(runs: &[f64]) -> Option<Spread> {
        let mut sorted = runs.to_vec();
        sorted.sort_by(f64::total_cmp);
        Some(Spread {
            median: *sorted.get(sorted.len() / 2)?,
            min: *sorted.first()?,
            max: *sorted.last()?,
        })
    }

    fn print(&self) -> (String, String) {
        let digits = match self.median {
            100.0.. => 0,
            10.0..100.0 => 1,
            _ => 2,
        };
        let Spread { median, min, max } = *self;
        let around = if min == max {
            String::new()
        } else {
            format!("{min:.digits$}-{max:.digits$}")
        };
        (format!("{median:.digits$}"), around)
    }
}

/// What a row is to reach.
#[derive(Clone, Copy, Debug, Serialize)]
pub struct Goal {
    must: f64,
    aim: Option<f64>,
    at_least: bool,
}

impl Goal {
    pub fn at_most(must: f64, aim: Option<f64>) -> Goal {
        Goal {
            must,
            aim,
            at_least: false,
        }
    }

    pub fn at_least(must: f64, aim: f64) -> Goal {
        Goal {
            must,
            aim: Some(aim),
            at_least: true,
        }
    }

    fn is_met(&self, limit: f64, value: f64) -> bool {
        if self.at_least { value >= limit } else { value <= limit }
    }

    fn verdict(&self, limit: f64, value: f64) -> String {
        let sign = if self.at_least { ">=" } else { "<=" };
        let verdict = if self.is_met(limit, value) { "PASS" } else { "MISS" };
        format!("{sign} {limit} {verdict}")
    }
}

/// One figure beside its floor and its goal.
#[derive(Debug, Serialize)]
pub struct Row {
    what: String,
    unit: &'static str,
    ours: Spread,
    floor: Option<Spread>,
    ratio: Option<f64>,
    goal: Option<Goal>,
    /// The goal is one of the ratio.
    goal_of_ratio: bool,
    must_met: Option<bool>,
    aim_met: Option<bool>,
}

impl Row {
    pub fn new(what: String, unit: &'static str, ours: &[f64]) -> Row {
        Row {
            what,
            unit,
            ours: Spread::of(ours).expect("a row has runs"),
            floor: None,
            ratio: None,
            goal: None,
            goal_of_ratio: false,
            must_met: None,
            aim_met: None,
        }
    }

    /// What the floor did; nothing when it was not built.
    pub fn beside(mut self, floor: &[f64]) -> Row {
        self.floor = Spread::of(floor);
        self.ratio = self.floor.map(|floor| self.ours.median / floor.median);
        self
    }

    pub fn goal(mut self, goal: Goal) -> Row {
        self.goal = Some(goal);
        self.judge()
    }

    pub fn ratio_goal(mut self, goal: Goal) -> Row {
        self.goal_of_ratio = true;
        self.goal(goal)
    }

    fn judged(&self) -> Option<f64> {
        match self.goal_of_ratio {
            true => self.ratio,
            false => Some(self.ours.median),
        }
    }

    fn judge(mut self) -> Row {
        if let (Some(goal), Some(value)) = (self.goal, self.judged()) {
            self.must_met = Some(goal.is_met(goal.must, value));
            self.aim_met = goal.aim.map(|aim| goal.is_met(aim, value));
        }
        self
    }

    fn cells(&self) -> [String; COLUMNS.len()] {
        let (median, around) = self.ours.print();
        let (floor, floor_around) = self.floor.map(|floor| floor.print()).unwrap_or_default();
        let verdict = |limit: Option<f64>| match (self.goal, limit, self.judged()) {
            (Some(goal), Some(limit), Some(value)) => goal.verdict(limit, value),
            _ => String::new(),
        };
        [
            self.what.clone(),
            self.unit.to_owned(),
            median,
            around,
            floor,
            floor_around,
            self.ratio.map(|ratio| format!("{ratio:.2}")).unwrap_or_default(),
            verdict(self.goal.map(|goal| goal.must)),
            verdict(self.goal.and_then(|goal| goal.aim)),
        ]
    }
}

/// Names and widths.
const COLUMNS: [(&str, usize); 9] = [
    ("what", 52),
    ("unit", 19),
    ("median", 7),
    ("min-max", 13),
    ("floor", 6),
    ("min-max", 11),
    ("ratio", 5),
    ("must", 12),
    ("aim", 12),
];

/// Every row so far.
pub struct Report {
    rows: Vec<Row>,
    notes: Vec<String>,
    load_before: String,
}

impl Report {
    pub fn new() -> Report {
        Report {
            rows: Vec::new(),
            notes: Vec::new(),
            load_before: load(),
        }
    }

    pub fn add(&mut self, rows: Vec<Row>) {
        self.rows.extend(rows);
    }

    /// Something that is missing.
    pub fn note(&mut self, text: &str) {
        self.notes.push(text.to_owned());
    }

    /// The table, and below it what a reader has to know.
    pub fn print(&mut self) {
        if self.rows.iter().any(|row| row.goal_of_ratio && row.floor.is_none()) {
            self.note("no floor: run perf/dataplane, which builds it");
        }
        let count = |met: fn(&Row) -> Option<bool>| {
            let all = self.rows.iter().filter_map(met);
            let (met, judged) = all.fold((0, 0), |(met, judged), is| (met + is as usize, judged + 1));
            format!("{met} of {judged}")
        };
        let (must, aim) = (count(|row| row.must_met), count(|row| row.aim_met));
        self.note(&format!("musts met: {must}; aims met: {aim}"));
        println!("{}", line(&COLUMNS.map(|(name, _)| name.to_owned())));
        println!("{}", line(&COLUMNS.map(|(_, width)| "-".repeat(width))));
        self.rows.iter().for_each(|row| println!("{}", line(&row.cells())));
        self.notes.iter().for_each(|note| println!("{note}"));
    }

    /// One object a line.
    pub fn write_json(&self, file: &Path) -> Result<(), String> {
        let rows = self.rows.iter().map(serde_json::to_string);
        let lines: Result<Vec<String>, _> = rows.collect();
        let lines = lines.map_err(|error| error.to_string())?;
        write(file, &(lines.join("\n") + "\n"))
    }

    /// Into perf/results, beside all that were kept before.
    pub fn keep(&self) -> Result<(), String> {
        let date = said_by("date", &["+%F"]);
        let commit = said_by("git", &["describe", "--always", "--dirty", "--exclude", "*"]);
        let folder = Path::new(env!("CARGO_MANIFEST_DIR")).join("perf/results");
        let mut name = format!("{date}-{commit}-dataplane");
        for n in 2.. {
            if !folder.join(format!("{name}.md")).exists() {
                break;
            }
            name = format!("{date}-{commit}-dataplane-{n}");
        }
        let path = |extension: &str| -> PathBuf { folder.join(format!("{name}.{extension}")) };
        write(&path("md"), &self.markdown(&date, &commit))?;
        self.write_json(&path("json"))?;
        println!("kept: {}", path("md").display());
        Ok(())
    }

    fn markdown(&self, date: &str, commit: &str) -> String {
        let mut text = format!("# perf/dataplane, {date}, commit {commit}\n\n{}\n\n", machine());
        text += &format!("Load average before: {}; after: {}.\n\n", self.load_before, load());
        let row = |cells: &[String]| format!("| {} |\n", cells.join(" | "));
        text += &row(&COLUMNS.map(|(name, _)| name.to_owned()));
        text += &row(&COLUMNS.map(|_| "---".to_owned()));
        for line in &self.rows {
            text += &row(&line.cells());
        }
        for note in &self.notes {
            text += &format!("\n{note}\n");
        }
        text
    }
}

fn line(cells: &[String; COLUMNS.len()]) -> String {
    let padded = cells.iter().zip(COLUMNS).enumerate().map(|(n, (cell, (_, width)))| {
        if (2..7).contains(&n) {
            format!("{cell:>width$}")
        } else {
            format!("{cell:<width$}")
        }
    });
    padded.collect::<Vec<_>>().join(" ").trim_end().to_owned()
}

fn write(file: &Path, text: &str) -> Result<(), String> {
    fs::write(file, text).map_err(|error| format!("{}: {error}", file.display()))
}

/// CPU, kernel, memory and compilers, in one line.
fn machine() -> String {
    let read = |file: &str| fs::read_to_string(file).unwrap_or_default();
    let field = |file: &str, name: &str| {
        let text = read(file);
        let line = text.lines().find(|line| line.starts_with(name)).unwrap_or_default();
        line.split_once(':').map_or("?", |(_, value)| value.trim()).to_owned()
    };
    let cpus = std::thread::available_parallelism().map_or(0, usize::from);
    format!(
        "{}, {cpus} CPUs, Linux {}, memory {}, {}, {}.",
        field("/proc/cpuinfo", "model name"),
        read("/proc/sys/kernel/osrelease").trim(),
        field("/proc/meminfo", "MemTotal"),
        rustc(),
        said_by("gcc", &["--version"]),
    )
}

fn load() -> String {
    let text = fs::read_to_string("/proc/loadavg").unwrap_or_default();
    text.split(' ').take(3).collect::<Vec<_>>().join(" ")
}

/// The compiler's version.
pub fn rustc() -> String {
    said_by("rustc", &["--version"])
}

/// The first line of what a program prints; "?" when it cannot be asked.
fn said_by(program: &str, arguments: &[&str]) -> String {
    let folder = env!("CARGO_MANIFEST_DIR");
    let output = Command::new(program).args(arguments).current_dir(folder).output();
    let text = output.map(|output| String::from_utf8_lossy(&output.stdout).into_owned());
    let line = text.ok().and_then(|text| text.lines().next().map(str::to_owned));
    line.unwrap_or_else(|| "?".to_owned())
}
