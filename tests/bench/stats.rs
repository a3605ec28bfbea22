//! What is told of several rounds.

/// The smallest, the middle and the largest value.
#[derive(Clone, Copy, Debug, PartialEq)]
pub struct Spread {
    /// The smallest.
    pub min: f64,
    /// Half are smaller; of an even number the mean of the two in the middle.
    pub median: f64,
    /// The largest.
    pub max: f64,
}

impl Spread {
    /// Of one value at least.
    pub fn of(values: &[f64]) -> Option<Self> {
        let mut sorted = values.to_vec();
        sorted.sort_by(f64::total_cmp);
        let (min, max) = (*sorted.first()?, *sorted.last()?);
        Some(Self { min, median: middle(&sorted), max })
    }
}

fn middle(sorted: &[f64]) -> f64 {
    f64::midpoint(sorted[(sorted.len() - 1) / 2], sorted[sorted.len() / 2])
}

/// How often the bootstrap draws.
const DRAWS: usize = 10_000;

/// The share of the draws that the interval leaves out on each side.
const TAIL: usize = DRAWS / 40;

/// The interval that has the median in it with a confidence of 95 %, by the percentile bootstrap: the medians of as many
/// values, drawn from these again and again. The draws are the same each time.
pub fn confidence(values: &[f64]) -> Option<(f64, f64)> {
    if values.len() < 2 {
        return None;
    }
    let mut draw = Draw(0);
    let mut drawn = values.to_vec();
    let median = |_| {
        drawn.fill_with(|| values[draw.below(values.len())]);
        drawn.sort_by(f64::total_cmp);
        middle(&drawn)
    };
    let mut medians: Vec<f64> = (0..DRAWS).map(median).collect();
    medians.sort_by(f64::total_cmp);
    Some((medians[TAIL], medians[DRAWS - 1 - TAIL]))
}

/// Numbers that look random: `SplitMix64`.
struct Draw(u64);

impl Draw {
    fn below(&mut self, bound: usize) -> usize {
        self.0 = self.0.wrapping_add(0x9e37_79b9_7f4a_7c15);
        let mut mixed = self.0;
        mixed = (mixed ^ (mixed >> 30)).wrapping_mul(0xbf58_476d_1ce4_e5b9);
        mixed = (mixed ^ (mixed >> 27)).wrapping_mul(0x94d0_49bb_1331_11eb);
        mixed ^= mixed >> 31;
        let high = (u128::from(mixed) * bound as u128) >> u64::BITS;
        usize::try_from(high).unwrap_or_default()
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_median_is_in_the_middle() {
        let spread = |min, median, max| Some(Spread { min, median, max });
        assert_eq!(Spread::of(&[3.0, 1.0, 2.0]), spread(1.0, 2.0, 3.0));
        assert_eq!(Spread::of(&[4.0, 1.0, 2.0, 8.0]), spread(1.0, 3.0, 8.0));
        assert_eq!(Spread::of(&[5.0]), spread(5.0, 5.0, 5.0));
        assert_eq!(Spread::of(&[]), None);
    }

    #[test]
    fn the_interval_has_the_median_and_is_as_wide_as_theory_says() {
        // Spread evenly over 0 to 1, where the median's standard error is 1 / (2 sqrt(n)), with an outlier.
        let count = 401;
        let mut values: Vec<f64> =
            (0..count).map(|n| f64::from(n) / f64::from(count - 1)).collect();
        values[400] = 1e6;
        let (low, high) = confidence(&values).expect("many values");
        assert!(low < 0.5 && 0.5 < high, "{low} {high}");
        let expected = 2.0 * 1.96 / (2.0 * f64::from(count).sqrt());
        assert!((high - low - expected).abs() < 0.15 * expected, "{low} {high}");
    }

    #[test]
    fn one_value_has_no_interval() {
        assert_eq!(confidence(&[1.0]), None);
        assert_eq!(confidence(&[1.0, 1.0]), Some((1.0, 1.0)));
    }
}
