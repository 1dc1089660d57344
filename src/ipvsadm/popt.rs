//! Options the way popt 1.19 reads them, which `ipvsadm` is linked with.
//!
//! What differs from the common rules: a short option may have its value behind `=` (`-w=5` as well as `-w5`); long
//! names are never abbreviated; an optional value (`-p`) is taken from the next word unless that begins with `-`; a
//! word that is not an option waits until all options are read; a lone `-` is such a word; `--` ends the options.

/// An option: what popt's table says of it.
#[derive(Clone, Copy, Debug)]
pub struct Known<T> {
    /// Long name.
    pub long: &'static str,
    /// Short name, if it has one.
    pub short: Option<char>,
    /// Whether it has a value.
    pub value: Value,
    /// What it means.
    pub meaning: T,
}

/// Whether an option has a value.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Value {
    /// Never.
    None,
    /// Always.
    Required,
    /// Perhaps.
    Optional,
}

/// One option that was read.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Found<T> {
    /// What it means.
    pub meaning: T,
    /// Its value, as written.
    pub value: Option<String>,
}

/// An option that could not be read: the word as written and popt's words for what is wrong.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Unreadable {
    /// The word it stands in.
    pub word: String,
    /// What is wrong.
    pub reason: &'static str,
}

/// Reads words from left to right.
pub struct Reader<'a, T: 'static> {
    known: &'static [Known<T>],
    words: &'a [String],
    next: usize,
    /// What is left of a word of short options.
    bundle: Option<&'a str>,
    options_ended: bool,
    rest: Vec<String>,
}

impl<'a, T: Copy> Reader<'a, T> {
    /// A reader over `words`, without the program's name.
    pub fn new(known: &'static [Known<T>], words: &'a [String]) -> Self {
        Reader {
            known,
            words,
            next: 0,
            bundle: None,
            options_ended: false,
            rest: Vec::new(),
        }
    }

    /// The next option, or `None` when there are no more.
    pub fn next(&mut self) -> Option<Result<Found<T>, Unreadable>> {
        if let Some(bundle) = self.bundle.take() {
            return Some(self.short(bundle));
        }
        loop {
            let word = self.words.get(self.next)?;
            self.next += 1;
            if self.options_ended || !word.starts_with('-') || word == "-" {
                self.rest.push(word.clone());
            } else if word == "--" {
                self.options_ended = true;
            } else if let Some(long) = word.strip_prefix("--") {
                return Some(self.long(long));
            } else {
                return Some(self.short(&word[1..]));
            }
        }
    }

    /// The word that the last option stood in, as popt's error messages name it.
    pub fn word(&self) -> &str {
        self.words.get(self.next.wrapping_sub(1)).map_or("", String::as_str)
    }

    /// The words that were no options; all of them once [`next`](Self::next) has returned `None`.
    pub fn into_rest(self) -> Vec<String> {
        self.rest
    }

    fn long(&mut self, text: &'a str) -> Result<Found<T>, Unreadable> {
        let (name, value) = match text.split_once('=') {
            Some((name, value)) => (name, Some(value)),
            None => (text, None),
        };
        let known = self.known.iter().find(|known| known.long == name);
        let known = *known.ok_or_else(|| self.unreadable("unknown option"))?;
        if known.value == Value::None && value.is_some() {
            return Err(self.unreadable("option does not take an argument"));
        }
        self.found(known, value)
    }

    fn short(&mut self, bundle: &'a str) -> Result<Found<T>, Unreadable> {
        let mut characters = bundle.chars();
        let name = characters.next();
        let known = self.known.iter().find(|known| name.is_some() && known.short == name);
        let known = *known.ok_or_else(|| self.unreadable("unknown option"))?;
        let behind = Some(characters.as_str()).filter(|behind| !behind.is_empty());
        let equals = behind.and_then(|behind| behind.strip_prefix('='));
        match known.value {
            Value::None if equals.is_some() => Err(self.unreadable("option does not take an argument")),
            Value::None => {
                self.bundle = behind;
                self.found(known, None)
            }
            Value::Required | Value::Optional => self.found(known, equals.or(behind)),
        }
    }

    fn found(&mut self, known: Known<T>, attached: Option<&str>) -> Result<Found<T>, Unreadable> {
        let value = match (known.value, attached) {
            (Value::None, _) => None,
            (_, Some(value)) => Some(value.to_owned()),
            (Value::Required, None) => {
                let Some(value) = self.words.get(self.next) else {
                    return Err(self.unreadable("missing argument"));
                };
                self.next += 1;
                Some(value.clone())
            }
            (Value::Optional, None) => {
                let value = self.words.get(self.next).filter(|word| !word.starts_with('-'));
                self.next += usize::from(value.is_some());
                value.cloned()
            }
        };
        Ok(Found {
            meaning: known.meaning,
            value,
        })
    }

    fn unreadable(&self, reason: &'static str) -> Unreadable {
        Unreadable {
            word: self.word().to_owned(),
            reason,
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    const KNOWN: &[Known<char>] = &[
        Known {
            long: "list",
            short: Some('L'),
            value: Value::None,
            meaning: 'L',
        },
        Known {
            long: "numeric",
            short: Some('n'),
            value: Value::None,
            meaning: 'n',
        },
        Known {
            long: "weight",
            short: Some('w'),
            value: Value::Required,
            meaning: 'w',
        },
        Known {
            long: "persistent",
            short: Some('p'),
            value: Value::Optional,
            meaning: 'p',
        },
    ];

    /// Reads a command line to one text: options with their values, then the rest, or the error.
    fn read(line: &str) -> String {
        let words: Vec<String> = line.split(' ').map(str::to_owned).collect();
        let mut reader = Reader::new(KNOWN, &words);
        let mut out = Vec::new();
        while let Some(found) = reader.next() {
            match found {
                Ok(found) => out.push(match found.value {
                    Some(value) => format!("{}={value}", found.meaning),
                    None => found.meaning.to_string(),
                }),
                Err(error) => {
                    out.push(format!("{}: {}", error.word, error.reason));
                    return out.join(" ");
                }
            }
        }
        out.extend(reader.into_rest());
        out.join(" ")
    }

    #[test]
    fn reads_what_popt_reads() {
        for (line, expected) in [
            ("-Ln", "L n"),
            ("-L -n", "L n"),
            ("--list --numeric", "L n"),
            ("-w5", "w=5"),
            ("-w=5", "w=5"),
            ("-w 5", "w=5"),
            ("-w -5", "w=-5"),
            ("--weight=5", "w=5"),
            ("--weight 5", "w=5"),
            ("--weight=", "w="),
            ("-nw5", "n w=5"),
            ("-p", "p"),
            ("-p 7", "p=7"),
            ("-p7", "p=7"),
            ("-p=7", "p=7"),
            ("-p -n", "p n"),
            ("--persistent=7 x", "p=7 x"),
            ("a -n b", "n a b"),
            ("-n -- -L", "n -L"),
            ("-n - x", "n - x"),
        ] {
            assert_eq!(read(line), expected, "{line}");
        }
    }

    #[test]
    fn says_what_popt_says() {
        for (line, expected) in [
            ("-nq", "n -nq: unknown option"),
            ("--num", "--num: unknown option"),
            ("--num=3", "--num=3: unknown option"),
            ("-n=3", "-n=3: option does not take an argument"),
            ("--numeric=3", "--numeric=3: option does not take an argument"),
            ("-w", "-w: missing argument"),
            ("-nw", "n -nw: missing argument"),
            ("--weight", "--weight: missing argument"),
        ] {
            assert_eq!(read(line), expected, "{line}");
        }
    }
}
