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

/// The interval that has the mean in it with a confidence of 95 %, by the percentile bootstrap: the means of as many
/// values, drawn from these again and again. The draws are the same each time.
pub fn confidence(values: &[f64]) -> Option<(f64, f64)> {
    if values.len() < 2 {
        return None;
    }
    let mut draw = Draw(0);
    let mean = |_| {
        let sum: f64 = (0..values.len()).map(|_| values[draw.below(values.len())]).sum();
        sum / values.len() as f64
    };
    let mut means: Vec<f64> = (0..DRAWS).map(mean).collect();
    means.sort_by(f64::total_cmp);
    Some((means[TAIL], means[DRAWS - 1 - TAIL]))
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
        let high = u128::from(mixed) * bound as u128 >> u64::BITS;
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
    fn the_interval_has_the_mean_and_shrinks_with_more_values() {
        let few: Vec<f64> = (0..10).map(|n| f64::from(n % 5)).collect();
        let many: Vec<f64> = (0..1000).map(|n| f64::from(n % 5)).collect();
        let (low, high) = confidence(&few).expect("ten values");
        assert!(low < 2.0 && 2.0 < high, "{low} {high}");
        let (narrow_low, narrow_high) = confidence(&many).expect("a thousand values");
        assert!(narrow_low < 2.0 && 2.0 < narrow_high, "{narrow_low} {narrow_high}");
        assert!((narrow_high - narrow_low) * 5.0 < high - low);
        // The standard error of the mean is sqrt(2 / 1000), and the interval is 1.96 of it to each side.
        let expected = 2.0 * 1.96 * (2.0_f64 / 1000.0).sqrt();
        assert!((narrow_high - narrow_low - expected).abs() < 0.1 * expected);
    }

    #[test]
    fn one_value_has_no_interval() {
        assert_eq!(confidence(&[1.0]), None);
        assert_eq!(confidence(&[1.0, 1.0]), Some((1.0, 1.0)));
    }
}
