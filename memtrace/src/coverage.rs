//! Coverage: which kinds of stalls are watched, and which are not, with the reasons. What was not
//! watched cannot be said not to have happened.

use crate::kind::Kind;

/// Every kind that was asked for, with the reason where it is not watched.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct Coverage(Vec<(Kind, Option<String>)>);

impl Coverage {
    /// All of `kinds`.
    #[must_use]
    pub fn of(kinds: &[Kind]) -> Self {
        Self(kinds.iter().map(|kind| (*kind, None)).collect())
    }

    /// One of them is not watched. The first reason stands.
    pub fn lacks(&mut self, kind: Kind, why: &str) {
        if let Some((_, reason)) = self.0.iter_mut().find(|(known, _)| *known == kind) {
            reason.get_or_insert_with(|| why.to_owned());
        }
    }

    /// One more kind was asked for, and is not watched.
    pub fn add_lacking(&mut self, kind: Kind, why: &str) {
        self.0.push((kind, Some(why.to_owned())));
    }

    /// The same of these kinds alone.
    #[must_use]
    pub fn only(&self, kinds: &[Kind]) -> Self {
        Self(self.0.iter().filter(|(kind, _)| kinds.contains(kind)).cloned().collect())
    }

    /// Whether nothing was asked for.
    #[must_use]
    pub fn is_empty(&self) -> bool {
        self.0.is_empty()
    }

    /// The kinds that are watched.
    pub fn watched(&self) -> impl Iterator<Item = Kind> {
        self.0.iter().filter(|(_, reason)| reason.is_none()).map(|(kind, _)| *kind)
    }

    /// The kinds that are not, each with the reason.
    pub fn missing(&self) -> impl Iterator<Item = (Kind, &str)> {
        self.0.iter().filter_map(|(kind, reason)| Some((*kind, reason.as_deref()?)))
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn what_was_not_asked_for_is_not_missed() {
        let mut coverage = Coverage::of(&[Kind::Direct, Kind::Oom]);
        coverage.lacks(Kind::Oom, "first");
        coverage.lacks(Kind::Oom, "second");
        coverage.lacks(Kind::Refault, "not asked for");
        assert_eq!(coverage.watched().collect::<Vec<_>>(), [Kind::Direct]);
        assert_eq!(coverage.missing().collect::<Vec<_>>(), [(Kind::Oom, "first")]);
    }
}
