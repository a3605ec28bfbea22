//! What the parts of an episode are called.

use std::borrow::Cow;

use crate::names::{EnumNames, Names};
use crate::scope::Part;

/// The name of the time in which a thread could run and waited for a CPU.
pub const WAITING: &str = "waiting";

/// The name of a part in text and in JSON: `scan`, `shrink:FUNCTION`, `throttled:REASON`, ...
pub fn name(part: Part, names: &mut Names) -> Cow<'static, str> {
    let Names { symbols, throttles, .. } = names;
    name_by(part, throttles, |address| symbols.function(address))
}

/// The same, where functions are named by whoever asks.
pub fn name_by(
    part: Part,
    throttles: &EnumNames,
    function: impl FnOnce(u64) -> String,
) -> Cow<'static, str> {
    match part {
        Part::Scan => "scan".into(),
        Part::Shrinker(0) => "shrink:others".into(),
        Part::Shrinker(address) => format!("shrink:{}", function(address)).into(),
        Part::Throttled(reason) => {
            let reason = u32::try_from(reason).unwrap_or(u32::MAX);
            format!("throttled:{}", throttles.name(reason)).into()
        }
        Part::Pfmemalloc => "throttled:pfmemalloc".into(),
        Part::Compaction => "compaction".into(),
        Part::Blocked => "blocked".into(),
        Part::Waiting => WAITING.into(),
        Part::Other => "other".into(),
    }
}
