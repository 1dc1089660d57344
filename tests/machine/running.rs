//! A machine that breaks while the director runs.
