//! What the parts of an episode are called.

use std::borrow::Cow;

use crate::names::Names;
use crate::scope::Part;

/// The name of a part in text and in JSON: `scan`, `shrink:FUNCTION`, `throttled:REASON`, ...
pub fn name(part: Part, names: &mut Names) -> Cow<'static, str> {
    match part {
        Part::Scan => "scan".into(),
        Part::Shrinker(0) => "shrink:others".into(),
        Part::Shrinker(address) => format!("shrink:{}", names.symbols.function(address)).into(),
        Part::Throttled(reason) => {
            let reason = u32::try_from(reason).unwrap_or(u32::MAX);
            format!("throttled:{}", names.throttles.name(reason)).into()
        }
        Part::Pfmemalloc => "throttled:pfmemalloc".into(),
        Part::Compaction => "compaction".into(),
        Part::Blocked => "blocked".into(),
        Part::Waiting => "waiting".into(),
        Part::Other => "other".into(),
    }
}
