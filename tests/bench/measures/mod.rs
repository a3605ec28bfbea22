//! The measures: one file for each question, each gives rows of the report.

pub mod kernel;
