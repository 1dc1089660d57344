//! Which defences are at work: see [`crate::table::defence`].

use std::sync::Arc;

use super::Registry;
use crate::control::state::State;
use crate::table::{Defence, Supplies};

impl Registry {
    /// What of drop_entry, drop_packet and secure_tcp is at work.
    pub fn defence(&self, state: &State) -> Defence {
        Defence::new(&state.sysctls, &self.supplies)
    }

    /// Notes what is left of memory and connection table, and sets the automatic modes by that. `true`: what is at work has
    /// changed, so that a new table is due.
    pub fn defend(&mut self, state: &mut State, supplies: Supplies) -> bool {
        let before = self.defence(state);
        self.supplies = supplies;
        self.settle_modes(state);
        self.defence(state) != before
    }

    /// Sets the automatic modes by what was last noted.
    pub fn settle_modes(&self, state: &mut State) {
        if let Some(sysctls) = state.sysctls.with_modes_of(&self.supplies) {
            state.sysctls = Arc::new(sysctls);
        }
    }
}
