//! The rules of the classifier in the [`State`].

use std::sync::Arc;

use super::State;
use crate::control::protocol::{CommandError, WhichMark};
use crate::service::MarkRule;

/// Rules of the classifier at most.
pub const MARKS_MAX: usize = 1024;

impl State {
    /// The rules of the classifier, in order.
    pub fn marks(&self) -> &Arc<Vec<MarkRule>> {
        &self.marks
    }

    pub(super) fn add_mark(&mut self, rule: &MarkRule, at: Option<u32>) -> Result<(), CommandError> {
        let count = self.marks.len();
        let place = match at {
            None => count,
            Some(at) => (at as usize)
                .checked_sub(1)
                .filter(|place| *place <= count)
                .ok_or_else(|| refused(format!("a rule cannot be number {at}: there are {count}")))?,
        };
        may_stand_with(rule, &self.marks)?;
        Arc::make_mut(&mut self.marks).insert(place, rule.clone());
        Ok(())
    }

    pub(super) fn delete_mark(&mut self, which: &WhichMark) -> Result<(), CommandError> {
        let count = self.marks.len();
        let place = match which {
            WhichMark::Number(number) => (*number as usize)
                .checked_sub(1)
                .filter(|place| *place < count)
                .ok_or_else(|| refused(format!("there is no rule number {number}: there are {count}")))?,
            WhichMark::Rule(rule) => (self.marks.iter().position(|there| there == rule))
                .ok_or_else(|| refused(format!("there is no rule `{rule}`")))?,
        };
        Arc::make_mut(&mut self.marks).remove(place);
        Ok(())
    }

    pub(super) fn set_marks(&mut self, rules: &[MarkRule]) -> Result<(), CommandError> {
        for (number, rule) in rules.iter().enumerate() {
            may_stand_with(rule, &rules[..number])?;
        }
        self.marks = Arc::new(rules.to_vec());
        Ok(())
    }
}

fn may_stand_with(rule: &MarkRule, others: &[MarkRule]) -> Result<(), CommandError> {
    rule.check().map_err(|error| refused(error.to_string()))?;
    if others.len() >= MARKS_MAX {
        return Err(CommandError::Limit(format!("there are {MARKS_MAX} rules already")));
    }
    match others.iter().position(|other| other == rule) {
        Some(place) => Err(refused(format!("rule number {} is the same: `{rule}`", place + 1))),
        None => Ok(()),
    }
}

fn refused(reason: String) -> CommandError {
    CommandError::Mark(reason)
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::control::protocol::Command;

    fn rule(mark: u32) -> MarkRule {
        MarkRule {
            mark,
            protocol: None,
            source: None,
            source_port: None,
            destination: Some("192.0.2.1".parse().expect("an address")),
            destination_port: None,
            interface: None,
        }
    }

    fn marks(state: &State) -> Vec<u32> {
        state.marks().iter().map(|rule| rule.mark).collect()
    }

    fn run(state: &mut State, command: Command) -> Result<(), String> {
        let applied = state.apply(&command);
        applied
            .map(|(after, _)| *state = after)
            .map_err(|error| error.to_string())
    }

    #[test]
    fn rules_are_added_in_order_and_deleted_by_number_or_words() {
        let mut state = State::default();
        let add = |mark, at| Command::AddMark { rule: rule(mark), at };
        run(&mut state, add(1, None)).unwrap();
        run(&mut state, add(2, None)).unwrap();
        run(&mut state, add(3, Some(1))).unwrap();
        run(&mut state, add(4, Some(4))).unwrap();
        assert_eq!(marks(&state), [3, 1, 2, 4]);
        run(
            &mut state,
            Command::DeleteMark {
                which: WhichMark::Number(2),
            },
        )
        .unwrap();
        run(
            &mut state,
            Command::DeleteMark {
                which: WhichMark::Rule(rule(4)),
            },
        )
        .unwrap();
        assert_eq!(marks(&state), [3, 2]);
        let saved = State::default().apply_all(&state.commands(), true);
        assert_eq!(saved.state, state);
        for (command, message) in [
            (add(5, Some(0)), "a rule cannot be number 0: there are 2"),
            (add(5, Some(4)), "a rule cannot be number 4: there are 2"),
            (add(2, None), "rule number 2 is the same: `2 --destination 192.0.2.1`"),
            (add(0, None), "a firewall mark is 1 to 4294967295, not 0"),
            (
                Command::DeleteMark {
                    which: WhichMark::Number(3),
                },
                "there is no rule number 3: there are 2",
            ),
            (
                Command::DeleteMark {
                    which: WhichMark::Rule(rule(9)),
                },
                "there is no rule `9 --destination 192.0.2.1`",
            ),
        ] {
            assert_eq!(run(&mut state, command).unwrap_err(), message);
        }
        // Services come and go without them.
        run(&mut state, Command::Clear).unwrap();
        assert_eq!(marks(&state), [3, 2]);
        run(&mut state, Command::SetMarks { rules: vec![] }).unwrap();
        assert!(marks(&state).is_empty());
    }

    #[test]
    fn there_is_a_limit() {
        let rules: Vec<MarkRule> = (1..=MARKS_MAX as u32).map(rule).collect();
        let mut state = State::default();
        run(&mut state, Command::SetMarks { rules }).unwrap();
        let one_more = Command::AddMark {
            rule: rule(u32::MAX),
            at: None,
        };
        assert!(run(&mut state, one_more).unwrap_err().contains("1024"));
    }
}
