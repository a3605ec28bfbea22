//! What takes a whole machine, or a kernel that this one may not be.

mod episodes;
mod pressure;
