//! In which order the runs of all rows are made.

use super::report::Row;

type MakeRows<'a> = Box<dyn FnOnce(&Runs) -> Vec<Row> + 'a>;

/// Rows that come of the same runs.
pub struct Measurement<'a> {
    /// How many runs.
    turns: usize,
    run: Box<dyn Fn() -> Vec<f64> + 'a>,
    rows: MakeRows<'a>,
    done: Runs,
}

impl<'a> Measurement<'a> {
    /// So many runs, each of which gives its numbers in the same order, and what rows they make.
    pub fn new(
        turns: usize,
        run: impl Fn() -> Vec<f64> + 'a,
        rows: impl FnOnce(&Runs) -> Vec<Row> + 'a,
    ) -> Measurement<'a> {
        Measurement {
            turns,
            run: Box::new(run),
            rows: Box::new(rows),
            done: Runs::default(),
        }
    }
}

/// The numbers of each run.
#[derive(Default)]
pub struct Runs(Vec<Vec<f64>>);

impl Runs {
    /// The `n`th number of every run that has so many.
    pub fn column(&self, n: usize) -> Vec<f64> {
        self.0.iter().filter_map(|numbers| numbers.get(n).copied()).collect()
    }
}

/// Makes the runs of all measurements, in rounds through all of them: a bad minute of the machine meets a run of each, and not all runs of
/// one. Those with fewer runs than others have them spread over the rounds.
pub fn take(mut measurements: Vec<Measurement<'_>>) -> Vec<Row> {
    let rounds = measurements.iter().map(|m| m.turns).max().unwrap_or(0);
    for round in 1..=rounds {
        eprintln!("round {round} of {rounds}");
        for measurement in &mut measurements {
            if measurement.done.0.len() * rounds < round * measurement.turns {
                measurement.done.0.push((measurement.run)());
            }
        }
    }
    measurements.into_iter().flat_map(|m| (m.rows)(&m.done)).collect()
}
