//! The measures: one file for each question, each gives rows of the report.

pub mod burst;
pub mod cpu;
pub mod global;
pub mod growth;
pub mod kernel;
pub mod memory;
pub mod now;
pub mod rate;
pub mod record;
pub mod report;
pub mod slowdown;
pub mod start;
pub mod switch;
