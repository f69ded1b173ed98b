//! Series of measured times and what is said of them.

use std::fmt;
use std::time::Duration;

/// Figures in milliseconds, or ratios, in the order they were taken.
#[derive(Clone, Debug, Default)]
pub(super) struct Series(Vec<f64>);

impl Series {
    pub(super) fn push(&mut self, time: Duration) {
        self.0.push(time.as_secs_f64() * 1000.0);
    }

    pub(super) fn is_empty(&self) -> bool {
        self.0.is_empty()
    }

    pub(super) fn len(&self) -> usize {
        self.0.len()
    }

    pub(super) fn median(&self) -> f64 {
        self.quantile(0.5)
    }

    pub(super) fn least(&self) -> f64 {
        self.quantile(0.0)
    }

    /// The value below which this share of the figures lies.
    pub(super) fn quantile(&self, share: f64) -> f64 {
        let mut sorted = self.0.clone();
        sorted.sort_by(f64::total_cmp);
        if sorted.is_empty() {
            return f64::NAN;
        }
        let place = share * (sorted.len() - 1) as f64;
        let (below, above) = (sorted[place.floor() as usize], sorted[place.ceil() as usize]);
        below + (above - below) * place.fract()
    }

    /// This series less another that was taken in turn with it, pair by pair.
    pub(super) fn over(&self, other: &Series) -> Series {
        Series(self.0.iter().zip(&other.0).map(|(one, two)| one - two).collect())
    }

    /// This series as shares of another that was taken in turn with it, pair by pair: a machine that becomes slower meanwhile
    /// does so for both.
    pub(super) fn of(&self, other: &Series) -> Series {
        Series(self.0.iter().zip(&other.0).map(|(one, two)| one / two).collect())
    }
}

impl FromIterator<f64> for Series {
    fn from_iter<T: IntoIterator<Item = f64>>(figures: T) -> Series {
        Series(figures.into_iter().collect())
    }
}

/// `6.1 ms (least 5.2)`.
impl fmt::Display for Series {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "{} (least {})", milliseconds(self.median()), number(self.least()))
    }
}

pub(super) fn milliseconds(value: f64) -> String {
    format!("{} ms", number(value))
}

fn number(value: f64) -> String {
    if value.abs() < 100.0 { format!("{value:.1}") } else { format!("{value:.0}") }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn series(values: &[u64]) -> Series {
        let mut series = Series::default();
        values.iter().for_each(|value| series.push(Duration::from_millis(*value)));
        series
    }

    #[test]
    fn median_lies_in_the_middle() {
        assert_eq!(series(&[9, 1, 5]).median(), 5.0);
        assert_eq!(series(&[1, 2, 3, 10]).median(), 2.5);
        assert!(Series::default().median().is_nan());
    }

    #[test]
    fn differences_are_taken_pair_by_pair() {
        let difference = series(&[10, 200, 30]).over(&series(&[9, 190, 25]));
        assert_eq!(difference.median(), 5.0);
        assert_eq!(difference.least(), 1.0);
    }

    #[test]
    fn shares_are_taken_pair_by_pair() {
        let share = series(&[10, 40, 30]).of(&series(&[100, 200, 60]));
        assert_eq!((share.median(), share.least()), (0.2, 0.1));
    }

    #[test]
    fn a_series_is_told_by_median_and_least() {
        assert_eq!(series(&[4, 6, 250]).to_string(), "6.0 ms (least 4.0)");
    }
}
