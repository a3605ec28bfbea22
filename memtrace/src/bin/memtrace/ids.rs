//! The few ids that much is said of: threads, cgroups.

use std::collections::BTreeSet;

/// Distinct ids, no more than were asked for: what they cost later grows with them.
#[derive(Debug)]
pub struct Ids<T> {
    all: BTreeSet<T>,
    most: usize,
    /// The same one often comes again at once.
    latest: Option<T>,
}

impl<T: Copy + Ord> Ids<T> {
    /// None yet, and never more than `most`.
    pub fn new(most: usize) -> Self {
        Self { all: BTreeSet::new(), most, latest: None }
    }

    pub fn insert(&mut self, id: T) {
        if self.latest != Some(id) && self.all.len() < self.most {
            self.all.insert(id);
            self.latest = Some(id);
        }
    }

    /// All of them, and begins anew.
    pub fn take(&mut self) -> BTreeSet<T> {
        self.latest = None;
        std::mem::take(&mut self.all)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn each_is_there_once_and_the_first_remain() {
        let mut ids = Ids::new(2);
        for id in [3, 3, 1, 3, 2, 1] {
            ids.insert(id);
        }
        assert_eq!(ids.take(), [1, 3].into());
        // The latest of before is not there any more.
        for id in [3, 2] {
            ids.insert(id);
        }
        assert_eq!(ids.take(), [2, 3].into());
        assert_eq!(ids.take(), [].into());
    }
}
