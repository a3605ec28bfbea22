//! memtrace names the threads that a Linux host holds up in memory management, for how long, by
//! what and why.
//!
//! A source ([`live`]) makes [`stall::Stall`]s, [`names::Names`] puts their numbers into words,
//! and a [`view`] shows them.

pub mod cgroup;
pub mod clock;
pub mod coverage;
pub mod decode;
pub mod episode;
pub mod filter;
pub mod histogram;
pub mod kernel;
pub mod kind;
pub mod live;
pub mod names;
pub mod now;
pub mod owner;
pub mod recording;
pub mod report;
pub mod scope;
pub mod stall;
pub mod symbols;
pub mod text;
pub mod trigger;
pub mod verdict;
pub mod view;
