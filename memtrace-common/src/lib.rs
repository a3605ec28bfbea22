//! What crosses the boundary between the kernel side of memtrace and its user space.
//!
//! [`record`] travels from the probes to user space, [`layout`] and [`config`] the other way, and
//! [`counter`] names the slots in which the probes count what they could not deliver.

#![no_std]
#![forbid(unsafe_code)]

pub mod config;
pub mod counter;
pub mod layout;
pub mod record;
