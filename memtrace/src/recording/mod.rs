//! Recordings: stalls with all that it takes to read them elsewhere and later. docs/recording.md has the format.
//!
//! [`encode`] makes blocks of what [`recorder`] brings, [`store`] and [`flight`] keep them, [`file`] finds them again, [`decode`] makes of them what came, and
//! [`told`] what reports want to know of it. Files are anyone's: whatever they say, reading them ends, and takes no
//! more memory than a block may.

#[cfg(test)]
pub(crate) mod check;
mod columns;
pub mod decode;
pub mod encode;
pub mod file;
pub mod flight;
pub mod look;
#[cfg(test)]
mod made;
pub mod meta;
pub mod readings;
pub mod recorder;
mod rows;
mod sections;
pub mod store;
mod tables;
#[cfg(test)]
mod tests;
pub mod told;

pub use self::{
    decode::{Block, Item},
    encode::Builder,
    file::{Missing, Place, ReadError, Recording},
    flight::Flight,
    look::Looker,
    meta::{Counts, End, Fired, Look, Meta, Note, Settled},
    recorder::Recorder,
    sections::Damaged,
    store::Store,
    tables::{Class, Thread},
    told::Told,
};
