//! What crosses the boundary between the kernel side of memtrace and its user space.
//!
//! [`record`] travels from the probes to user space, [`layout`] and [`config`] the other way.
//! [`counter`] names the slots in which the probes count what they could not deliver, and
//! [`in_progress`] is what they keep of a stall until it ends, which user space counts, and [`tally`]
//! what they keep of many for a histogram, which user space takes. [`now`] is of the iterator over
//! threads, which is a program of its own.

#![no_std]
#![forbid(unsafe_code)]

pub mod config;
pub mod counter;
pub mod in_progress;
pub mod layout;
pub mod now;
pub mod record;
pub mod tally;
