//! DEVIATIONS.md as data.

#![allow(dead_code, reason = "tests that replay frames need the cases alone")]

/// One kind.
#[derive(Debug)]
pub struct Deviation {
    /// As counted in the heading.
    pub number: usize,
    /// The heading.
    pub title: String,
    /// Why.
    pub reason: String,
    /// File and what is to be found in it: a case of a JSON file, a text of others. Empty: nothing was recorded, and the file
    /// says why.
    pub recorded: Vec<(String, String)>,
    /// File and function.
    pub tests: Vec<(String, String)>,
}

/// All kinds, in order. Panics where the file has another shape.
pub fn deviations() -> Vec<Deviation> {
    let text = include_str!("../../DEVIATIONS.md");
    text.split("\n## ").skip(1).map(deviation).collect()
}

/// What the replays of `tests/kernel/packets.json` are to excuse: the ends of names.
pub fn packet_cases() -> Vec<String> {
    let all = deviations().into_iter().flat_map(|deviation| deviation.recorded);
    all.filter(|(file, _)| file == "tests/kernel/packets.json")
        .map(|(_, case)| case)
        .collect()
}

fn deviation(section: &str) -> Deviation {
    let (heading, rest) = section.split_once("\n\n").expect("a heading and a text");
    let (number, title) = heading.split_once(". ").expect("a numbered heading");
    let (reason, lists) = rest.split_once("\n\n- Recorded: ").expect("what was recorded");
    let (recorded, tests) = lists.split_once("\n- Tests: ").expect("tests");
    Deviation {
        number: number.parse().expect("a number"),
        title: title.to_owned(),
        reason: reason.to_owned(),
        recorded: recorded_in(recorded),
        tests: tests_in(tests),
    }
}

/// `` `case`, `case` in `file` ``, or `nothing…`.
fn recorded_in(text: &str) -> Vec<(String, String)> {
    if text.starts_with("nothing") {
        return Vec::new();
    }
    let (cases, file) = text.split_once(" in ").unwrap_or_else(|| panic!("no file: {text}"));
    let file = quoted(file);
    let pairs = quoted(cases).into_iter().map(|case| (file[0].clone(), case));
    pairs.collect()
}

/// `` `file` `function`, `function`; `file` `function` ``.
fn tests_in(text: &str) -> Vec<(String, String)> {
    let of_file = |part: &str| {
        let mut names = quoted(part).into_iter();
        let file = names.next().unwrap_or_else(|| panic!("no file: {part}"));
        names.map(move |name| (file.clone(), name)).collect::<Vec<_>>()
    };
    text.split(';').flat_map(of_file).collect()
}

fn quoted(text: &str) -> Vec<String> {
    text.split('`').skip(1).step_by(2).map(str::to_owned).collect()
}
