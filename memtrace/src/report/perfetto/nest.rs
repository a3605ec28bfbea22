//! Slices of one track, put into each other.

use std::cmp::Reverse;

/// A span of time with what it is of.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Slice<T> {
    pub start: u64,
    pub end: u64,
    pub what: T,
}

/// Calls `each` with the beginnings (and what is of them) and the ends of slices, in order of time and each within what
/// it began in: one that would end later ends with that. Of those with the same span the first is the outer one.
pub fn nest<T: Copy, E>(
    mut slices: Vec<Slice<T>>,
    mut each: impl FnMut(u64, Option<T>) -> Result<(), E>,
) -> Result<(), E> {
    slices.sort_by_key(|slice| (slice.start, Reverse(slice.end)));
    let mut open: Vec<u64> = Vec::new();
    for Slice { start, end, what } in slices {
        while let Some(outer_end) = open.pop_if(|outer_end| *outer_end <= start) {
            each(outer_end, None)?;
        }
        let end = open.last().map_or(end, |outer_end| end.min(*outer_end));
        each(start, Some(what))?;
        open.push(end.max(start));
    }
    while let Some(end) = open.pop() {
        each(end, None)?;
    }
    Ok(())
}

#[cfg(test)]
mod tests {
    use std::convert::Infallible;
    use std::fmt::Write as _;

    use super::*;

    fn nested(slices: &[(u64, u64, char)]) -> String {
        let slice = |&(start, end, what)| Slice { start, end, what };
        let mut text = String::new();
        let Ok(()) = nest::<_, Infallible>(slices.iter().map(slice).collect(), |at, what| {
            match what {
                Some(what) => write!(text, "{what}{at}( "),
                None => write!(text, ")@{at} "),
            }
            .expect("memory");
            Ok(())
        });
        text.trim_end().to_owned()
    }

    #[test]
    fn what_follows_stands_beside_and_what_is_inside_within() {
        assert_eq!(nested(&[(0, 4, 'a'), (4, 9, 'b')]), "a0( )@4 b4( )@9");
        assert_eq!(nested(&[(0, 9, 'a'), (0, 4, 'b'), (4, 9, 'c')]), "a0( b0( )@4 c4( )@9 )@9");
        assert_eq!(nested(&[(5, 9, 'b'), (0, 9, 'a')]), "a0( b5( )@9 )@9");
    }

    #[test]
    fn what_would_reach_out_is_cut() {
        assert_eq!(nested(&[(0, 5, 'a'), (3, 9, 'b')]), "a0( b3( )@5 )@5");
        assert_eq!(nested(&[(0, 5, 'a'), (0, 5, 'b')]), "a0( b0( )@5 )@5");
        assert_eq!(nested(&[(7, 5, 'a'), (8, 8, 'b')]), "a7( )@7 b8( )@8");
        assert_eq!(nested(&[]), "");
    }
}
