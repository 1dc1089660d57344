//! What all kept results say of each goal: in how many it was met, and between which medians, by machine. Run by `perf/history`.

use std::fs;
use std::io::Write;
use std::path::{Path, PathBuf};
use std::process::ExitCode;

use serde::Deserialize;
use serde::de::DeserializeOwned;

/// A line of what `perf/dataplane` keeps, as far as it is needed here.
#[derive(Deserialize)]
struct Line {
    what: String,
    unit: String,
    ours: Spread,
    ratio: Option<f64>,
    goal: Option<LineGoal>,
    goal_of_ratio: bool,
    must_met: Option<bool>,
}

#[derive(Deserialize)]
struct LineGoal {
    must: f64,
    at_least: bool,
}

/// What `perf/endtoend` keeps, as far as it is needed here.
#[derive(Deserialize)]
struct Whole {
    machine: Machine,
    rows: Vec<Row>,
}

#[derive(Deserialize)]
struct Machine {
    machine: String,
}

#[derive(Deserialize)]
struct Row {
    name: String,
    verdicts: Vec<Verdict>,
}

#[derive(Deserialize)]
struct Verdict {
    what: String,
    goal: VerdictGoal,
    measured: Option<Spread>,
    word: String,
}

#[derive(Deserialize)]
struct VerdictGoal {
    at_most: bool,
    must: f64,
    unit: String,
}

#[derive(Deserialize)]
struct Spread {
    median: f64,
}

/// One goal in one result.
struct Figure {
    goal: String,
    must: String,
    machine: String,
    median: f64,
    /// `None`: of a peer, to compare with.
    met: Option<bool>,
}

impl Figure {
    fn of_line(line: Line, machine: &str) -> Option<Figure> {
        let goal = line.goal?;
        let (median, unit) = match line.goal_of_ratio {
            true => (line.ratio?, "x the floor"),
            false => (line.ours.median, line.unit.as_str()),
        };
        Some(Figure {
            goal: line.what,
            must: must(!goal.at_least, goal.must, unit),
            machine: machine.to_owned(),
            median,
            met: line.must_met,
        })
    }

    fn of_verdict(row: &str, verdict: Verdict, machine: &str) -> Option<Figure> {
        let VerdictGoal {
            at_most,
            must: limit,
            unit,
        } = verdict.goal;
        Some(Figure {
            goal: format!("{row}: {}", verdict.what),
            must: must(at_most, limit, &unit),
            machine: machine.to_owned(),
            median: verdict.measured?.median,
            met: match verdict.word.as_str() {
                "MISS" => Some(false),
                word => word.starts_with("PASS").then_some(true),
            },
        })
    }
}

fn must(at_most: bool, limit: f64, unit: &str) -> String {
    format!("{} {limit} {unit}", if at_most { "≤" } else { "≥" })
}

fn main() -> ExitCode {
    let folder = Path::new(env!("CARGO_MANIFEST_DIR")).join("perf/results");
    let folder = std::env::args_os().nth(1).map_or(folder, PathBuf::from);
    let printed = read(&folder).and_then(|figures| {
        let out = std::io::stdout().write_all(table(&figures).as_bytes());
        out.map_err(|error| format!("cannot print: {error}"))
    });
    match printed {
        Ok(()) => ExitCode::SUCCESS,
        Err(error) => {
            eprintln!("perf/history: {error}");
            ExitCode::FAILURE
        }
    }
}

/// All figures, those of the newest day first.
fn read(folder: &Path) -> Result<Vec<Figure>, String> {
    let failed = |error| format!("{}: {error}", folder.display());
    let entries = fs::read_dir(folder).map_err(failed)?;
    let files: Result<Vec<PathBuf>, _> = entries.map(|entry| entry.map(|entry| entry.path())).collect();
    let mut files = files.map_err(failed)?;
    files.sort();
    let mut figures = Vec::new();
    for file in files.iter().rev() {
        // Second results of a commit are numbered: …-endtoend-2.json.
        let name = file.file_name().unwrap_or_default().to_string_lossy();
        match name.strip_suffix(".json") {
            Some(name) if name.contains("-endtoend") => figures.extend(read_endtoend(file)?),
            Some(name) if name.contains("-dataplane") => figures.extend(read_dataplane(file)?),
            _ => {}
        }
    }
    match figures.is_empty() {
        true => Err(format!("{}: no results are there", folder.display())),
        false => Ok(figures),
    }
}

fn read_endtoend(file: &Path) -> Result<Vec<Figure>, String> {
    let Whole { machine, rows } = parse(file, &text(file)?)?;
    let verdicts = rows
        .into_iter()
        .flat_map(|row| row.verdicts.into_iter().map(move |verdict| (row.name.clone(), verdict)));
    let figures = verdicts.filter_map(|(row, verdict)| Figure::of_verdict(&row, verdict, &machine.machine));
    Ok(figures.collect())
}

fn read_dataplane(file: &Path) -> Result<Vec<Figure>, String> {
    // The machine is only said for people: "AMD EPYC, 2 CPUs, Linux …".
    let table = text(&file.with_extension("md"))?;
    let machine = table.lines().find_map(|line| line.split_once(", Linux "));
    let (machine, _) = machine.ok_or_else(|| format!("{}: the table beside it names no machine", file.display()))?;
    let lines: Result<Vec<Line>, _> = text(file)?.lines().map(|line| parse(file, line)).collect();
    let figures = lines?.into_iter().filter_map(|line| Figure::of_line(line, machine));
    Ok(figures.collect())
}

fn text(file: &Path) -> Result<String, String> {
    fs::read_to_string(file).map_err(|error| format!("{}: {error}", file.display()))
}

fn parse<T: DeserializeOwned>(file: &Path, json: &str) -> Result<T, String> {
    serde_json::from_str(json).map_err(|error| format!("{}: {error}", file.display()))
}

/// In Markdown, a line a goal.
fn table(figures: &[Figure]) -> String {
    let machines = distinct(figures.iter().map(|figure| figure.machine.as_str()));
    let heads: String = machines
        .iter()
        .map(|machine| format!(" {machine}: met | medians |"))
        .collect();
    let mut text = format!(
        "| goal | must |{heads}\n|---|---|{}\n",
        "---|---|".repeat(machines.len())
    );
    for (goal, must) in distinct(
        figures
            .iter()
            .map(|figure| (figure.goal.as_str(), figure.must.as_str())),
    ) {
        let of_goal = || {
            figures
                .iter()
                .filter(|figure| figure.goal == goal && figure.must == must)
        };
        let cells = machines.iter().map(|machine| {
            let these: Vec<&Figure> = of_goal().filter(|figure| figure.machine == *machine).collect();
            cells(&these)
        });
        text += &format!("| {goal} | {must} |{}\n", cells.collect::<String>());
    }
    text
}

/// In how many it was met; the least, the middle and the greatest.
fn cells(figures: &[&Figure]) -> String {
    let mut medians: Vec<f64> = figures.iter().map(|figure| figure.median).collect();
    medians.sort_by(f64::total_cmp);
    let (Some(least), Some(greatest)) = (medians.first(), medians.last()) else {
        return " – | – |".to_owned();
    };
    let judged: Vec<bool> = figures.iter().filter_map(|figure| figure.met).collect();
    let met = match judged.len() {
        0 => "a peer".to_owned(),
        of => format!("{} of {of}", judged.iter().filter(|met| **met).count()),
    };
    let middle = medians[medians.len() / 2];
    format!(" {met} | {} {} {} |", number(*least), number(middle), number(*greatest))
}

/// Three digits of it.
fn number(value: f64) -> String {
    match value.abs() {
        100.0.. => format!("{value:.0}"),
        10.0..100.0 => format!("{value:.1}"),
        _ => format!("{value:.2}"),
    }
}

/// Each once, in the order of their first.
fn distinct<T: PartialEq>(values: impl Iterator<Item = T>) -> Vec<T> {
    let mut all = Vec::new();
    values.for_each(|value| {
        if !all.contains(&value) {
            all.push(value);
        }
    });
    all
}
